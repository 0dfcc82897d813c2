"""Predict rows with an ensemble: python blend.py --install, then python blend.py rows.csv [-o out]

Asks each member in its own virtualenv (members/<name>/venv) and blends what they answer. Needs
nothing but Python 3.11 or newer.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent


def folder_of(member):
    return HERE / Path(member["file"]).with_suffix("")


def python_of(member):
    scripts = "Scripts" if os.name == "nt" else "bin"
    return folder_of(member) / "venv" / scripts / "python"


def unpack(member):
    folder = folder_of(member)
    if not (folder / "predict.py").exists():
        with zipfile.ZipFile(HERE / member["file"]) as archive:
            archive.extractall(folder)


def install(member):
    """Unpack a member and make its virtualenv, with the Python version that it was trained with."""
    unpack(member)
    folder = folder_of(member)
    trained = json.loads((folder / "schema.json").read_text(encoding="utf-8"))["python"]
    wanted = ".".join(trained.split(".")[:2])
    mine = ".".join(map(str, sys.version_info[:2]))
    found = shutil.which(f"python{wanted}") if wanted != mine else sys.executable
    if found is None:
        print(f"{member['name']} was trained with Python {wanted}; trying {mine}.", file=sys.stderr)
    if found in (None, sys.executable):
        venv.create(folder / "venv", with_pip=True)
    else:
        subprocess.run([found, "-m", "venv", folder / "venv"], check=True)
    command = [python_of(member), "-m", "pip", "install", "-r", folder / "requirements.txt"]
    subprocess.run(command, check=True)


def ask(member, rows, answer):
    unpack(member)
    if not python_of(member).exists():
        sys.exit(f"{member['name']} has no virtualenv yet: run python blend.py --install")
    script = folder_of(member) / "predict.py"
    command = [python_of(member), script, rows, "-o", answer]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def blended(lines, weights, classes):
    """One line of the answer from one line of each member's."""
    if classes is None:
        return [sum(w * float(line[0]) for w, line in zip(weights, lines, strict=True))]
    shares = [
        sum(w * float(line[1 + code]) for w, line in zip(weights, lines, strict=True))
        for code in range(len(classes))
    ]
    return [classes[shares.index(max(shares))], *shares]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, nargs="?", help="CSV (gzip too) or Parquet file")
    parser.add_argument("-o", "--output", type=Path, help="CSV file to write")
    parser.add_argument("--install", action="store_true", help="make the members' virtualenvs")
    arguments = parser.parse_args()
    told = json.loads((HERE / "ensemble.json").read_text(encoding="utf-8"))
    members, classes = told["members"], told["classes"]
    if arguments.install:
        for member in members:
            install(member)
    if arguments.rows is None:
        if not arguments.install:
            parser.error("name a file of rows, or --install")
        return 0
    rows = arguments.rows.resolve()
    output = arguments.output or rows.with_name(rows.stem + ".predictions.csv")
    weights = [member["weight"] for member in members]
    count = 0
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        readers = []
        for place, member in enumerate(members):
            answer = Path(scratch) / f"{place}.csv"
            ask(member, rows, answer)
            file = stack.enter_context(answer.open(newline="", encoding="utf-8"))
            readers.append(csv.reader(file))
        heads = [next(reader) for reader in readers]
        writer = csv.writer(stack.enter_context(output.open("w", newline="", encoding="utf-8")))
        writer.writerow(heads[0])
        for lines in zip(*readers, strict=True):
            writer.writerow(blended(lines, weights, classes))
            count += 1
    print(f"{count} predictions are in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
