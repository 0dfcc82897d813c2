"""What a table says against training on it, before anybody has waited for a model: the handler of
``training.check``.

Runs on a node, in its own virtualenv (Polars, NumPy), with no engine. Reads one column at a time,
each once. Of long tables a sample is measured, and every figure says so; rows that are alike are
looked for among all. The sealed rows take no part in any measure, as in all that comes before the
winner.

Imports no Django.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from training import leaks, splits
from workers.node.channel import WorkError

Array = npt.NDArray[Any]

SAMPLE_ROWS = 50_000
SAMPLE_CELLS = 5_000_000  # of wide tables fewer rows are measured
LEAST_SAMPLE = 2_000
PATIENCE_S = 60.0  # columns that are not reached by then are named as such
MOST_NAMED = 12  # columns in one sentence

# A single column that does this well on rows it was not fitted on is rarely honest. Iris' best
# column reaches 0.94 of what is possible, the breast cancer table's an AUC of 0.975.
SEVERE = {"binary": 0.995, "multiclass": 0.99, "regression": 0.995}
SUSPECT = {"binary": 0.98, "multiclass": 0.97, "regression": 0.97}
ENOUGH_TO_BE_SURE = 100  # measured rows below which a leak is a warning only
DRIFT = {"binary": 0.6, "multiclass": 0.1, "regression": 0.1}

FEW_ROWS = 200
FEW_OF_A_CLASS = 20
RARE, UNEVEN = 0.01, 0.1  # share of the smallest class
GROUP_NAME = re.compile(
    r"(^|[\W_])(id|ids|uuid|guid|key|nr|no|number|patient|customer|client|user|subject|person|"
    r"account|household|session|device|machine|sensor|vehicle|store|shop|school|student|case|"
    r"member|group)$|[a-z0-9](Id|ID|UUID)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know before training. ``remedy`` is what one click would change of the request:
    ``{"exclude": [columns]}`` or ``{"split": {...}}``."""

    severity: str  # severe | warning | info
    code: str
    columns: list[str]
    message: str
    advice: str
    figures: dict[str, float | str] = field(default_factory=dict)
    remedy: dict[str, Any] | None = None


def run(task: Mapping[str, Any], channel: Any) -> dict[str, Any]:
    """Check ``inputs["data"]`` (Parquet) for the payload that training/findings.py makes.

    Returns ``findings`` (dicts of Finding, gravest first), ``rows``, ``sample`` and ``seconds``.
    """
    began = time.monotonic()
    payload = task["payload"]
    table = Table(Path(task["inputs"]["data"]))

    def tell(share: float) -> None:
        channel.progress(share, "Looking at the columns")

    try:
        check = Check(table, payload, tell)
        found = check.run()
    except splits.BadSplit as error:
        raise WorkError(str(error), code="split") from error
    order = {"severe": 0, "warning": 1, "info": 2}
    found.sort(key=lambda one: order[one.severity])
    return {
        "data": {
            "findings": [asdict(one) for one in found],
            "rows": table.rows,
            "sample": len(check.sample),
            "seconds": round(time.monotonic() - began, 3),
        },
        "files": {},
    }


class Table:
    """A Parquet file, column by column."""

    def __init__(self, path: Path) -> None:
        self.scan = pl.scan_parquet(path)
        self.names = set(self.scan.collect_schema().names())
        self.rows = int(self.scan.select(pl.len()).collect().item())

    def column(self, name: str) -> pl.Series:
        """Raises WorkError when there is none of that name."""
        if name not in self.names:
            raise WorkError(f"The data set has no column '{name}'.", code="missing_columns")
        return self.scan.select(name).collect().to_series()

    def hashes(self, name: str) -> Array:
        """One number per row, the same for the same value; the values are not kept in memory."""
        found = self.scan.select(pl.col(name).hash(0)).collect(engine="streaming")
        return found.to_series().to_numpy()


