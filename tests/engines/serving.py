"""Handlers that the tests run in a child beside the harness's own."""

import time
import zipfile
from pathlib import Path

from training.engines.frame import InputError
from training.engines.harness import load_predictor


def serve(task, channel):
    """What a model server does: load an artifact, answer calls. Inputs: "model"; payload: "calls"."""
    folder = Path("served")
    with zipfile.ZipFile(task["inputs"]["model"]) as zip:
        zip.extractall(folder)
    model = load_predictor(folder)
    answers, times = [], []
    for columns, rows in task["payload"]["calls"]:
        began = time.perf_counter()
        try:
            answers.append(model.predict(columns, rows))
        except InputError as error:
            answers.append({"error": str(error), "code": error.code, "columns": error.columns})
        times.append((time.perf_counter() - began) * 1000)
    return {"data": {"answers": answers, "ms": times}, "files": {}}
