"""Fit this model again from its data set: python train.py dataset.parquet [-o model-again]"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
from flowml_model import ENGINE, splits  # noqa: E402
from flowml_model.base import Data, Problem, rows_of  # noqa: E402
from flowml_model.frame import Schema, prepare  # noqa: E402
from flowml_model.tables import as_array, read_file  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the data set version, as downloaded")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "model-again")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    told = json.loads((HERE / "schema.json").read_text(encoding="utf-8"))

    wanted = told["dataset"].get("sha256")
    with arguments.data.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted and found != wanted:
        print(f"This is another file: SHA-256 {found}, expected {wanted}.", file=sys.stderr)
        return 2

    table = read_file(arguments.data)
    target = as_array(table[told["target"]])
    classes = told["classes"]
    strata = splits.strata_of(target, classes)
    by = splits.column_of(told["split"])
    values = as_array(table[by]) if by else None
    rows = rows_of(splits.assign(len(target), told["split"], strata, values))
    frame = prepare(Schema.from_json(told), table, strict=False)
    if classes:
        y = strata[rows.train].astype(np.int64)
    else:
        y = np.array(target[rows.train], dtype=np.float64)
    problem = Problem(
        task=told["task"],
        target=told["target"],
        metric=told["metric"],
        classes=tuple(classes) if classes else None,
        positive_class=told["positive_class"],
        seed=told["seed"],
        threads=arguments.threads,
    )
    groups = splits.groups_for(told["split"], values, rows.train)
    data = Data(frame.take(rows.train), y, frame.take(rows.held), rows.folds, groups)
    ENGINE.fit(told["model"]["recipe"], problem, data, arguments.output)
    print(f"Fitted on {len(y)} rows; the model is in {arguments.output}")

    before = ENGINE.load(HERE / "model").predict(data.held)
    after = ENGINE.load(arguments.output).predict(data.held)
    numbers = [p.values if p.probabilities is None else p.probabilities for p in (before, after)]
    if len(data.held):
        gap = float(np.abs(numbers[0] - numbers[1]).max())
        print(
            f"Largest difference from the stored model on {len(data.held)} held-out rows: {gap:g}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
