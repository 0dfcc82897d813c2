"""What a request for an inference may say, and how its parameters shape the answer. Pure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.engines.named import Parameter, did_you_mean

MOST_ROWS = 1_000  # of one request; a data set takes any number
MOST_CHARACTERS = 1_000_000

_TOP_K = Parameter("top_k", "int", None, "the likeliest classes with their shares", 1, 200)
_CONFIDENCE = Parameter(
    "confidence_threshold", "float", None, "with a smaller share, no class is named", 0, 1
)
_TEMPERATURE = Parameter(
    "temperature", "float", 1.0, "above 1 the shares come closer to each other", 0.01, 100
)
_PROBABILITY = Parameter("probability", "bool", False, "whether all classes' shares are told")
_LENGTH = Parameter("max_length", "int", None, "so many words of each text are read", 1, 100_000)


class Refused(ValueError):
    """``errors`` holds messages by field."""

    def __init__(self, errors: Mapping[str, Sequence[str]]) -> None:
        self.errors = {name: list(messages) for name, messages in errors.items()}
        super().__init__(" ".join(text for texts in self.errors.values() for text in texts))


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows by column; or a data set to predict all rows of, by its name or id; or a picture: in a
    row (from 0) of a data set, or in a file under a storage root."""

    rows: list[dict[str, Any]] | None = None
    dataset: str | None = None
    row: int | None = None
    path: str | None = None


def parameters_for(classes: Sequence[str] | None, texts: bool) -> dict[str, Parameter]:
    """What a model takes: one that names ``classes``, and one that reads free ``texts``."""
    found = [_TOP_K, _CONFIDENCE, _TEMPERATURE, _PROBABILITY] if classes else []
    return {one.name: one for one in [*found, *([_LENGTH] if texts else [])]}


def check_parameters(
    given: Mapping[str, Any], classes: Sequence[str] | None, *, texts: bool
) -> dict[str, Any]:
    """The parameters, in order. Raises Refused for unknown ones and for values out of range."""
    known = parameters_for(classes, texts)
    errors = {}
    for name, value in given.items():
        place = f"parameters.{name[:100]}"
        if name not in known:
            near = did_you_mean(name[:100], list(known))
            takes = ", ".join(known) or "none"
            errors[place] = [f"This model takes no '{name[:100]}'.{near} It takes: {takes}."]
        elif bad := known[name].problem(value):
            errors[place] = [f"{name}: {bad}"]
    if errors:
        raise Refused(errors)
    return {name: known[name].clean(given[name]) for name in sorted(given)}


def read_input(
    given: object, columns: Sequence[Mapping[str, Any]], max_length: int | None = None
) -> Asked:
    """What ``input_data`` means for a model with these columns ({"name", "role"}).

    A row is an object of columns, and several are a list. Text is CSV with a header, or for a model
    with one column the value itself. {"text": …}, {"csv": …} and {"dataset": …} say which it is.
    A picture is base64 text, or {"dataset": …, "row": 7}, or {"image_path": …}.
    """
    names = [str(column["name"]) for column in columns]
    only = names[0] if len(names) == 1 else None
    if any(column.get("role") == "image" for column in columns) and isinstance(given, Mapping):
        dataset, row, path = given.get("dataset"), given.get("row"), given.get("image_path")
        if set(given) == {"dataset", "row"} and isinstance(dataset, str):
            if isinstance(row, bool) or not isinstance(row, int) or row < 0:
                raise _refused("'row' is the number of a row of the data set, from 0.")
            return Asked(dataset=dataset, row=row)
        if set(given) == {"image_path"} and isinstance(path, str):
            return Asked(path=path)
    if isinstance(given, Mapping) and len(given) == 1:
        ((kind, value),) = given.items()
        if kind == "dataset" and "dataset" not in names and isinstance(value, str):
            return Asked(dataset=value)
        if kind in {"csv", "text"} and kind not in names and isinstance(value, str):
            if kind == "text" and only is None:
                raise _refused("This model takes several columns: send a row, or CSV.")
            rows = _csv(value) if kind == "csv" else [{str(only): value}]
            return Asked(_cut(rows, columns, max_length))
    if isinstance(given, str):
        rows = [{only: given}] if only is not None else _csv(given)
    elif isinstance(given, Mapping):
        rows = [dict(given)]
    elif isinstance(given, list):
        if only is not None:
            given = [{only: one} if isinstance(one, str) else one for one in given]
        if not all(isinstance(one, Mapping) for one in given):
            raise _refused("A list holds rows: objects that map column names to values.")
        rows = [dict(one) for one in given]
    else:
        raise _refused("Send a row, a list of rows, CSV text, or {'dataset': its name}.")
    return Asked(_cut(rows, columns, max_length))


def _csv(text: str) -> list[dict[str, Any]]:
    if len(text) > MOST_CHARACTERS:
        raise _refused(f"At most {MOST_CHARACTERS:,} characters; send more as a data set.")
    try:
        reader = csv.DictReader(io.StringIO(text.strip("\r\n")), strict=True)
        rows = list(reader)
    except csv.Error as error:
        raise _refused(f"The text is no CSV: {error}.") from None
    if not rows:
        raise _refused("The CSV needs a line of column names, and a line for each row.")
    if any(None in row or None in row.values() for row in rows):
        raise _refused("Every line of the CSV needs as many values as there are column names.")
    return [{name: value or None for name, value in row.items()} for row in rows]


def _cut(
    rows: list[dict[str, Any]], columns: Sequence[Mapping[str, Any]], max_length: int | None
) -> list[dict[str, Any]]:
    if len(rows) > MOST_ROWS:
        raise _refused(f"At most {MOST_ROWS:,} rows; send more as a data set.")
    if max_length is None:
        return rows
    texts = {column["name"] for column in columns if column.get("role") == "text"}
    return [
        {
            name: " ".join(value.split()[:max_length])
            if name in texts and isinstance(value, str)
            else value
            for name, value in row.items()
        }
        for row in rows
    ]


def _refused(message: str) -> Refused:
    return Refused({"input_data": [message]})


def soften(shares: Sequence[float], temperature: float) -> list[float]:
    """p^(1/T), divided by their sum: as a softmax over logits/T (Guo et al., ICML 2017)."""
    if temperature == 1:
        return list(shares)
    logs = [math.log(max(share, 1e-300)) / temperature for share in shares]
    most = max(logs)
    powers = [math.exp(one - most) for one in logs]
    return [one / sum(powers) for one in powers]


def shape(
    predictions: Sequence[Any],
    probabilities: Sequence[Sequence[float]] | None,
    classes: Sequence[str] | None,
    parameters: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """One answer per row: ``prediction`` (None below the confidence threshold), and of a class its
    ``confidence``, and what else was asked for."""
    if not classes or probabilities is None:
        return [{"prediction": value} for value in predictions]
    answers = []
    for value, given in zip(predictions, probabilities, strict=True):
        shares = soften(given, parameters.get("temperature") or 1.0)
        by_class = sorted(zip(classes, shares, strict=True), key=lambda pair: -pair[1])
        confidence = dict(zip(classes, shares, strict=True)).get(value, by_class[0][1])
        sure = confidence >= (parameters.get("confidence_threshold") or 0.0)
        answer: dict[str, Any] = {"prediction": value if sure else None, "confidence": confidence}
        if top := parameters.get("top_k"):
            answer["top"] = [{"class": name, "probability": p} for name, p in by_class[:top]]
        if parameters.get("probability"):
            answer["probabilities"] = dict(zip(classes, shares, strict=True))
        answers.append(answer)
    return answers
