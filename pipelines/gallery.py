"""Pipelines to begin with: what a person fills names into, rather than a blank page."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Template:
    key: str
    name: str
    title: str
    text: str
    definition: dict[str, Any]
    schedule: dict[str, Any]


def _stage(key: str, stage: str, /, **params: Any) -> dict[str, Any]:
    return {"key": key, "stage": stage, "params": params}


_HOUSE = "my connection"
_TRAIN = {"data": "my data", "target": "my target", "preset": "balanced"}

TEMPLATES = (
    Template(
        "retrain",
        "nightly retrain",
        "Retrain every night, promote if better",
        "Trains on the newest version of a data set. If the best model beats the champion, the "
        "name means the new one from then on.",
        {
            "stages": [
                _stage("train", "train", **_TRAIN),
                _stage("promote", "promote", model="$train", name="my_model"),
            ]
        },
        {"cron": "0 3 * * *", "time_zone": "UTC", "overlap": "skip"},
    ),
    Template(
        "score",
        "batch score",
        "Score a data set",
        "Predicts every row of a data set's newest version by the champion of a name. The answers "
        "are the next version of another data set.",
        {
            "stages": [
                _stage(
                    "score", "score", model="my_model@champion", data="my data", dataset="scored"
                )
            ]
        },
        {},
    ),
    Template(
        "warehouse",
        "query to table",
        "From a query to a table",
        "A query fetches data; a model is trained and promoted if better; the champion scores the "
        "same rows; and what it says is written back to a table.",
        {
            "stages": [
                _stage(
                    "fetch",
                    "sql",
                    connection="my connection",
                    sql="SELECT * FROM my_table",
                    dataset="fetched",
                ),
                _stage("train", "train", **{**_TRAIN, "data": "$fetch"}),
                _stage("promote", "promote", model="$train", name="my_model"),
                _stage("score", "score", model="$promote", data="$fetch", dataset="scored"),
                _stage(
                    "write",
                    "write_back",
                    connection="my connection",
                    data="$score",
                    table="predictions",
                ),
            ]
        },
        {"cron": "0 3 * * *", "time_zone": "UTC", "overlap": "skip"},
    ),
    Template(
        "machine",
        "on my machine",
        "Train and score on a machine by SSH",
        "Sends a data set to a machine of yours, runs your own programs there (they go on when the "
        "connection is lost, and are found again), and fetches the file that they wrote.",
        {
            "stages": [
                _stage(
                    "send",
                    "upload",
                    connection="my machine",
                    data="my data",
                    path="nightly/sample.csv",
                )
                | {"retries": 2},
                _stage(
                    "train",
                    "remote",
                    connection="my machine",
                    command="python3 train.py sample.csv",
                    folder="nightly",
                    time_limit_s=7200,
                )
                | {"after": ["send"]},
                _stage(
                    "infer",
                    "remote",
                    connection="my machine",
                    # What an earlier run has left must not be taken for what this one made.
                    command="rm -f result.csv\npython3 infer.py result.csv",
                    folder="nightly",
                )
                | {"after": ["train"]},
                _stage(
                    "fetch",
                    "download",
                    connection="my machine",
                    path="nightly/result.csv",
                    dataset="scored",
                )
                | {"after": ["infer"], "retries": 2},
            ]
        },
        {},
    ),
    Template(
        "six",
        "clicks every day",
        "Six stages with FuXiCTR",
        "A query fetches rows to learn from, another one those to score. An experiment trains "
        "DeepFM, DCN or DLRM on them, and the scored rows go to a table. Files are kept at a place "
        "on the way.",
        {
            "stages": [
                _stage(
                    "data_fetch",
                    "sql",
                    connection=_HOUSE,
                    sql="SELECT * FROM clicks",
                    dataset="sample",
                ),
                _stage(
                    "infer_fetch",
                    "sql",
                    connection=_HOUSE,
                    sql="SELECT * FROM clicks_today",
                    dataset="to score",
                ),
                _stage(
                    "data_upload",
                    "upload",
                    connection="my place",
                    data="$data_fetch",
                    path="clicks/sample.parquet",
                )
                | {"retries": 2},
                _stage("train", "train", data="$data_upload", experiment="my experiment"),
                _stage("infer", "score", model="$train", data="$infer_fetch", dataset="scored"),
                _stage(
                    "result_download",
                    "upload",
                    connection="my place",
                    data="$infer",
                    path="clicks/result.parquet",
                )
                | {"retries": 2},
                _stage(
                    "hive_upload",
                    "write_back",
                    connection=_HOUSE,
                    data="$result_download",
                    table="predictions",
                ),
            ]
        },
        {"cron": "0 3 * * *", "time_zone": "UTC", "overlap": "skip"},
    ),
)
