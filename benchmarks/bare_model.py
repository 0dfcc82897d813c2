"""A bare Starlette app that answers with one model, the peer of serving.py: nothing but JSON, the
model, and uvicorn. Runs in the virtualenv of the model's engine: bare_model.py FOLDER PORT."""

import sys
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from workers.node import handlers


def main(folder: str, port: str) -> None:
    model = handlers.load(handlers.predictor_target())(folder)

    async def predict(request: Request) -> JSONResponse:
        rows: list[dict[str, Any]] = (await request.json())["rows"]
        columns = list(rows[0])
        answer = model.predict(columns, [[row[name] for name in columns] for row in rows])
        return JSONResponse(
            {"predictions": [str(one) for one in answer["predictions"]],
             "probabilities": answer.get("probabilities")}
        )  # fmt: skip

    app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