class Check:
    def __init__(
        self, table: Table, payload: Mapping[str, Any], tell: Callable[[float], None]
    ) -> None:
        self.table, self.tell = table, tell
        self.target, self.task = str(payload["target"]), str(payload["task"])
        self.classes: list[str] | None = payload.get("classes") or None
        self.split: dict[str, Any] = dict(payload["split"])
        self.columns: list[dict[str, Any]] = [dict(column) for column in payload["columns"]]
        values = table.column(self.target)
        self.target_hash = values.hash(0).to_numpy()
        self.strata = splits.strata_of(values.to_numpy(), self.classes)
        by = splits.column_of(self.split)
        cut_by = table.column(by).to_numpy() if by else None
        self.parts = splits.assign(table.rows, self.split, self.strata, cut_by)
        open_rows = np.flatnonzero((self.parts != splits.NO_PART) & (self.parts != splits.TEST))
        most = max(LEAST_SAMPLE, min(SAMPLE_ROWS, SAMPLE_CELLS // max(1, len(self.columns))))
        self.sample = _some(open_rows, most, int(self.split.get("seed") or 0))
        self.of_all = len(open_rows)
        if self.classes:
            self.y: Array = self.strata[self.sample].astype(np.int64)
        else:
            numbers = values.gather(self.sample).cast(pl.Float64).to_numpy()
            self.y = leaks.ranks(numbers.astype(np.float64))
        self.found: list[Finding] = []

    def run(self) -> list[Finding]:
        self._target()
        self._rows_and_classes()
        self._columns_at_a_glance()
        self._measure()
        return self.found

    def add(
        self,
        severity: str,
        code: str,
        columns: Sequence[str],
        message: str,
        advice: str,
        *,
        remedy: dict[str, Any] | None = None,
        **figures: float | str,
    ) -> None:
        self.found.append(
            Finding(severity, code, list(columns), message, advice, dict(figures), remedy)
        )

    # The target and the rows

    def _target(self) -> None:
        missing = int((self.strata < 0).sum())
        share = missing / max(1, self.table.rows)
        if share >= 0.5:
            self.add(
                "warning", "target_missing", [self.target],
                f"'{self.target}' is missing in {missing:,} of {self.table.rows:,} rows "
                f"({share:.0%}). Only the others are learnt from.",
                "Make sure that the rows with a value are like those that will be predicted.",
                missing=missing, share=round(share, 4),
            )  # fmt: skip

    def _rows_and_classes(self) -> None:
        rows = int((self.strata >= 0).sum())
        if rows < FEW_ROWS:
            self.add(
                "warning", "few_rows", [],
                f"Only {rows:,} rows have a target: scores will be rough, with wide intervals.",
                "Collect more rows if you can, and look at the intervals before you choose.",
                rows=rows,
            )  # fmt: skip
        features = sum(1 for column in self.columns if column["role"] not in LEFT_OUT)
        if rows < features:
            self.add(
                "warning", "more_columns_than_rows", [],
                f"There are more columns ({features:,}) than rows with a target ({rows:,}): "
                "chance alone will fit them.",
                "Leave out columns that can't matter.",
                rows=rows, features=features,
            )  # fmt: skip
        if not self.classes:
            return
        counts = np.bincount(self.strata[self.strata >= 0], minlength=len(self.classes))
        least = int(np.argmin(counts))
        share = counts[least] / max(1, rows)
        few = [name for name, n in zip(self.classes, counts, strict=True) if n < FEW_OF_A_CLASS]
        if few:
            self.add(
                "warning", "few_rows_of_a_class", [self.target],
                f"{len(few)} of {len(self.classes)} classes have fewer than {FEW_OF_A_CLASS} rows: "
                f"{_listed(few)}.",
                "Add rows of these classes, or merge them.",
                smallest=int(counts[least]),
            )  # fmt: skip
        if share < UNEVEN and share * len(self.classes) < 0.5:
            rare = bool(share < RARE)
            self.add(
                "warning" if rare else "info", "imbalance", [self.target],
                f"'{self.classes[least]}' is the rarest class of '{self.target}': "
                f"{counts[least]:,} of {rows:,} rows ({_percent(share)}).",
                "Do not rank by accuracy, which a model that never says it wins: "
                + (
                    "average precision or ROC AUC tell more."
                    if self.task == "binary"
                    else "log loss or macro F1 tell more."
                ),
                smallest=int(counts[least]), share=round(float(share), 6),
            )  # fmt: skip
        self._classes_by_part(counts)

    def _classes_by_part(self, counts: Array) -> None:
        """Classes that the split leaves to one part alone, as time and groups may."""
        assert self.classes is not None
        if self.split.get("kind", "random") == "random":
            return
        learn = (self.parts == splits.TRAIN) | (self.parts > 0)
        parts = {
            "train": learn,
            "rank": (self.parts == splits.VALIDATION) | (self.parts > 0),
            "seal": self.parts == splits.TEST,
        }
        for name, rows in parts.items():
            there = np.bincount(self.strata[rows], minlength=len(self.classes)) if rows.any() else 0
            gone = [c for c, n, all_ in zip(self.classes, np.broadcast_to(there, counts.shape),
                                            counts, strict=True) if all_ and not n]  # fmt: skip
            if not gone or (name == "seal" and not rows.any()):
                continue
            what = {
                "train": "No training row has",
                "rank": "No row that ranks has",
                "seal": "No sealed row has",
            }[name]
            severe = name == "train" or (name == "rank" and len(self.classes) - len(gone) < 2)
            self.add(
                "severe" if severe else "warning", "class_missing_from_part",
                [str(self.split["column"])],
                f"{what} the class {_listed(gone)} of '{self.target}', as the rows are split by "
                f"'{self.split['column']}'.",
                "Split by another column or at random, or give the part a larger share.",
                part=name, classes=len(gone),
                remedy={"split": {"kind": "random"}},
            )  # fmt: skip

    # What the statistics tell already

    def _columns_at_a_glance(self) -> None:
        by_role: dict[str, list[str]] = {}
        for column in self.columns:
            by_role.setdefault(column["role"], []).append(column["name"])
        if names := by_role.get("constant"):
            self.add(
                "info", "constant", names,
                f"{_listed(names)}: one value in every row, or none. Left out by "
                f"{'itself' if len(names) == 1 else 'themselves'}.",
                "Nothing to do.",
            )  # fmt: skip
        if names := by_role.get("identifier"):
            self.add(
                "info", "identifier", names,
                f"{_listed(names)}: looks like an identifier, nearly every row has its own value. "
                "Left out by itself.",
                "If it is a real quantity, name it in column_types.",
            )  # fmt: skip
        for column in self.columns:
            rows = max(1, self.table.rows)
            there = rows - int(column.get("missing") or 0)
            distinct = int(column.get("distinct") or 0)
            if column["role"] == "categorical" and there >= 100 and distinct > 0.5 * there:
                self.add(
                    "warning", "identifier_like", [column["name"]],
                    f"'{column['name']}' has {distinct:,} different values in {there:,} rows: "
                    "models would learn rows by heart.",
                    "Leave it out, or make a coarser column of it.",
                    distinct=distinct,
                    remedy={"exclude": [column["name"]]},
                )  # fmt: skip
        mostly = [
            column["name"]
            for column in self.columns
            if column["role"] not in LEFT_OUT
            and int(column.get("missing") or 0) >= 0.95 * max(1, self.table.rows)
        ]
        if mostly:
            self.add(
                "info", "mostly_missing", mostly,
                f"{_listed(mostly)}: missing in 95% of the rows or more.",
                "Leave out what says no more by being there than by being missing.",
                remedy={"exclude": mostly},
            )  # fmt: skip

    # What takes a look at the values

    def _measure(self) -> None:
        """One pass over the columns: how well each predicts alone, and a hash of each row."""
        began = time.monotonic()
        hashes = np.zeros(self.table.rows, dtype=np.uint64)
        folds = list(self._folds())
        coarse = 0.0  # log of how many different rows there could be
        unseen: list[str] = []
        copies = True  # whether rows can be alike
        for number, column in enumerate(self.columns):
            self.tell(number / len(self.columns))
            name, role = column["name"], column["role"]
            if role in LEFT_OUT:
                continue
            if time.monotonic() - began > PATIENCE_S:
                unseen.append(name)
                continue
            distinct = int(column.get("distinct") or 0)
            there = self.table.rows - int(column.get("missing") or 0)
            # Of pictures and texts so many are possible that none is alike by itself.
            coarse += np.inf if role in UNCOUNTED else float(np.log(max(2, distinct)))
            if role == "image":
                # Reading told whether there are copies; without any, no byte is looked at.
                copies = copies and distinct < there
                if copies:
                    hashes *= np.uint64(6364136223846793005)
                    hashes += self.table.hashes(name)
                continue
            values = self.table.column(name)
            hashes *= np.uint64(6364136223846793005)
            hashes += values.hash(0).to_numpy()
            # A text that says it all alone is no leak: nearly every row has its own.
            if len(self.sample) and folds and (role != "text" or distinct <= 0.5 * there):
                self._one_column(column, values.gather(self.sample), folds)
        if unseen:
            self.add(
                "info", "not_looked_at", unseen[:MOST_NAMED],
                f"{len(unseen):,} of {len(self.columns):,} columns were not looked at: the table "
                f"is too large for a quick check ({PATIENCE_S:.0f} s).",
                "Look out for leaks among them yourself.",
                unseen=len(unseen),
            )  # fmt: skip
        elif copies:
            self._alike(hashes, coarse)

    def _folds(self) -> Iterator[tuple[Array, Array]]:
        """(rows to fit on, rows to measure on), as masks over the sample."""
        parts = self.parts[self.sample]
        if self.split.get("kind", "random") != "random":
            if (parts > 0).any():
                for fold in range(1, int(parts.max()) + 1):
                    yield parts != fold, parts == fold
            else:
                yield parts == splits.TRAIN, parts == splits.VALIDATION
            return
        k = 2 if len(self.sample) > 10_000 else 5
        if len(self.sample) >= 2 * k:
            fold_of = (
                splits.splitmix64(0x5EED, self.table.rows)[self.sample] % np.uint64(k)
            ).astype(np.int64)
            for fold in range(k):
                if (fold_of == fold).any():
                    yield fold_of != fold, fold_of == fold

    def _one_column(
        self, column: Mapping[str, Any], values: pl.Series, folds: Sequence[tuple[Array, Array]]
    ) -> None:
        name, dtype = str(column["name"]), str(column["dtype"])
        found = leaks.alone(self.y, self.task, len(self.classes or ()), values, dtype, folds)
        if found is None:
            return
        score, measured = found
        is_time = dtype in {"date", "datetime"}
        by_time = self.split.get("kind") == "time"
        if is_time and not by_time:
            self._time(column, score)
        elif self._group(column, score):
            pass
        elif function := self._function(name, values):
            self.add(
                "severe", "function_of_target", [name],
                f"{function} {self._measured()}",
                "Leave it out: it is another way to write the answer.",
                remedy={"exclude": [name]},
            )  # fmt: skip
        elif score >= SUSPECT[self.task]:
            sure = score >= SEVERE[self.task] and measured >= ENOUGH_TO_BE_SURE
            self.add(
                "severe" if sure else "warning", "leak", [name],
                f"'{name}' alone predicts '{self.target}': {METRIC[self.task]} {score:.4f} on rows "
                f"that it was not fitted on (1 is perfect). {self._measured()}",
                "It may hold what is only known afterwards. Leave it out unless it is known when "
                "predictions are made.",
                metric=METRIC[self.task], score=round(score, 5), rows=measured,
                remedy={"exclude": [name]},
            )  # fmt: skip

    def _measured(self) -> str:
        n = len(self.sample)
        if n == self.of_all:
            return f"Measured on all {n:,} rows that are not sealed."
        return f"Measured on a sample of {n:,} of {self.of_all:,} rows."

    def _time(self, column: Mapping[str, Any], score: float) -> None:
        name, distinct = str(column["name"]), int(column.get("distinct") or 0)
        if distinct < 20:
            return
        drifts = score >= DRIFT[self.task]
        with_it = (
            f"'{self.target}' changes over '{name}' ({METRIC[self.task]} {score:.2f} from the time "
            f"alone). {self._measured()} "
            if drifts
            else f"'{name}' says when each row was. "
        )
        self.add(
            "warning" if drifts else "info", "time", [name],
            f"{with_it}Without a split by time, models learn from rows later than those that rank "
            "them.",
            "If the model is to predict what comes later, split by time. A date that is only a "
            "property, such as a birthday, needs none.",
            metric=METRIC[self.task], score=round(score, 5), moments=distinct,
            remedy={"split": {"kind": "time", "column": name}},
        )  # fmt: skip

    def _group(self, column: Mapping[str, Any], score: float) -> bool:
        """Whether the column's values look like things with several rows each; tells if so."""
        name, distinct = str(column["name"]), int(column.get("distinct") or 0)
        there = self.table.rows - int(column.get("missing") or 0)
        if (
            self.split.get("kind") == "group"
            or column["dtype"] not in {"integer", "string"}
            or not GROUP_NAME.search(name)
            or distinct < 10
            or there < 1.5 * distinct
        ):
            return False
        self.add(
            "warning", "groups", [name],
            f"'{name}' has {distinct:,} different values in {there:,} rows, "
            f"{there / distinct:.1f} each: rows of one {name} would both train and rank "
            f"({METRIC[self.task]} {score:.2f} from it alone). {self._measured()}",
            "If the model is to predict for others than these, split by group: then all rows of "
            "one stay together.",
            metric=METRIC[self.task], score=round(score, 5), groups=distinct,
            remedy={"split": {"kind": "group", "column": name}},
        )  # fmt: skip
        return True

    def _function(self, name: str, values: pl.Series) -> str:
        """How the column follows from the target, in words; empty when it does not."""
        if len(values) < ENOUGH_TO_BE_SURE or values.dtype.is_float():
            return ""
        codes = splits.groups_of(values.to_numpy())
        there = codes >= 0
        levels = int(codes.max(initial=-1)) + 1
        if levels < 2 or there.mean() < 0.5:
            return ""
        y, codes = self.y[there], codes[there]
        if self.classes:
            if levels > len(self.classes) or len(self.classes) < 3:
                return ""  # of two classes it predicts, and is told as that
            pairs = np.bincount(y * levels + codes, minlength=len(self.classes) * levels)
            agree = pairs.reshape(len(self.classes), levels).max(axis=1).sum() / len(y)
            usual = np.bincount(codes).max() / len(codes)
            if agree >= 0.999 and usual < 0.9:
                return f"'{name}' follows from '{self.target}': each class has one value of it."
            return ""
        if levels > 100 or levels > len(y) / 20:
            return ""
        runs = codes[np.argsort(y, kind="stable")]
        changes = int((runs[1:] != runs[:-1]).sum()) + 1
        usual = np.bincount(codes).max() / len(codes)
        if levels >= 3 and changes <= levels * 1.02 + 1 and usual < 0.9:
            return (
                f"'{name}' follows from '{self.target}': each of its {levels} values covers a "
                "range of its own."
            )
        return ""

    def _alike(self, hashes: Array, coarse: float) -> None:
        """Held-out rows that stand among the training rows, alike in all columns."""
        hashes *= np.uint64(6364136223846793005)
        hashes += self.target_hash
        held = (self.parts == splits.VALIDATION) | (self.parts == splits.TEST)
        learn = (self.parts == splits.TRAIN) | (self.parts > 0)
        if (self.parts > 0).any():  # of folds, the first stands for the others
            held |= self.parts == 1
            learn &= self.parts != 1
        if not held.any() or not learn.any():
            return
        looked_for, counts = np.unique(hashes[held], return_counts=True)
        where = np.minimum(np.searchsorted(looked_for, hashes[learn]), len(looked_for) - 1)
        known = np.zeros(len(looked_for), dtype=bool)
        known[where[looked_for[where] == hashes[learn]]] = True
        alike = int(counts[known].sum())
        share = alike / int(held.sum())
        # Few columns with few values each make rows alike without anybody having copied them.
        natural = coarse < np.log(100.0 * max(1, self.table.rows))
        if share < 0.01 or alike < 3:
            return
        severity = "info" if natural else "severe" if share >= 0.3 else "warning"
        self.add(
            severity, "duplicates", [],
            f"{alike:,} of {int(held.sum()):,} held-out rows ({share:.1%}) stand among the "
            "training rows as well, "
            + (
                f"with the same picture and the same '{self.target}'."
                if all(column["role"] in {"image", *LEFT_OUT} for column in self.columns)
                else "alike in every column but identifiers."
            )
            + (" With so few different values that comes by itself." if natural else "")
            + " All rows were compared.",
            "Scores will flatter. Remove the copies and upload the table again"
            + ("." if natural else ", or split by what they have in common."),
            rows=alike, share=round(share, 5),
        )  # fmt: skip


METRIC = {"binary": "AUC", "multiclass": "accuracy above chance", "regression": "R² of ranks"}
LEFT_OUT = frozenset({"constant", "identifier"})
UNCOUNTED = frozenset({"image", "text"})  # roles


def _some(rows: Array, most: int, seed: int) -> Array:
    """At most ``most`` of ``rows``, ascending, chosen by hash."""
    if len(rows) <= most:
        return rows
    hashes = splits.splitmix64(seed ^ 0x6A7E, int(rows[-1]) + 1)[rows]
    return np.sort(rows[np.argpartition(hashes, most)[:most]])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.3%}"
