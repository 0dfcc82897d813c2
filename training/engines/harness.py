"""What surrounds an engine in a node's child: files in, candidates and predictions out.

``train`` and ``predict_file`` are task handlers (see workers/node/handlers.py); ``load_predictor``
is what a model server calls. Runs in the engine's virtualenv; knows no engine by name.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import importlib
import json
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training import splits
from training.engines import apart, export, frame, named, shapley, tables, text
from training.engines.base import Candidate, Data, Engine, Predictions, Predictor, Problem, rows_of
from training.engines.frame import Categories, Frame, Schema
from training.engines.tables import Array, InputError
from workers.node.channel import Channel, WorkError
from workers.node.handlers import ENGINE_NAME, engine_module

MOST_EPOCHS = 200  # in one message
PROGRESS_S = 0.5  # between two progress messages
ROWS_AT_ONCE = 20_000
EXPLAIN_ROWS = 20_000  # predictions that explaining one row may take
EXPLAIN_S = 4.0  # and time; who asks this model meanwhile waits so long
TEXT_SHARE = 0.1  # of the budget, for reading columns of free text, and as much to learn how
Answer = dict[str, Any]


def engine_named(name: str) -> Engine:
    """The engine of a name: ``sklearn-1.4`` is that of ``training/engines/sklearn.py``.

    Raises WorkError for a name that is none.
    """
    if ENGINE_NAME.fullmatch(name):
        module = engine_module(name)
        try:
            found = getattr(importlib.import_module(module), "ENGINE", None)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            found = None
        if isinstance(found, Engine):
            found = copy.copy(found)
            found.name = name  # versions share a file; what they make says which one made it
            return found
    raise WorkError(f"There is no engine called '{name}' here.", code="unknown_engine")


# Training


def train(task: Mapping[str, Any], channel: Channel) -> Answer:
    """Run one engine's part of a training job; see the payload in training/actions.py.

    Resumes: keys in ``task["done"]`` are skipped, ``task["spent_s"]`` is taken off the budget.
    Returns counts; the candidates went out as they came.
    """
    run = HarnessRun(task, channel)
    payload = task["payload"]
    engine = engine_named(task["engine"])
    problem = problem_of(payload)
    if problem.task not in engine.task_types:
        raise WorkError(f"{engine.title} does not do {problem.task} tasks.", code="task_type")
    if problem.model:
        given = problem.hyperparameters
        wrong = named.problems(engine.name, problem.model, problem.task, given)
        if wrong:
            told = " ".join(wrong.values())
            raise WorkError(told, code="hyperparameters", hyperparameters=wrong)
    run.working_on("Reading the data")
    ready = Ready.read(Path(task["inputs"]["data"]), payload, problem, run)
    if int(task.get("attempt") or 1) == 1:
        for column in ready.schema.columns:
            if column.words is not None:
                run.notice(
                    f"Column '{column.name}' is free text. Models see it as "
                    f"{column.words.width} numbers, made from its {len(column.words.terms):,} "
                    "most frequent words and pairs of words (TF-IDF, then singular value "
                    "decomposition), and its length in words.",
                    column=column.name,
                )
        for name, why in ready.schema.left_out.items():
            run.notice(f"Column '{name}' is left out: {why}.", column=name)
        for name, count in ready.misfits.items():
            run.notice(
                f"Column '{name}': {count:,} values do not fit its type and count as missing.",
                column=name,
            )
    count = 0
    for candidate in engine.train(problem, ready.data, run):
        deliver(candidate, engine, problem, ready, payload, run)
        count += 1
    if not count and not run.done:
        raise WorkError(
            "No model could be fitted" + (f": {run.last_notice}" if run.last_notice else "."),
            code="no_candidates",
        )
    run.finish("Stopped" if channel.stopping else "Done")
    return {
        "data": {
            "candidates": count,
            "stopped": bool(channel.stopping),
            "elapsed_s": round(time.monotonic() - run.started, 3),
            "train_rows": len(ready.data.y),
            "held_rows": len(ready.data.held),
        },
        "files": {},
    }


def problem_of(payload: Mapping[str, Any]) -> Problem:
    classes = payload.get("classes")
    return Problem(
        task=payload["task"],
        target=payload["target"],
        metric=payload["metric"],
        classes=tuple(classes) if classes else None,
        positive_class=payload.get("positive_class"),
        seed=int(payload.get("seed") or 0),
        threads=max(1, int(payload.get("threads") or 1)),
        model=str(payload.get("model") or ""),
        hyperparameters=dict(payload.get("hyperparameters") or {}),
    )


class Ready:
    """A job's data, read and split: what the engine gets, and which rows of the file those are."""

    def __init__(
        self,
        schema: Schema,
        data: Data,
        train_rows: Array,
        held_rows: Array,
        misfits: Mapping[str, int],
    ) -> None:
        self.schema, self.data, self.misfits = schema, data, misfits
        self.train_rows, self.held_rows = train_rows, held_rows

    @classmethod
    def read(
        cls, path: Path, payload: Mapping[str, Any], problem: Problem, run: HarnessRun
    ) -> Ready:
        """Raises WorkError when the file does not go with the payload."""
        columns = payload["columns"]
        try:
            by = splits.column_of(payload["split"])
            needed = [problem.target, *([by] if by else [])]
            table = tables.read_file(path, [*(c["name"] for c in columns), *needed])
            for name in needed:
                if name not in table:
                    raise WorkError(f"The data set has no column '{name}'.", code="missing_columns")
            target = tables.as_array(table[problem.target])
            strata = splits.strata_of(target, problem.classes)
            values = tables.as_array(table[by]) if by else None
            rows = rows_of(splits.assign(len(target), payload["split"], strata, values))
            if not len(rows.train):
                raise WorkError("No row is left to train on.", code="no_rows")
            if problem.is_classification and len(np.unique(strata[rows.train])) < 2:
                raise WorkError(
                    f"All rows that train have the same class of '{problem.target}': with this "
                    "split the others lie in the held-out rows. Split in another way.",
                    code="one_class",
                )
            mask = np.zeros(len(target), dtype=bool)
            mask[rows.train] = True
            reads = named.reads(problem.model)
            if reads == "table":
                texts = learn_texts(columns, table, mask, problem, run)
                schema, prepared, misfits = frame.learn(columns, table, mask, texts)
            else:
                schema, prepared, misfits = frame.learn(columns, table, mask, only=reads)
                if not schema.columns:
                    raise WorkError(
                        f"There is no column of role {reads}, which '{problem.model}' learns "
                        "from. Say which one it is as 'column_types'.",
                        code="no_columns",
                    )
        except InputError as error:
            raise WorkError(str(error), code=error.code, columns=error.columns) from error
        except splits.BadSplit as error:
            raise WorkError(str(error), code="split") from error
        if not schema.columns:
            raise WorkError(
                "No column is left to learn from: "
                + "; ".join(f"'{name}': {why}" for name, why in schema.left_out.items()),
                code="no_columns",
            )
        # Only here is the target taken, and only for the rows that train.
        if problem.is_classification:
            y = strata[rows.train].astype(np.int64)
        else:
            y = np.array(target[rows.train], dtype=np.float64)
        groups = splits.groups_for(payload["split"], values, rows.train)
        data = Data(prepared.take(rows.train), y, prepared.take(rows.held), rows.folds, groups)
        return cls(schema, data, rows.train, rows.held, misfits)


