"""From a candidate's stored files to a row of the leaderboard. Runs in control only.

Polars is imported inside functions: control's parent process forks, and Polars must not have
started its threads there.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from training import splits
from training.evaluation import METRICS, Evaluation, InvalidCandidate, evaluate, line_up
from training.models import TrainedModel, TrainingJob
from workers.models import Artifact

MOST_JOBS_KEPT = 8
MOST_COLUMNS = 200  # that are looked at one by one
PROBABILITY = "p{}"  # the name of a class's column in a predictions file


@dataclass(frozen=True, slots=True)
class Truth:
    """A job's rows that count: which rank, are sealed, train; and every row's true target."""

    ranked: npt.NDArray[np.int64]
    sealed: npt.NDArray[np.int64]
    training: npt.NDArray[np.int64]
    target: npt.NDArray[Any]  # class codes or numbers, one per row of the table


_kept: OrderedDict[UUID, Truth] = OrderedDict()


def truth_of(job: TrainingJob) -> Truth:
    """The job's truth, kept for the candidates that follow.

    Raises InvalidCandidate when the data set is gone.
    """
    if job.pk in _kept:
        _kept.move_to_end(job.pk)
        return _kept[job.pk]
    version = job.dataset_version
    if version is None or version.data is None:
        raise InvalidCandidate("The data set is gone, so nothing can be scored with it any more.")
    import polars as pl

    by = splits.column_of(job.split)
    wanted = [job.target, *([by] if by else [])]
    table = pl.read_parquet(source_of(version.data), columns=wanted)
    values = table[job.target]
    strata = splits.strata_of(values.to_numpy(), job.classes)
    try:
        cut_by = table[by].to_numpy() if by else None
        parts = splits.assign(len(values), job.split, strata, cut_by)
    except splits.BadSplit as error:
        raise InvalidCandidate(f"The rows cannot be split as asked. {error}") from error
    target = strata if job.classes else values.cast(pl.Float64).to_numpy()
    truth = Truth(
        splits.ranked_rows(parts), splits.sealed_rows(parts), splits.training_rows(parts), target
    )
    _kept[job.pk] = truth
    if len(_kept) > MOST_JOBS_KEPT:
        _kept.popitem(last=False)
    return truth


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a candidate said of the rows in ``rows`` (row indices of the table)."""

    rows: npt.NDArray[np.int64]
    values: npt.NDArray[Any]
    probabilities: npt.NDArray[np.float64] | None


def read_predictions(artifact: Artifact, job: TrainingJob, *, most_rows: int) -> Predictions:
    """Read a predictions file, after its schema and length were looked at.

    A Parquet file of a few bytes can decode to any size, so nothing is read before the number of
    rows is known to be at most ``most_rows``. Raises InvalidCandidate for a file that is not right.
    """
    import polars as pl

    shares = [PROBABILITY.format(code) for code in range(len(job.classes or ()))]
    try:
        source = source_of(artifact)
        stored = set(pl.read_parquet_schema(source))
        if absent := sorted({"row", "prediction"} - stored):
            raise InvalidCandidate(f"The predictions file has no column '{absent[0]}'.")
        length = int(pl.scan_parquet(source).select(pl.len()).collect().item())
        if length > most_rows:
            raise InvalidCandidate(
                f"The predictions file has {length:,} rows; the table has {most_rows:,}."
            )
        wanted = ["row", "prediction", *(shares if stored.issuperset(shares) else [])]
        table = pl.read_parquet(source, columns=wanted)
        if table["row"].null_count() or not table["row"].dtype.is_integer():
            raise InvalidCandidate("The predictions file does not name a row in each line.")
        probabilities = None
        if shares and len(wanted) > 2:
            probabilities = table.select(
                pl.col(shares).cast(pl.Float64).fill_null(float("nan"))
            ).to_numpy()
        return Predictions(
            table["row"].cast(pl.Int64).to_numpy(), table["prediction"].to_numpy(), probabilities
        )
    except InvalidCandidate:
        raise
    except (
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,  # no Exception: what a file can do to Polars at its worst
        OSError,
        ValueError,
    ) as error:
        raise InvalidCandidate(f"The predictions file cannot be read: {error}"[:300]) from error


