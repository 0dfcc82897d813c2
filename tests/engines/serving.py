"""Handlers that the tests run in a child beside the harness's own."""

import time
import zipfile
from pathlib import Path

from training.engines.harness import load_predictor
from workers.node.channel import WorkError


def serve(task, channel):
    """What a model server does: load the artifact "model", answer the payload's calls.

    Of a call with a third part, rows to compare with, the one row is explained as well.
    """
    folder = Path("served")
    with zipfile.ZipFile(task["inputs"]["model"]) as archive:
        archive.extractall(folder)
    model = load_predictor(folder)
    answers, times = [], []
    for columns, rows, *background in task["payload"]["calls"]:
        began = time.perf_counter()
        try:
            if background:
                answers.append(model.explain(columns, rows[0], background[0], rows=2_000))
            else:
                answers.append(model.predict(columns, rows))
        except WorkError as error:
            answers.append({"error": error.sentence, "code": error.code, **error.data})
        times.append((time.perf_counter() - began) * 1000)
    return {"data": {"answers": answers, "ms": times}, "files": {}}


def keras_weights(task, channel):
    """Random weights of MobileNet at the payload's ``path``, as keras.applications stores them."""
    import h5py
    import keras
    from keras.src.legacy.saving import legacy_h5_format

    keras.utils.set_random_seed(1)
    network = keras.applications.MobileNet(
        input_shape=(64, 64, 3), alpha=0.25, include_top=False, weights=None, pooling="avg"
    )
    with h5py.File(task["payload"]["path"], "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    return {"data": {}, "files": {}}
