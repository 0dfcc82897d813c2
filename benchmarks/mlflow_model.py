"""A model of FlowML's as MLflow serves it, the peer of serving.py: the same files, the same call.

Runs in MLflow's virtualenv: mlflow_model.py FOLDER OUT ROW writes MLflow's model; the server that
MLflow starts of it imports this file and calls ``_load_pyfunc``.
"""

import json
import sys
from typing import Any

from workers.node import handlers


class Served:
    def __init__(self, folder: str) -> None:
        self.model = handlers.load(handlers.predictor_target())(folder)

    def predict(self, table: Any, params: Any = None) -> list[dict[str, Any]]:
        """``table`` is the data frame that MLflow made of the request and checked."""
        said = self.model.predict(list(table.columns), table.to_numpy().tolist())
        shares = said["probabilities"] or [None] * len(table)
        return [
            {"prediction": one, "probabilities": share}
            for one, share in zip(said["predictions"], shares, strict=True)
        ]


def _load_pyfunc(folder: str) -> Served:
    return Served(folder)


def main(folder: str, out: str, row: str) -> None:
    import mlflow.pyfunc
    import pandas as pd

    mlflow.pyfunc.save_model(
        out,
        loader_module="benchmarks.mlflow_model",
        data_path=folder,
        signature=mlflow.models.infer_signature(pd.DataFrame([json.loads(row)])),
        pip_requirements=[],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