def evaluate_part(
    job: TrainingJob, predictions: Predictions, truth: Truth, *, sealed: bool = False
) -> Evaluation:
    """Score the rows that rank, or the sealed test rows. Raises InvalidCandidate."""
    rows = truth.sealed if sealed else truth.ranked
    places = line_up(predictions.rows, rows, part="test" if sealed else "validation")
    shares = predictions.probabilities
    return evaluate(
        job.task,
        truth.target[rows],
        predictions.values[places],
        None if shares is None else shares[places],
        metric=job.metric,
        classes=job.classes,
        positive_class=job.positive_class,
        seed=job.seed,
    )


def figures(job: TrainingJob, predictions: Predictions, truth: Truth) -> dict[str, Any]:
    """The fields of a scored TrainedModel that its predictions give. Raises InvalidCandidate."""
    check_complete(predictions, truth)
    found = evaluate_part(job, predictions, truth)
    low, high = found.interval or (None, None)
    loss = found.metrics.get("log_loss")
    return {
        "state": TrainedModel.State.SCORED,
        "metrics": found.metrics,
        "score": found.score,
        "order_score": -found.score if METRICS[job.metric].greater_is_better else found.score,
        # A model that gives no probabilities comes behind those that do.
        "tie_score": math.inf if loss is None else loss,
        "interval_low": low,
        "interval_high": high,
        "scored_rows": found.rows,
        "curves": found.curves,
        "reason": " ".join(found.notes),
    }


def columns_of(
    job: TrainingJob, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The job's features in ``rows``, by name, one read after the other; free text is left out."""
    version = job.dataset_version
    assert version is not None
    assert version.data is not None
    import polars as pl

    source = source_of(version.data)
    for column in [one for one in job.columns if one["role"] != "text"][:MOST_COLUMNS]:
        values = pl.read_parquet(source, columns=[column["name"]])[column["name"]].gather(rows)
        if values.dtype.is_temporal():
            values = values.to_physical()
        yield column["name"], values.to_numpy()


def values_of(job: TrainingJob, rows: npt.NDArray[np.int64]) -> list[list[Any]]:
    """The job's features in ``rows`` (ascending), in its columns' order, as JSON has them.

    Raises InvalidCandidate when the file can't be read.
    """
    version = job.dataset_version
    assert version is not None
    assert version.data is not None
    import polars as pl
    import polars.selectors as cs

    names = [str(column["name"]) for column in job.columns]
    place = "__row"
    while place in names:
        place += "_"
    scan = pl.scan_parquet(source_of(version.data)).select(names).with_row_index(place)
    try:
        table = scan.filter(pl.col(place).is_in(rows.tolist())).drop(place).collect()
        plain = table.with_columns(
            cs.temporal().cast(pl.String), cs.decimal().cast(pl.Float64), cs.float().fill_nan(None)
        )
    except pl.exceptions.PolarsError as error:
        raise InvalidCandidate(f"The data set cannot be read: {error}"[:300]) from error
    return [
        [None if isinstance(one, float) and not math.isfinite(one) else one for one in row]
        for row in plain.rows()
    ]


def check_complete(predictions: Predictions, truth: Truth) -> None:
    """Raise InvalidCandidate unless every row that ranks and every sealed one was predicted."""
    line_up(predictions.rows, truth.ranked, part="validation")
    line_up(predictions.rows, truth.sealed, part="test")


def source_of(artifact: Artifact) -> str | bytes:
    """A path where the storage has one, so that Polars reads only the columns it needs."""
    try:
        return artifact.file.path
    except NotImplementedError:
        with artifact.file.storage.open(str(artifact.file.name), "rb") as stored:
            return bytes(stored.read())
