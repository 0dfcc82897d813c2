"""Rows as the tensors of the Open Inference Protocol, and back. Pure.

The protocol: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.rows import MOST_ROWS

INTEGERS = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
FLOATS = {"FP16", "FP32", "FP64"}
DATATYPES = {"BOOL", "BYTES"} | INTEGERS | FLOATS
NUMBERS = {"integer", "float"}
OF_COLUMN = {"integer": "INT64", "float": "FP64", "boolean": "BOOL"}  # dates and texts are BYTES
PREDICTIONS, PROBABILITIES, CLASSES = "predictions", "probabilities", "classes"


class BadTensors(ValueError):
    """They do not make rows. The text says which tensor, and why."""


def inputs_of(schema: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tensors that a model with these columns takes, as its metadata tells: one per column."""
    return [
        {
            "name": str(column["name"]),
            "datatype": OF_COLUMN.get(str(column["dtype"]), "BYTES"),
            "shape": [-1],
        }
        for column in schema
    ]


def outputs_of(classes: Sequence[Any] | None) -> list[dict[str, Any]]:
    """The tensors that it gives: of classes also how likely each is, and which they are."""
    if not classes:
        return [{"name": PREDICTIONS, "datatype": "FP64", "shape": [-1]}]
    return [
        {"name": PREDICTIONS, "datatype": "BYTES", "shape": [-1]},
        {"name": PROBABILITIES, "datatype": "FP64", "shape": [-1, len(classes)]},
        {"name": CLASSES, "datatype": "BYTES", "shape": [len(classes)]},
    ]


def rows_of(schema: Sequence[Mapping[str, Any]], request: object) -> list[dict[str, Any]]:
    """The rows of an inference request, as objects by column. Raises BadTensors.

    There is a tensor for each column, of shape [rows] or [rows, 1], or where all columns are
    numbers one of shape [rows, columns], whatever it is called. Data may be flat or nested, null
    stands for a missing value. Values are checked against the tensor's datatype, not the schema.
    """
    if not isinstance(request, Mapping) or not isinstance(request.get("inputs"), list):
        raise BadTensors('Send {"inputs": [{"name", "shape", "datatype", "data"}, ...]}.')
    tensors = [_read(one, place) for place, one in enumerate(request["inputs"])]
    if not tensors:
        raise BadTensors("There are no inputs.")
    names = [str(column["name"]) for column in schema]
    if len(tensors) == 1 and len(tensors[0][1]) == 2 and tensors[0][1][1] == len(names):
        name, shape, values = tensors[0]
        if name not in names or len(names) > 1:
            return _table(schema, names, shape, values, name)
    columns: dict[str, list[Any]] = {}
    for name, shape, values in tensors:
        if len(shape) > 2 or shape[1:] not in ([], [1]):
            raise BadTensors(
                f"Input '{name}': its shape is {shape}, not [rows] or [rows, 1]. One tensor for "
                f"all columns has the shape [rows, {len(names)}]."
            )
        if name in columns:
            raise BadTensors(f"Input '{name}' comes twice.")
        columns[name] = values
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
        raise BadTensors(f"Inputs have different numbers of rows: {told[:500]}.")
    count = next(iter(sizes.values()))
    return [{name: values[row] for name, values in columns.items()} for row in range(count)]


def _table(
    schema: Sequence[Mapping[str, Any]],
    names: list[str],
    shape: list[int],
    values: list[Any],
    name: str,
) -> list[dict[str, Any]]:
    other = [str(column["name"]) for column in schema if column["dtype"] not in NUMBERS]
    if other:
        raise BadTensors(
            f"Input '{name}': one tensor can't hold all columns, for '{other[0]}' is no number. "
            "Send a tensor for each column."
        )
    rows, width = shape
    return [
        dict(zip(names, values[row * width : (row + 1) * width], strict=True))
        for row in range(rows)
    ]


def _read(tensor: object, place: int) -> tuple[str, list[int], list[Any]]:
    """A tensor's name, shape and flat data."""
    if not isinstance(tensor, Mapping):
        raise BadTensors(f"inputs[{place}] is no object.")
    name, shape, datatype = tensor.get("name"), tensor.get("shape"), tensor.get("datatype")
    if not isinstance(name, str) or not name:
        raise BadTensors(f"inputs[{place}] has no name.")
    what = f"Input '{name[:100]}'"
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 2
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise BadTensors(f"{what}: its shape is one or two whole numbers, as [rows].")
    if shape[0] > MOST_ROWS:
        raise BadTensors(
            f"{what}: {shape[0]:,} rows are more than one request takes: {MOST_ROWS:,}."
        )
    if datatype not in DATATYPES:
        raise BadTensors(f"{what}: there is no datatype {str(datatype)[:40]!r}.")
    if not isinstance(tensor.get("data"), list):
        raise BadTensors(f"{what}: its data is a list. Binary data is not taken.")
    values: list[Any] = []
    for one in tensor["data"]:
        if isinstance(one, list):
            values += one
        else:
            values.append(one)
    size = shape[0] * (shape[1] if len(shape) == 2 else 1)
    if len(values) != size:
        raise BadTensors(f"{what}: its shape {shape} takes {size} values, and {len(values)} came.")
    for at, value in enumerate(values):
        if not _is(value, str(datatype)):
            raise BadTensors(f"{what}: value {at}, {str(value)[:60]!r}, is no {datatype}.")
    return name, shape, values


def _is(value: object, datatype: str) -> bool:
    if value is None:
        return True
    if datatype == "BOOL":
        return isinstance(value, bool)
    if datatype == "BYTES":
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    if datatype in INTEGERS:
        return isinstance(value, int) and (value >= 0 or not datatype.startswith("U"))
    return isinstance(value, int | float)


def outputs_for(request: Mapping[str, Any], answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The output tensors of an answer (predictions, probabilities by class, classes), all or those
    that the request names. Raises BadTensors for one that there isn't."""
    predictions = answer["predictions"]
    there = {
        PREDICTIONS: {
            "name": PREDICTIONS,
            "shape": [len(predictions)],
            "datatype": _datatype(predictions),
            "data": predictions,
        }
    }
    shares, classes = answer.get("probabilities"), answer.get("classes")
    if shares is not None and classes is not None:
        there[PROBABILITIES] = {
            "name": PROBABILITIES,
            "shape": [len(shares), len(classes)],
            "datatype": "FP64",
            "data": [row[name] for row in shares for name in classes],
        }
        there[CLASSES] = {
            "name": CLASSES, "shape": [len(classes)], "datatype": "BYTES", "data": list(classes)
        }  # fmt: skip
    wanted = request.get("outputs")
    if not wanted:
        return list(there.values())
    names = [
        str(one.get("name")) if isinstance(one, Mapping) else ""
        for one in (wanted if isinstance(wanted, list) else [wanted])
    ]
    for name in names:
        if name not in there:
            told = ", ".join(there)
            raise BadTensors(f"There is no output {name[:100]!r}: there are {told}.")
    return [there[name] for name in dict.fromkeys(names)]


def _datatype(predictions: Sequence[Any]) -> str:
    if all(isinstance(one, bool) for one in predictions):
        return "BOOL"
    if all(isinstance(one, str) for one in predictions):
        return "BYTES"
    return "FP64"