def learn_texts(
    columns: Sequence[Mapping[str, str]],
    table: tables.Table,
    rows: Array,
    problem: Problem,
    run: HarnessRun,
) -> dict[str, text.Words | str]:
    """How columns of free text are read, learnt from the training rows; or why one can't be."""
    names = [c["name"] for c in columns if c["role"] == "text" and c["name"] in table]
    if not names:
        return {}
    run.working_on("Reading free text")
    found: dict[str, text.Words | str] = {}
    width = max(4, text.MOST_NUMBERS // len(names))
    share = TEXT_SHARE * run.budget_s / len(names)
    training = np.flatnonzero(rows)

    def work() -> Iterator[tuple[str, text.Words | str]]:
        for name in names:
            texts = frame.texts_of(tables.as_array(table[name]))
            chars = text.chars_for(texts, share)
            if not chars:
                yield name, "it is free text, too long to be read within the time budget"
                continue
            known = [texts[row] for row in training]
            yield name, text.learn(known, chars=chars, width=width, seed=problem.seed)

    try:
        deadline = time.monotonic() + 2 * share * len(names) + 1.0
        found.update(apart.stream(work, deadline=deadline, pulse=run.pulse))
    except (apart.Overrun, apart.Stopped):
        pass
    except apart.Failed as error:
        run.notice(f"Free text could not be read: {error}")
    late = "it is free text, too long to be read within the time budget"
    return {name: found.get(name, late) for name in names}


class HarnessRun:
    """The engine's surroundings (base.Run): clock, progress, notices."""

    def __init__(self, task: Mapping[str, Any], channel: Channel) -> None:
        self.started = time.monotonic()
        self.channel = channel
        self.budget_s = float(task["payload"]["budget_s"])
        self.spent_s = float(task.get("spent_s") or 0.0)
        self.done = frozenset(task.get("done") or ())
        self._checkpoints: dict[str, str] = dict(task.get("checkpoints") or {})
        self.folder = Path.cwd() / "models"
        self.folder.mkdir(exist_ok=True)
        self.sent = 0
        self.last_notice = ""
        self._what = ""
        self._data: dict[str, Any] = {}
        self._fraction = 0.0
        self._said_at = float("-inf")

    def remaining_s(self) -> float:
        return self.budget_s - self.spent_s - (time.monotonic() - self.started)

    def pulse(self) -> bool:
        if time.monotonic() - self._said_at >= PROGRESS_S:
            self._say()
        return self.channel.stopping or self.remaining_s() <= 0

    def working_on(self, what: str, **data: Any) -> None:
        self._what, self._data = what, data
        if "curve" in data:
            self._data = data | {"curve": thinned(data["curve"])}
        if time.monotonic() - self._said_at >= PROGRESS_S:
            self._say()

    def notice(self, message: str, **data: Any) -> None:
        self.last_notice = message
        self.channel.notice(message, **data)

    def checkpoint(self, name: str, to: Path) -> bool:
        """Put there how far an earlier attempt came; False where it left nothing."""
        found = self._checkpoints.get(name)
        if found is None:
            return False
        shutil.copyfile(found, to)
        return True

    def keep(self, name: str, path: Path) -> None:
        """Hand over how far a fit has come, for an attempt on another node to go on from."""
        # The fit may be replacing the file by its next one just now: not every file system has one
        # of the two there at any moment. That next one is handed over soon.
        with contextlib.suppress(FileNotFoundError):
            self.channel.checkpoint(name, str(path.relative_to(Path.cwd())))

    def finish(self, message: str) -> None:
        self._what, self._data, self._fraction = message, {}, 1.0
        self._say()

    def _say(self) -> None:
        used = 1.0 - self.remaining_s() / max(self.budget_s, 1e-9)
        self._fraction = max(self._fraction, min(used, 0.99))
        self._said_at = time.monotonic()
        fraction = round(self._fraction, 4)
        self.channel.progress(fraction, self._what, candidates=self.sent, **self._data)


def deliver(
    candidate: Candidate,
    engine: Engine,
    problem: Problem,
    ready: Ready,
    payload: Mapping[str, Any],
    run: HarnessRun,
) -> None:
    """Write the candidate's artifact and predictions, then hand both over."""
    run.sent += 1
    files = write_files(candidate, engine, problem, ready, payload)
    run.channel.candidate(candidate.key, facts_of(candidate, engine), files)


def facts_of(candidate: Candidate, engine: Engine) -> dict[str, Any]:
    """What the leaderboard is told of a candidate beside its files."""
    return {
        "name": candidate.name,
        "family": candidate.family,
        "engine": engine.name,
        "params": dict(candidate.params),
        "fit_s": round(candidate.fit_s, 4),
        "predict_ms_row": candidate.predict_ms_row,
        "train_rows": candidate.train_rows,
        **({"curve": thinned(candidate.curve)} if candidate.curve else {}),
    }


def thinned(points: Sequence[Any], most: int = MOST_EPOCHS) -> list[Any]:
    """At most so many of the points, evenly, the last among them."""
    step = -(-len(points) // most) or 1
    return list(points[::-1][::step][::-1])


def write_files(
    candidate: Candidate,
    engine: Engine,
    problem: Problem,
    ready: Ready,
    payload: Mapping[str, Any],
) -> dict[str, str]:
    """Write the candidate's artifact and predictions; returns their paths by name."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", candidate.key)
    artifact, predictions = Path(f"{stem}.zip"), Path(f"{stem}.parquet")
    rows, found = ready.held_rows, candidate.held
    if candidate.out_of_fold is not None:
        rows = np.concatenate([ready.train_rows, rows])
        found = joined(candidate.out_of_fold, found)
    write_predictions(predictions, rows, found, problem)
    told = export.schema_json(engine, candidate, problem, ready.schema, payload)
    export.write(
        artifact, candidate.folder, told, engine, Path(splits.__file__), candidate.packages
    )
    return {"artifact": str(artifact), "predictions": str(predictions)}


def joined(first: Predictions, second: Predictions) -> Predictions:
    values = np.concatenate([first.values, second.values])
    if first.probabilities is None or second.probabilities is None:
        return Predictions(values)
    return Predictions(values, np.concatenate([first.probabilities, second.probabilities]))


def write_predictions(path: Path, rows: Array, found: Predictions, problem: Problem) -> None:
    """Parquet: row (index into the data set version), prediction, and p0..pk by class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"row": pa.array(rows.astype(np.int64))}
    columns["prediction"] = pa.array(labels(found, problem.classes))
    if found.probabilities is not None:
        for code in range(found.probabilities.shape[1]):
            columns[f"p{code}"] = pa.array(np.ascontiguousarray(found.probabilities[:, code]))
    pq.write_table(pa.table(columns), path)


def labels(found: Predictions, classes: Sequence[str] | None) -> list[Any]:
    """Class names, or numbers as plain floats."""
    if classes:
        return [classes[int(code)] for code in found.values]
    return [float(value) for value in found.values]


# Predicting


class ServedModel:
    """A loaded artifact. Plain JSON values in and out."""

    def __init__(self, folder: Path) -> None:
        self.told = json.loads((folder / "schema.json").read_text(encoding="utf-8"))
        if self.told["format"] != export.FORMAT:
            raise InputError(
                f"This artifact has format {self.told['format']}; this FlowML reads "
                f"{export.FORMAT}.",
                "bad_artifact",
            )
        self.schema = Schema.from_json(self.told)
        self.classes: list[str] | None = self.told["classes"]
        self.model: Predictor = engine_named(self.told["engine"]).load(folder / "model")
        self._known = {c.name for c in self.schema.columns} | set(self.schema.left_out)
        self._known.add(self.told["target"])

    def predict(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """{"predictions", "probabilities" (rows x classes) or None, "classes" or None}.

        ``columns`` names the values of each row, in any order. Raises WorkError, whose data
        ``columns`` tells what is wrong with which.
        """
        try:
            return self._predict(columns, rows)
        except InputError as error:
            raise WorkError(str(error), code=error.code, columns=error.columns) from error

    def _predict(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        unknown = [name for name in columns if name not in self._known]
        if unknown:
            raise InputError(
                f"The model has no column '{unknown[0]}'.",
                "unknown_columns",
                dict.fromkeys(unknown, "The model has no such column."),
            )
        if any(len(row) != len(columns) for row in rows):
            raise InputError("Every row needs one value per column.", "wrong_type")
        found = self.model.predict(frame.prepare(self.schema, _table(columns, rows)))
        return {
            "predictions": labels(found, self.classes),
            "probabilities": None if found.probabilities is None else found.probabilities.tolist(),
            "classes": self.classes,
        }

    def predict_frame(self, prepared: Frame) -> Predictions:
        return self.model.predict(prepared)

    def explain(
        self,
        columns: Sequence[str],
        row: Sequence[Any],
        background: Sequence[Sequence[Any]],
        *,
        rows: int = EXPLAIN_ROWS,
        seconds: float = EXPLAIN_S,
    ) -> dict[str, Any]:
        """Why it says what it says of ``row``: see shapley.py, by class or of the number.

        What ``predict`` answers of the row, and "explanation": {"base": k, "output": k, "values":
        columns x k, "errors" likewise or None, "exact", "background", "evaluations"}, k being 1 for
        a number. Columns that the model was not given have 0. Raises WorkError as ``predict`` does.
        """
        answer = self.predict(columns, [row])
        try:
            prepared = frame.prepare(self.schema, _table(columns, [row, *background]), strict=False)
        except InputError as error:
            raise WorkError(str(error), code=error.code, columns=error.columns) from error
        used = self.schema.columns

        def ask(masks: Array, others: Array) -> Array:
            """Rows mixed of the first row and the background's, column by column."""
            features = {}
            for place, column in enumerate(used):
                source = np.where(masks[:, place], 0, others + 1)
                for name in column.features:
                    whole = prepared.features[name]
                    taken = whole.take(source) if isinstance(whole, Categories) else whole[source]
                    features[name] = taken
            return self._outputs(self.model.predict(Frame(features, len(masks))))

        found = shapley.explain(ask, len(used), len(background), rows=rows, seconds=seconds)
        places = {column.name: place for place, column in enumerate(used)}
        zeros = [0.0] * len(found.base)

        def by_column(of: Array) -> list[list[float]]:
            return [of[places[name]].tolist() if name in places else zeros for name in columns]

        answer["explanation"] = {
            "base": found.base.tolist(),
            "output": found.output.tolist(),
            "values": by_column(found.values),
            "errors": None if found.errors is None else by_column(found.errors),
            "exact": found.exact,
            "background": found.background,
            "evaluations": found.evaluations,
        }
        return answer

    def _outputs(self, found: Predictions) -> Array:
        """n x k: probabilities, or 1 for the class that was named; n x 1 numbers."""
        if found.probabilities is not None:
            return np.asarray(found.probabilities, dtype=np.float64)
        if self.classes:
            return np.eye(len(self.classes))[np.asarray(found.values, dtype=np.int64)]
        return np.asarray(found.values, dtype=np.float64)[:, None]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    values = zip(*rows, strict=True) if rows else ([] for _ in columns)
    return {name: list(column) for name, column in zip(columns, values, strict=True)}


def load_predictor(folder: str | Path) -> ServedModel:
    """Load an unpacked artifact. Unpickles: the caller has verified where it comes from."""
    return ServedModel(Path(folder))


def predict_file(task: Mapping[str, Any], channel: Channel) -> Answer:
    """Predict every row of a file: inputs "model" (artifact zip) and "data" (Parquet or text).

    Writes predictions.parquet and predictions.csv: the file's own columns, then ``prediction`` and
    ``probability_<class>``. A value of the wrong type ends the work with the column's name.
    """
    folder = Path("model")
    with zipfile.ZipFile(task["inputs"]["model"]) as archive:
        archive.extractall(folder)  # stays inside folder: zipfile drops .. and leading /
    model = load_predictor(folder)
    model.model.threads = max(1, int((task.get("payload") or {}).get("threads") or 1))
    channel.progress(0.05, "Reading the rows")
    try:
        table = tables.read_file(task["inputs"]["data"])
        n_rows = len(next(iter(table.values()))) if table else 0
        parts = list(_predict_parts(model, table, n_rows, channel))
    except InputError as error:
        raise WorkError(str(error), code=error.code, columns=error.columns) from error
    if not n_rows:
        raise WorkError("The file has no rows.", code="bad_file")
    found = parts[0]
    for part in parts[1:]:
        found = joined(found, part)
    channel.progress(0.9, "Writing the predictions")
    names = _write_scored(table, found, model.classes)
    return {"data": {"rows": n_rows, "columns": names}, "files": dict(SCORED_FILES)}


_RISKY = r"^[=+@\t\r-]"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def _defused(table: Any) -> Any:
    """Texts that a spreadsheet would run as formulas, with a quote in front; so column names too.

    The Parquet file beside the CSV has them as they are.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    def mended(column: Any) -> Any:
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return column
        number = pc.match_substring_regex(column, _NUMBER)
        risky = pc.and_(pc.match_substring_regex(column, _RISKY), pc.invert(number))
        if not pc.any(risky).as_py():
            return column
        quote, nothing = (pa.scalar(text, column.type) for text in ("'", ""))
        quoted = pc.binary_join_element_wise(quote, column, nothing)
        return pc.if_else(risky, quoted, column)

    names = [f"'{name}" if re.match(_RISKY, name) else name for name in table.column_names]
    return pa.table([mended(column) for column in table.columns], names=names)


SCORED_FILES = {"parquet": "predictions.parquet", "csv": "predictions.csv"}


def _predict_parts(
    model: ServedModel, table: Mapping[str, Any], n_rows: int, channel: Channel
) -> Iterator[Predictions]:
    """Predictions a slice at a time: the whole matrix of a long file need not fit in memory."""
    for start in range(0, n_rows, ROWS_AT_ONCE):
        if channel.stopping:
            raise WorkError("It was stopped before all rows were predicted.", code="stopped")
        slice_ = {name: column.slice(start, ROWS_AT_ONCE) for name, column in table.items()}
        yield model.predict_frame(frame.prepare(model.schema, slice_))
        done = min(start + ROWS_AT_ONCE, n_rows)
        channel.progress(0.05 + 0.85 * done / n_rows, f"{done:,} of {n_rows:,} rows")


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _write_scored(
    table: Mapping[str, Any], found: Predictions, classes: Sequence[str] | None
) -> list[str]:
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    columns = dict(table)

    def add(name: str, values: Any) -> str:
        while name in columns:
            name += "_"
        columns[name] = pa.array(values)
        return name

    added = [add("prediction", labels(found, classes))]
    if found.probabilities is not None:
        for code, label in enumerate(classes or ()):
            shares = np.ascontiguousarray(found.probabilities[:, code])
            added.append(add(f"probability_{label}", shares))
    scored = pa.table(columns)
    pq.write_table(scored, SCORED_FILES["parquet"])
    shown = [c.name for c in scored.schema if not _is_bytes(c.type)]  # pictures have no CSV form
    scored = _defused(scored.select(shown))
    try:
        pc.write_csv(scored, SCORED_FILES["csv"])
    except pa.ArrowException:  # nested columns and their like have no CSV form
        with open(SCORED_FILES["csv"], "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(scored.column_names)
            for batch in scored.to_batches(max_chunksize=10_000):
                writer.writerows(
                    zip(*(column.to_pylist() for column in batch.columns), strict=True)
                )
    return added
