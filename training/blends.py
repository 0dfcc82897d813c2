"""Ensembles of a job's models: chosen from stored predictions, kept as a candidate of their own.

Runs in control. Memory is bounded: weights are chosen on a part of the rows of a part of the
models, then one model's predictions at a time are added up; files are blended in slices.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from django.db import transaction

from training import ensemble, scoring
from training.evaluation import InvalidCandidate, line_up, loss_of_blend
from training.models import BOARD_ORDER, ENSEMBLE, EnsembleMember, TrainedModel, TrainingJob
from training.scoring import PROBABILITY, Predictions, Truth
from workers.files import store_artifact
from workers.models import Artifact, Task

log = logging.getLogger(__name__)

MOST_MODELS = 24  # of the best, from which an ensemble is chosen
OF_EACH_ENGINE = 3  # of the best of each engine are among them, however they rank
MOST_ROWS = 10_000  # on which weights are chosen
MOST_CELLS = 16_000_000  # models x rows x classes that are held at once: 128 MB
ROWS_AT_ONCE = 100_000  # of a file
_RISKY = r"^[=+@\t\r-]"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Found(NamedTuple):
    """An ensemble, which beats every single model on the rows that rank, or why there is none.

    Both are empty where nothing was to be tried.
    """

    model: TrainedModel | None
    why: str = ""


def make(job: TrainingJob, task: Task) -> Found:
    """Try to blend the job's models into a better one: a scored candidate with its members.

    ``task``, the last that ended, is who the predictions file is stored for. Never raises.
    """
    try:
        with transaction.atomic():
            return _make(job, task)
    except InvalidCandidate as refusal:
        return Found(None, str(refusal))
    except Exception as error:  # whatever it is, the job has models to end with
        log.exception("no ensemble", extra={"job": job.pk})
        return Found(None, f"the platform could not make one ({type(error).__name__})")


def _make(job: TrainingJob, task: Task) -> Found:
    began = time.monotonic()
    scored = job.models.filter(state=TrainedModel.State.SCORED).exclude(engine=ENSEMBLE)
    library = list(
        scored.order_by(*BOARD_ORDER)
        .select_related("artifact", "predictions")
        .defer("curves", "test", "params")
    )
    if len({model.engine for model in library}) < 2:
        return Found(None)  # what blends the models of one engine is that engine's own matter
    truth = scoring.truth_of(job)
    rows = np.linspace(0, len(truth.ranked) - 1, min(MOST_ROWS, len(truth.ranked))).astype(np.int64)
    rows = np.unique(rows)
    width = len(job.classes or ()) or 1
    room = max(2, MOST_CELLS // max(1, len(rows) * width))
    some = _spread(library, min(MOST_MODELS, room))
    models, stack = _stack(job, some, truth, rows)
    if len({model.engine for model in models}) < 2:
        return Found(None, "only one engine's models give probabilities")

    targets = truth.target[truth.ranked][rows]

    def loss_on(places: Ints, blend: Floats) -> float:
        return loss_of_blend(
            job.task,
            targets[places],
            blend,
            metric=job.metric,
            classes=job.classes,
            positive_class=job.positive_class,
        )

    def loss(blend: Floats) -> float:
        return loss_on(np.arange(len(rows)), blend)

    weights = ensemble.select(stack, loss)
    if np.count_nonzero(weights) < 2 or loss(np.tensordot(weights, stack, axes=1)) >= min(
        loss(one) for one in stack
    ):
        return Found(None, f"no blend was better than {models[int(weights.argmax())].name} alone")
    folds = ensemble.folds_of(len(truth.ranked))
    by_fold = ensemble.select_by_fold(stack, loss_on, folds[rows])
    del stack
    blend = _blend_all(job, models, truth, weights, by_fold[folds])
    members = [(models[i], float(weights[i])) for i in np.flatnonzero(weights)]
    return Found(_store(job, task, members, blend, truth, began))


def _spread(library: Sequence[TrainedModel], most: int) -> list[TrainedModel]:
    """The best models in their order, the best few of each engine among them."""
    seen: dict[str, int] = {}
    first: list[TrainedModel] = []
    for model in library:
        seen[model.engine] = seen.get(model.engine, 0) + 1
        if seen[model.engine] <= OF_EACH_ENGINE:
            first.append(model)
    rest = [model for model in library if model not in first]
    kept = {model.pk for model in [*first, *rest][:most]}
    return [model for model in library if model.pk in kept]


def _stack(
    job: TrainingJob, library: Sequence[TrainedModel], truth: Truth, rows: Ints
) -> tuple[list[TrainedModel], Floats]:
    """Those models that can be blended, and what they said of ``rows`` of the ranked ones."""
    models, said = [], []
    for model in library:
        found = said_of(job, model, truth, truth.ranked[rows])
        if found is not None:
            models.append(model)
            said.append(found)
    if not models:
        raise InvalidCandidate("the models give no probabilities")
    return models, np.array(said)


def said_of(
    job: TrainingJob, model: TrainedModel, truth: Truth, rows: Ints, *, part: str = "validation"
) -> Floats | None:
    """A model's stored answer to ``rows``: n x k probabilities, or n x 1 numbers; None for a
    classifier without probabilities."""
    if model.predictions is None:
        return None
    stored = scoring.read_predictions(model.predictions, job, most_rows=len(truth.target))
    if job.classes is not None and stored.probabilities is None:
        return None
    places = line_up(stored.rows, rows, part=part)
    if stored.probabilities is None:
        return np.asarray(stored.values[places], dtype=np.float64)[:, None]
    shares: Floats = stored.probabilities[places]
    sums = shares.sum(axis=1, keepdims=True)
    return np.asarray(shares / sums)


class Blend(NamedTuple):
    """What an ensemble says: of the rows that rank (None for a refit), and of the sealed ones."""

    ranked: Floats | None
    sealed: Floats


def _blend_all(
    job: TrainingJob,
    models: Sequence[TrainedModel],
    truth: Truth,
    weights: Floats,
    by_row: Floats,
) -> Blend:
    """All ranked rows, each with the weights of its fold, and the sealed rows, one model's
    predictions at a time. ``by_row``: a weight per ranked row and model."""
    width = len(job.classes or ()) or 1
    ranked = np.zeros((len(truth.ranked), width))
    sealed = np.zeros((len(truth.sealed), width))
    for i, model in enumerate(models):
        if not weights[i] and not by_row[:, i].any():
            continue
        every = np.concatenate([truth.ranked, truth.sealed])
        said = said_of(job, model, truth, every, part="held-out")
        assert said is not None
        ranked += by_row[:, i : i + 1] * said[: len(truth.ranked)]
        sealed += weights[i] * said[len(truth.ranked) :]
    return Blend(ranked, sealed)


def _store(
    job: TrainingJob,
    task: Task,
    members: Sequence[tuple[TrainedModel, float]],
    blend: Blend,
    truth: Truth,
    began: float,
) -> TrainedModel:
    assert blend.ranked is not None
    predictions = _predictions(job, truth, blend)
    figures = scoring.figures(job, predictions, truth)
    model = TrainedModel.objects.create(
        organization_id=job.organization_id,
        job=job,
        key=ENSEMBLE,
        name=f"Ensemble of {len(members)} models",
        engine=ENSEMBLE,
        family=ENSEMBLE,
        task=task,
        fit_s=time.monotonic() - began,
        predict_ms_row=sum(one.predict_ms_row or 0 for one, _ in members),
        train_rows=max(one.train_rows for one, _ in members),
        predictions=_keep(job, task, predictions),
        **figures,
    )
    _add_members(model, members)
    return model


def refit(
    job: TrainingJob, origin: TrainedModel, task: Task, twins: Mapping[Any, TrainedModel]
) -> TrainedModel:
    """The same ensemble of members that were fitted again. ``twins``: by the member's key.

    Raises InvalidCandidate when what they predicted cannot be read.
    """
    members = [(twins[one.model_id], one.weight) for one in origin.parts()]
    truth = scoring.truth_of(job)
    width = len(job.classes or ()) or 1
    sealed = np.zeros((len(truth.sealed), width))
    for model, weight in members:
        said = said_of(job, model, truth, truth.sealed, part="test")
        if said is None:
            raise InvalidCandidate(f"{model.name} gave no probabilities.")
        sealed += weight * said
    model, made = TrainedModel.objects.get_or_create(
        job=job,
        key=f"{ENSEMBLE}:refit",
        defaults={
            "organization_id": job.organization_id,
            "origin": origin,
            "task": task,
            "name": f"{origin.name}, refitted",
            "family": ENSEMBLE,
            "engine": ENSEMBLE,
            "fit_s": sum(one.fit_s for one, _ in members),
            "predict_ms_row": sum(one.predict_ms_row or 0 for one, _ in members),
            "train_rows": max(one.train_rows for one, _ in members),
            "predictions": _keep(job, task, _predictions(job, truth, Blend(None, sealed))),
            "state": TrainedModel.State.REFITTED,
        },
    )
    if made:
        _add_members(model, members)
    return model


def _add_members(model: TrainedModel, members: Sequence[tuple[TrainedModel, float]]) -> None:
    EnsembleMember.objects.bulk_create(
        EnsembleMember(ensemble=model, model=one, weight=min(1.0, weight))
        for one, weight in members
    )


def _predictions(job: TrainingJob, truth: Truth, blend: Blend) -> Predictions:
    ranked = [] if blend.ranked is None else [(truth.ranked, blend.ranked)]
    parts = [*ranked, (truth.sealed, blend.sealed)]
    rows = np.concatenate([rows for rows, _ in parts])
    said = np.concatenate([said for _, said in parts])
    if job.classes is None:
        return Predictions(rows, said[:, 0], None)
    names = np.array(job.classes, dtype=object)
    return Predictions(rows, names[ensemble.decide(said)], said)


def _keep(job: TrainingJob, task: Task, predictions: Predictions) -> Artifact:
    """The predictions as a file, like those that nodes send."""
    import polars as pl

    columns: dict[str, Any] = {"row": predictions.rows, "prediction": list(predictions.values)}
    if predictions.probabilities is not None:
        for code, shares in enumerate(predictions.probabilities.T):
            columns[PROBABILITY.format(code)] = np.ascontiguousarray(shares)
    file = io.BytesIO()
    pl.DataFrame(columns).write_parquet(file)
    file.seek(0)
    return store_artifact(job.organization, "ensemble predictions", file, task=task)


# A file of rows ----------------------------------------------------------------------------------


class Part(NamedTuple):
    """What one member made of a file: its Parquet, the columns it added there, its weight."""

    file: Artifact
    added: Sequence[str]
    weight: float


def blend_files(parts: Sequence[Part], classes: Sequence[str] | None, folder: Path) -> int:
    """Blend what members made of one file into predictions.parquet and .csv in ``folder``.

    Returns the number of rows. Raises ValueError when the files do not go together.
    """
    import polars as pl

    width = 1 + len(classes or ())
    if any(len(part.added) != width for part in parts):
        raise ValueError("A model of the ensemble gave no probabilities for these rows.")
    frames = [pl.scan_parquet(scoring.source_of(part.file)) for part in parts]
    n_rows = {int(frame.select(pl.len()).collect().item()) for frame in frames}
    if len(n_rows) != 1:
        raise ValueError("The members of the ensemble read different numbers of rows.")
    rows = n_rows.pop()
    pieces = []
    with (folder / "predictions.csv").open("wb") as csv:
        for start in range(0, rows, ROWS_AT_ONCE):
            piece = _blend_slice(frames, parts, classes, start)
            pieces.append(folder / f"piece-{start:012}.parquet")
            piece.write_parquet(pieces[-1])
            _defused(piece).write_csv(csv, include_header=start == 0)
    pl.scan_parquet(pieces).sink_parquet(folder / "predictions.parquet")
    for done in pieces:
        done.unlink()
    return rows


def _blend_slice(
    frames: Sequence[Any], parts: Sequence[Part], classes: Sequence[str] | None, start: int
) -> Any:
    import polars as pl

    said = []
    for frame, part in zip(frames, parts, strict=True):
        answers = frame.select(list(part.added)).slice(start, ROWS_AT_ONCE).collect()
        shares = answers.select(list(part.added)[1:]).to_numpy() if classes else None
        said.append(ensemble.Said(answers[part.added[0]].to_numpy(), shares))
    found = ensemble.blend(said, [part.weight for part in parts], classes)
    table = frames[0].slice(start, ROWS_AT_ONCE).collect()
    columns = [pl.Series(parts[0].added[0], found.predictions)]
    if classes is not None:
        shares = np.asarray(found.probabilities)
        columns += [
            pl.Series(name, np.ascontiguousarray(shares[:, code]))
            for code, name in enumerate(parts[0].added[1:])
        ]
    return table.with_columns(columns)


def _defused(table: Any) -> Any:
    """Texts that a spreadsheet would run as formulas, with a quote in front; so column names too.

    And what CSV cannot hold as text. The Parquet file beside it has all as it is.
    """
    import polars as pl

    def mended(name: str) -> Any:
        text = pl.col(name)
        risky = text.str.contains(_RISKY) & ~text.str.contains(_NUMBER)
        return pl.when(risky).then(pl.lit("'") + text).otherwise(text).alias(name)

    nested = [name for name, dtype in table.schema.items() if dtype.is_nested()]
    plain = table.with_columns(
        pl.Series(name, [None if one is None else str(one) for one in table[name].to_list()])
        for name in nested
    )
    texts = [name for name, dtype in plain.schema.items() if dtype == pl.String]
    safe = plain.with_columns(mended(name) for name in texts)
    names = {name: f"'{name}" for name in safe.columns if name and name[0] in "=+@\t\r-"}
    return safe.rename(names)
