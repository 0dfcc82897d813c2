"""Predict the rows of a CSV or Parquet file: python predict.py rows.csv [-o out.csv] [--json]"""

import argparse
import csv
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from flowml_model import ENGINE  # noqa: E402
from flowml_model.frame import Schema, prepare  # noqa: E402
from flowml_model.tables import InputError, read_file  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="CSV (gzip too) or Parquet file")
    parser.add_argument("-o", "--output", type=Path, help="CSV file to write")
    parser.add_argument("--json", action="store_true", help="print JSON instead of writing a file")
    arguments = parser.parse_args()
    told = json.loads((HERE / "schema.json").read_text(encoding="utf-8"))
    try:
        frame = prepare(Schema.from_json(told), read_file(arguments.rows))
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    found = ENGINE.load(HERE / "model").predict(frame)
    classes = told["classes"]
    if classes:
        predictions = [classes[int(code)] for code in found.values]
    else:
        predictions = [float(value) for value in found.values]
    shares = None if found.probabilities is None else found.probabilities.tolist()
    if arguments.json:
        print(json.dumps({"predictions": predictions, "probabilities": shares, "classes": classes}))
        return 0
    output = arguments.output or arguments.rows.with_name(arguments.rows.stem + ".predictions.csv")
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = [f"probability_{name}" for name in classes] if shares else []
        writer.writerow(["prediction", *names])
        for row, prediction in enumerate(predictions):
            writer.writerow([prediction, *(shares[row] if shares else ())])
    print(f"{len(predictions)} predictions are in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
