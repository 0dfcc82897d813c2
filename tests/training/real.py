"""Data sets whose statistics are the real ones, dates included."""

import datetime as dt
from typing import Any

import polars as pl

from datasets.models import DatasetVersion
from datasets.profile import profile
from organizations.models import Membership
from tests.training import make

DTYPES = {pl.String: "string", pl.Boolean: "boolean", pl.Date: "date"}


def dtype_of(series: pl.Series) -> str:
    if series.dtype.is_integer():
        return "integer"
    if isinstance(series.dtype, pl.Datetime):
        return "datetime"
    return DTYPES.get(type(series.dtype), "float")


def version(by: Membership, table: pl.DataFrame, name: str = "visits") -> DatasetVersion:
    """A data set with one ready version of ``table``, described as an ingest would."""
    made = make.version(by, table.select(pl.int_range(pl.len()).alias("row")), name=name)
    assert made.data is not None
    table.write_parquet(made.data.file.path)
    columns = [(series.name, dtype_of(series)) for series in table]
    made.columns = profile(lambda names: table.select(names), columns, len(table))
    made.column_count = table.width
    made.save(update_fields=["columns", "column_count"])
    return made


def days(numbers: Any) -> list[dt.date]:
    return [dt.date(2024, 1, 1) + dt.timedelta(days=int(number)) for number in numbers]
