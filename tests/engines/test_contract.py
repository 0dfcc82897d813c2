"""What every engine keeps to, seen from outside: messages, files and times of real children."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.engines.conftest import (
    HEAVY,
    PREDICT_FILE,
    REFIT,
    ROLES,
    TRAIN,
    Ran,
    Warm,
    messy,
    payload_for,
)
from tests.engines.test_frame import remarks
from training import catalog

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("engines")]  # one warm parent for all

GRACE_S = 5.0  # what the platform allows: this or a tenth of the budget
USED = [name for name, role in ROLES.items() if role not in ("text", "identifier")]


def plain(table: pl.DataFrame) -> list[list[Any]]:
    """Rows as JSON would carry them."""
    return json.loads(
        json.dumps([list(row) for row in table.rows()], default=lambda value: value.isoformat())
    )


TASKS = ["binary", "multiclass", "regression"]


@pytest.fixture(scope="module", params=TASKS)
def trained(request: pytest.FixtureRequest, warm: Warm) -> tuple[pl.DataFrame, Ran]:
    only_where_declared(warm, request.param)
    table = messy(1000, request.param)
    payload = payload_for(table, ROLES, request.param, budget_s=time_for(warm, 6))
    return table, warm.train(table, payload)


def time_for(warm: Warm, budget_s: float) -> float:
    """Seconds in which an engine fits a few models; of some, each takes longer."""
    return budget_s + 4 if warm.engine in HEAVY else budget_s


def declared(warm: Warm) -> tuple[str, ...]:
    """The task types that the engine's file declares; the tests ask for no others."""
    return catalog.engines()[warm.engine].tasks


def only_where_declared(warm: Warm, task: str) -> None:
    if task not in declared(warm):
        pytest.skip(f"{warm.engine} does not declare {task}")


def a_model(ran: Ran) -> str:
    """The key of the first model that has learnt something: whatever the engine calls it."""
    return list(ran.candidates)[1]


# The race


def test_what_an_engine_does_not_declare_it_refuses(warm: Warm) -> None:
    """What it does declare is tried below: each kind of task by several tests."""
    for kind in set(TASKS) - set(declared(warm)):
        table = messy(200, kind)
        ran = warm.train(table, payload_for(table, ROLES, kind, budget_s=5))
        assert [message["code"] for message in ran.of("error")] == ["task_type"]


def test_budget_is_kept_and_several_models_come(trained: tuple[pl.DataFrame, Ran]) -> None:
    _, ran = trained
    assert ran.result["data"]["candidates"] == len(ran.candidates) >= 3
    assert ran.seconds < ran.payload["budget_s"] + GRACE_S


def test_first_candidate_comes_soon_and_the_rest_stream(
    trained: tuple[pl.DataFrame, Ran],
) -> None:
    _, ran = trained
    times = [message["at"] for message in ran.of("candidate")]
    assert times[0] < ran.payload["budget_s"] / 2
    assert times == sorted(times)
    assert not any(message["missing"] for message in ran.of("candidate"))


def test_progress_only_grows_and_ends_at_one(trained: tuple[pl.DataFrame, Ran]) -> None:
    fractions = [message["fraction"] for message in trained[1].of("progress")]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert all(0 <= fraction < 1 for fraction in fractions[:-1])


@pytest.mark.once
def test_text_and_identifiers_are_left_out_with_a_notice(
    trained: tuple[pl.DataFrame, Ran],
) -> None:
    notices = {
        message["data"].get("column"): message["message"] for message in trained[1].of("notice")
    }
    assert "free text" in notices["remark"]
    assert "identifier" in notices["code"]


def test_predictions_cover_each_held_out_row_once(trained: tuple[pl.DataFrame, Ran]) -> None:
    _, ran = trained
    assert ran.parts is not None
    held = np.flatnonzero((ran.parts == -1) | (ran.parts == -2))
    classes = ran.payload["classes"]
    for key in ran.candidates:
        found = ran.predictions(key)
        assert found["row"].to_list() == held.tolist()
        if classes is None:
            assert found.columns == ["row", "prediction"]
            assert np.isfinite(found["prediction"].to_numpy()).all()
            continue
        assert found.columns == ["row", "prediction", *(f"p{i}" for i in range(len(classes)))]
        shares = found.drop("row", "prediction").to_numpy()
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-9)
        assert found["prediction"].to_list() == [classes[i] for i in shares.argmax(axis=1)]


def test_best_model_beats_a_guess_by_far(trained: tuple[pl.DataFrame, Ran]) -> None:
    """The guess looks at no column: the mean, or the most common class."""
    table, ran = trained
    target = table["target"]

    def error(rows: np.ndarray, guess: np.ndarray) -> float:
        truth = target.to_numpy()[rows]
        if ran.payload["task"] == "regression":
            return float(np.sqrt(((guess - truth) ** 2).mean()))
        return float((guess != truth).mean())

    errors = {}
    for key in ran.candidates:
        found = ran.predictions(key)
        errors[key] = error(found["row"].to_numpy(), found["prediction"].to_numpy())
    blind = target.mean() if ran.payload["task"] == "regression" else target.mode().sort()[0]
    rows = found["row"].to_numpy()
    assert min(errors.values()) < 0.5 * error(rows, np.array([blind] * len(rows)))


def ran_engine(ran: Ran) -> str:
    return next(iter(ran.candidates)).partition(":")[0]


def test_stop_ends_soon_and_keeps_what_is_there(warm: Warm, tmp_path: Path) -> None:
    table = messy(3000, "binary")
    table.write_parquet(tmp_path / "data.parquet")
    payload = payload_for(table, ROLES, "binary", budget_s=120)
    folder, wait = warm.start(TRAIN, warm.task(tmp_path / "data.parquet", payload))
    messages = folder / "messages.jsonl"
    deadline = time.monotonic() + 30
    while not messages.exists() or messages.read_text().count('"type": "candidate"') < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pressed = time.monotonic()
    (folder / "stop").touch()
    ran = wait()
    assert time.monotonic() - pressed < 10  # of a budget of 120
    assert ran.result["data"]["stopped"] is True
    assert len(ran.candidates) >= 2


def processes_in(folder: Path) -> set[int]:
    found = set()
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.resolve() == folder:
                found.add(int(link.parent.name))
        except OSError:
            continue  # it ended meanwhile
    return found


@pytest.mark.once
def test_a_killed_child_takes_its_fits_with_it(warm: Warm, tmp_path: Path) -> None:
    table = messy(20_000, "binary")
    table.write_parquet(tmp_path / "data.parquet")
    payload = payload_for(table, ROLES, "binary", budget_s=60)
    folder, wait = warm.start(TRAIN, warm.task(tmp_path / "data.parquet", payload))
    deadline = time.monotonic() + 30
    while len(running := processes_in(folder)) < 2:  # the child, and a fit
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(min(running), signal.SIGKILL)  # the child is older than what it forked
    wait()
    deadline = time.monotonic() + 5
    while processes_in(folder):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_new_attempt_skips_what_is_done_and_has_what_is_left_of_the_budget(
    warm: Warm, trained: tuple[pl.DataFrame, Ran]
) -> None:
    table, first = trained
    done = list(first.candidates)[:2]
    left = time_for(warm, 3)
    again = warm.train(
        table, first.payload | {"budget_s": 10 * left}, done=done, spent_s=9 * left, attempt=2
    )
    assert again.result["data"]["candidates"] >= 1
    assert not set(done) & set(again.candidates)
    assert again.seconds < left + GRACE_S
    assert again.of("progress")[0]["fraction"] >= 0.9
    assert not [m for m in again.of("notice") if m["data"].get("column")]  # said before


@pytest.mark.once
def test_a_spent_budget_with_models_stored_is_no_failure(
    warm: Warm, trained: tuple[pl.DataFrame, Ran]
) -> None:
    table, first = trained
    ran = warm.train(table, first.payload, done=list(first.candidates), spent_s=6.0, attempt=2)
    assert ran.result["data"]["candidates"] == 0


def test_slow_fits_are_abandoned_at_the_end_of_the_budget(warm: Warm) -> None:
    random = np.random.default_rng(0)
    rows, width = 150_000, 20
    values = random.normal(size=(rows, width))
    signal = values[:, 0] * values[:, 1] + random.normal(size=rows)
    task = "regression" if "regression" in declared(warm) else "binary"
    table = pl.DataFrame({f"x{i}": values[:, i] for i in range(width)}).with_columns(
        target=pl.Series(signal if task == "regression" else signal > 0)
    )
    roles = {f"x{i}": "numeric" for i in range(width)}
    ran = warm.train(table, payload_for(table, roles, task, budget_s=5))
    assert ran.seconds < 5 + GRACE_S
    assert ran.result["data"]["candidates"] >= 1


# Tables of all sorts


def test_tiny_table_is_ranked_out_of_fold(warm: Warm) -> None:
    only_where_declared(warm, "multiclass")
    table = messy(60, "multiclass")
    payload = payload_for(table, ROLES, "multiclass", folds=5, budget_s=40)
    ran = warm.train(table, payload, enough=2)
    assert ran.parts is not None
    assert ran.result["data"]["train_rows"] == int((ran.parts > 0).sum()) == 48
    assert ran.candidates
    wanted = np.flatnonzero(ran.parts != -3).tolist()
    for key in ran.candidates:
        assert sorted(ran.predictions(key)["row"].to_list()) == wanted


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_a_table_of_which_no_row_is_held_out_is_learned_from(warm: Warm, kind: str) -> None:
    only_where_declared(warm, kind)
    table = messy(200, kind)
    split = {"kind": "random", "seed": 7, "test": 0, "validation": 0, "folds": 3}
    payload = payload_for(table, ROLES, kind, split=split, budget_s=40)
    ran = warm.train(table, payload, enough=2)
    assert not [m for m in ran.of("notice") if "could not be fitted" in m["message"]]
    assert len(ran.candidates) >= 2
    for key in ran.candidates:
        assert sorted(ran.predictions(key)["row"].to_list()) == list(range(200))


def test_out_of_fold_predictions_have_not_seen_their_row(warm: Warm) -> None:
    """On a target that is pure chance, a model that had seen its rows would look good."""
    random = np.random.default_rng(1)
    table = pl.DataFrame({"x": random.normal(size=300), "y": random.normal(size=300)}).with_columns(
        target=pl.Series(random.choice(["a", "b"], 300))
    )
    roles = {"x": "numeric", "y": "numeric"}
    payload = payload_for(table, roles, "binary", folds=5, budget_s=time_for(warm, 4))
    ran = warm.train(table, payload)
    assert ran.parts is not None
    for key in ran.candidates:
        found = ran.predictions(key)
        ranked = ran.parts[found["row"].to_numpy()] > 0
        right = (
            found["prediction"].to_numpy() == table["target"].to_numpy()[found["row"].to_numpy()]
        )
        assert right[ranked].mean() < 0.68, key


@pytest.mark.once
@pytest.mark.parametrize(
    ("target", "classes"),
    [
        ([1, 2, 3], ["1", "2", "3"]),
        ([True, False], ["false", "true"]),
        (["b", "ä b", 'c,"d"'], ["b", 'c,"d"', "ä b"]),
        ([0.5, 1.0], ["0.5", "1.0"]),
    ],
    ids=["integers", "booleans", "odd-texts", "floats"],
)
def test_class_labels_come_back_as_the_data_set_has_them(
    warm: Warm, target: list[Any], classes: list[str]
) -> None:
    random = np.random.default_rng(2)
    picks = random.integers(0, len(target), 240)
    table = pl.DataFrame(
        {
            "x": picks + random.normal(0, 0.2, 240),
            "target": [None if i % 40 == 0 else target[p] for i, p in enumerate(picks)],
        }
    )
    task = "binary" if len(target) == 2 else "multiclass"
    payload = payload_for(table, {"x": "numeric"}, task, budget_s=2, metric="accuracy")
    assert payload["classes"] == classes
    ran = warm.train(table, payload)
    assert ran.parts is not None
    assert (ran.parts == -3).sum() == 6  # no target: no part
    best = list(ran.candidates)[1]
    found = ran.predictions(best)
    truth = [splits_label(table["target"][row]) for row in found["row"].to_list()]
    assert np.mean([a == b for a, b in zip(truth, found["prediction"], strict=True)]) > 0.9


def splits_label(value: object) -> str:
    from training.splits import label

    return label(value)


@pytest.mark.once
def test_a_number_with_few_values_can_be_the_target_of_a_regression(warm: Warm) -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=300)
    table = pl.DataFrame({"x": x, "target": np.digitize(x, [-1, 0, 1])})
    ran = warm.train(table, payload_for(table, {"x": "numeric"}, "regression", budget_s=3))
    best = min(
        float(
            np.abs(
                ran.predictions(key)["prediction"].to_numpy()
                - table["target"].to_numpy()[ran.predictions(key)["row"].to_numpy()]
            ).mean()
        )
        for key in ran.candidates
    )
    assert best < 0.2


@pytest.mark.once
def test_columns_that_are_constant_where_it_trains_are_left_out(warm: Warm) -> None:
    table = messy(400, "binary").with_columns(
        empty=pl.lit(None, dtype=pl.Float64), same=pl.lit("x"), number=pl.lit(4.0)
    )
    roles = {"size": "numeric", "empty": "numeric", "same": "categorical", "number": "numeric"}
    ran = warm.train(table, payload_for(table, roles, "binary", budget_s=2))
    left = {m["data"]["column"] for m in ran.of("notice") if m["data"].get("column")}
    assert left == {"empty", "same", "number"}
    assert len(ran.candidates) >= 2


@pytest.mark.once
def test_a_table_with_nothing_to_learn_from_fails_with_a_sentence(warm: Warm) -> None:
    table = messy(100, "binary")
    ran = warm.train(table, payload_for(table, {"remark": "text"}, "binary", budget_s=2))
    (error,) = ran.of("error")
    assert error["code"] == "no_columns"
    assert "remark" in error["sentence"]


@pytest.mark.once
def test_a_missing_column_is_named(warm: Warm) -> None:
    table = messy(100, "binary")
    roles = {"size": "numeric", "absent": "numeric"}
    ran = warm.train(table, payload_for(table, roles, "binary", budget_s=2))
    (error,) = ran.of("error")
    assert error["code"] == "missing_columns"
    assert "absent" in error["sentence"]


@pytest.mark.once
def test_free_text_is_learnt_from_and_the_notice_says_how(warm: Warm, tmp_path: Path) -> None:
    texts, angry = remarks(900)
    table = pl.DataFrame({"remark": texts, "noise": range(900)}).with_columns(
        remark=pl.when(pl.col("noise") % 30 != 0).then("remark"),
        target=pl.Series(np.where(angry, "complaint", "praise")),
    )
    roles = {"remark": "text", "noise": "numeric"}
    ran = warm.train(table, payload_for(table, roles, "binary", budget_s=8))
    (notice,) = [m["message"] for m in ran.of("notice") if m["data"].get("column") == "remark"]
    assert "free text" in notice
    assert "TF-IDF" in notice
    right = {}
    for key in ran.candidates:
        found = ran.predictions(key)
        truth = table["target"][found["row"].to_list()]
        right[key] = (found["prediction"] == truth).mean()
    assert max(right.values()) > 0.85, right
    # What was learnt of the words goes with the model, and each row is read by it alone.
    key = max(right, key=lambda key: right[key])
    stored = ran.predictions(key)
    rows = table[stored["row"].to_list()].select("noise", "remark")
    calls = [(rows.columns, plain(rows)), (rows.columns, plain(rows[:1]))]
    whole, one = warm.serve(ran.artifact(key), calls).result["data"]["answers"]
    np.testing.assert_allclose(whole["probabilities"], numbers(stored), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(one["probabilities"], numbers(stored)[:1], rtol=1e-9, atol=1e-9)
    unpack(ran.artifact(key), tmp_path / "model")
    assert_stands_alone(warm.python, tmp_path / "model", table, ran, key, as_csv=True)


# The artifact


def some_keys(ran: Ran) -> list[str]:
    """A few unlike models: the second and third to come, and the last (a blend, usually)."""
    keys = list(ran.candidates)
    return list(dict.fromkeys([*keys[1:4], keys[-1]]))


def numbers(found: pl.DataFrame) -> np.ndarray:
    shares = [name for name in found.columns if name.startswith("p") and name != "prediction"]
    return found.select(shares or ["prediction"]).to_numpy().astype(float)


def test_model_server_gives_the_stored_predictions_whatever_the_column_order(
    warm: Warm, trained: tuple[pl.DataFrame, Ran]
) -> None:
    table, ran = trained
    shuffled = USED[::-1]
    for key in some_keys(ran):
        stored = ran.predictions(key)
        rows = table[stored["row"].to_list()]
        calls = [(USED, plain(rows.select(USED))), (shuffled, plain(rows.select(shuffled)))]
        served = warm.serve(ran.artifact(key), calls)
        for answer in served.result["data"]["answers"]:
            assert answer["predictions"] == pytest.approx(stored["prediction"].to_list())
            got = answer["probabilities"] or [[value] for value in answer["predictions"]]
            np.testing.assert_allclose(np.array(got), numbers(stored), rtol=1e-9, atol=1e-9)
            assert answer["classes"] == ran.payload["classes"]


def test_one_row_is_answered_quickly_and_alike(
    warm: Warm, trained: tuple[pl.DataFrame, Ran]
) -> None:
    table, ran = trained
    for key in some_keys(ran):
        stored = ran.predictions(key)
        rows = plain(table[stored["row"].to_list()[:20]].select(USED))
        served = warm.serve(ran.artifact(key), [(USED, [row]) for row in rows])
        answers = [a["predictions"][0] for a in served.result["data"]["answers"]]
        assert answers == pytest.approx(stored["prediction"].to_list()[:20])
        assert np.median(served.result["data"]["ms"]) < 150, key  # a few ms when nothing else runs


def test_each_column_has_its_share_of_an_answer_and_the_shares_add_up_to_it(
    warm: Warm, trained: tuple[pl.DataFrame, Ran]
) -> None:
    table, ran = trained
    every = list(ROLES)
    background = plain(table.head(20).select(every))
    odd = dict.fromkeys(every) | {"size": 17.5, "colour": "ultraviolet", "grade": 2}
    rows = [background.pop(), list(odd.values())]
    key = a_model(ran)
    served = warm.serve(ran.artifact(key), [(every, [row], background) for row in rows])
    whole = warm.serve(ran.artifact(key), [(every, rows), (every, background)])
    said, others = whole.result["data"]["answers"]

    def numbers(answer: dict[str, Any]) -> Any:
        shares = answer["probabilities"]
        return np.array(answer["predictions"])[:, None] if shares is None else np.array(shares)

    for place, answer in enumerate(served.result["data"]["answers"]):
        found = answer["explanation"]
        values = np.array(found["values"])
        assert answer["predictions"] == pytest.approx(said["predictions"][place : place + 1])
        assert found["output"] == pytest.approx(numbers(said)[place], rel=1e-6, abs=1e-6)
        total = np.array(found["base"]) + values.sum(axis=0)
        assert total == pytest.approx(np.array(found["output"]), rel=1e-6, abs=1e-6)
        if found["background"] == len(background):
            mean = numbers(others).mean(axis=0)
            assert found["base"] == pytest.approx(mean, rel=1e-6, abs=1e-6)
        assert found["evaluations"] <= 2_000 + 20
        by_column = dict(zip(every, np.abs(values).max(axis=1), strict=True))
        assert by_column["code"] == by_column["remark"] == 0.0, "it was not given these"
        assert by_column["size"] > 0.0


def test_gaps_unseen_categories_and_texts_for_numbers_are_taken(
    warm: Warm, trained: tuple[pl.DataFrame, Ran]
) -> None:
    _, ran = trained
    whole = [9.5, 1.0, 7, "red", "town 3", 2, True, "2023-05-06T07:30:00"]
    calls = [
        (USED, [whole]),
        (USED, [[None] * len(USED)]),
        (USED, [[9.5, 1.0, 7, "ultraviolet", "nowhere", 99, True, "2031-01-01"]]),
        (USED, [["9.5", "1.0", "7", "red", "town 3", "2", "true", "2023-05-06 07:30:00"]]),
        (USED, []),
    ]
    for key in some_keys(ran):
        found = warm.serve(ran.artifact(key), calls).result["data"]["answers"]
        assert found[0] == found[3]
        assert [len(answer["predictions"]) for answer in found] == [1, 1, 1, 1, 0]


@pytest.mark.once
def test_wrong_rows_are_refused_by_column(warm: Warm, trained: tuple[pl.DataFrame, Ran]) -> None:
    _, ran = trained
    whole: list[Any] = [9.5, 1.0, 7, "red", "town 3", 2, True, "2023-05-06T07:30:00"]
    calls: list[Any] = [
        (USED[:-1], [whole[:-1]]),
        ([*USED, "surprise"], [[*whole, 1]]),
        (USED, [["heavy", *whole[1:]]]),
        (USED, [[*whole[:-1], "yesterday"]]),
    ]
    served = warm.serve(ran.artifact(some_keys(ran)[0]), calls)
    found = served.result["data"]["answers"]
    assert [answer.get("code") for answer in found] == [
        "missing_columns",
        "unknown_columns",
        "wrong_type",
        "wrong_type",
    ]
    assert [list(answer["columns"]) for answer in found] == [
        ["seen"],
        ["surprise"],
        ["size"],
        ["seen"],
    ]


@pytest.mark.once
@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_file_of_rows_is_scored(
    warm: Warm, trained: tuple[pl.DataFrame, Ran], tmp_path: Path, format: str
) -> None:
    table, ran = trained
    key = some_keys(ran)[0]
    stored = ran.predictions(key)
    rows = table[stored["row"].to_list()].drop("target", "remark").select(pl.all().reverse())
    path = tmp_path / "rows"  # the node's cache has no file name endings
    rows.write_csv(path) if format == "csv" else rows.write_parquet(path)
    task = {"inputs": {"model": str(ran.artifact(key)), "data": str(path)}, "payload": {}}
    scored = warm.run(PREDICT_FILE, task)
    assert scored.result["data"]["rows"] == rows.height
    for name in ("parquet", "csv"):
        file = scored.folder / scored.result["files"][name]
        found = pl.read_parquet(file) if name == "parquet" else pl.read_csv(file)
        assert found.columns[: rows.width] == rows.columns
        got = found["prediction"].to_list()[::-1]
        assert got == pytest.approx(stored["prediction"].to_list())
        if ran.payload["classes"]:
            shares = found.select([f"probability_{c}" for c in ran.payload["classes"]])
            np.testing.assert_allclose(shares.to_numpy()[::-1], numbers(stored), atol=1e-9)


@pytest.mark.once
def test_a_file_without_a_needed_column_fails_with_its_name(
    warm: Warm, trained: tuple[pl.DataFrame, Ran], tmp_path: Path
) -> None:
    table, ran = trained
    path = tmp_path / "rows.csv"
    table.drop("colour").write_csv(path)
    artifact = str(ran.artifact(some_keys(ran)[0]))
    scored = warm.run(PREDICT_FILE, {"inputs": {"model": artifact, "data": str(path)}})
    (error,) = scored.of("error")
    assert error["code"] == "missing_columns"
    assert "colour" in error["sentence"]


def unpack(artifact: Path, folder: Path) -> dict[str, Any]:
    with zipfile.ZipFile(artifact) as archive:
        archive.extractall(folder)
    return json.loads((folder / "schema.json").read_text())


def test_artifact_stands_alone_in_a_fresh_process(
    warm: Warm, trained: tuple[pl.DataFrame, Ran], tmp_path: Path
) -> None:
    table, ran = trained
    for number, key in enumerate(some_keys(ran)[-2:]):
        folder = tmp_path / str(number)
        unpack(ran.artifact(key), folder)
        # Each way of asking once: starting Python with its libraries takes seconds.
        python = warm.python
        assert_stands_alone(python, folder, table, ran, key, as_csv=bool(number))


def assert_stands_alone(
    python: Path, folder: Path, table: pl.DataFrame, ran: Ran, key: str, *, as_csv: bool
) -> None:
    """predict.py in ``folder``, run by ``python`` with nothing of FlowML on its path."""
    stored = ran.predictions(key)
    table[stored["row"].to_list()].write_csv(folder / "rows.csv")
    command = [python, "-I", folder / "predict.py", folder / "rows.csv"]
    if as_csv:
        subprocess.run(command, check=True, capture_output=True)
        written = pl.read_csv(folder / "rows.predictions.csv")
        assert written["prediction"].to_list() == pytest.approx(stored["prediction"].to_list())
        got = (
            written.drop("prediction").to_numpy() if ran.payload["classes"] else written.to_numpy()
        )
    else:
        printed = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
        answer = json.loads(printed.stdout)
        got = np.array(answer["probabilities"] or [[value] for value in answer["predictions"]])
    np.testing.assert_allclose(got, numbers(stored), rtol=1e-9, atol=1e-9)


def test_artifact_says_what_it_is_and_holds_no_name_of_ours_in_its_pickles(
    trained: tuple[pl.DataFrame, Ran], tmp_path: Path
) -> None:
    _, ran = trained
    for number, key in enumerate(some_keys(ran)):
        folder = tmp_path / str(number)
        told = unpack(ran.artifact(key), folder)
        assert told["target"] == "target"
        assert told["classes"] == ran.payload["classes"]
        assert told["split"] == ran.payload["split"]
        assert [column["name"] for column in told["columns"]] == USED
        assert set(told["left_out"]) == {"remark", "code"}
        lines = (folder / "requirements.txt").read_text().splitlines()
        assert lines == sorted(lines)
        assert all("==" in line for line in lines)
        if ran_engine(ran) == "pycaret":  # what it fits are other libraries' models
            assert not any(line.startswith("pycaret") for line in lines)
        pickled = b"".join(path.read_bytes() for path in (folder / "model").glob("*.joblib"))
        assert b"training.engines" not in pickled
        assert b"flowml" not in pickled
        assert "predict.py" in (folder / "README.md").read_text()


def test_train_py_fits_the_same_model_again(
    warm: Warm, trained: tuple[pl.DataFrame, Ran], tmp_path: Path
) -> None:
    table, ran = trained
    data = tmp_path / "data.parquet"
    table.write_parquet(data)
    # Where starting Python with its libraries takes long, one.
    for number, key in enumerate(some_keys(ran)[: 1 if warm.engine in HEAVY else 2]):
        folder = tmp_path / str(number)
        told = unpack(ran.artifact(key), folder)
        told["dataset"]["sha256"] = hashlib.sha256(data.read_bytes()).hexdigest()
        (folder / "schema.json").write_text(json.dumps(told))
        command = [warm.python, "-I", folder / "train.py", data, "--threads", "1"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert float(done.stdout.split()[-1]) < 1e-9, done.stdout
    other = tmp_path / "other.parquet"
    table.head(table.height // 2).write_parquet(other)
    refused = subprocess.run([*command[:3], other], check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "SHA-256" in refused.stderr


# The refit


def refitted(warm: Warm, trained: tuple[pl.DataFrame, Ran], folder: Path, key: str) -> Ran:
    """The task that fits ``key`` again on all rows but the sealed ones."""
    table, ran = trained
    data = folder / "data.parquet"
    table.write_parquet(data)
    payload = ran.payload | {"split": ran.payload["split"] | {"refit": True}, "budget_s": 30}
    inputs = {"data": str(data), "model": str(ran.artifact(key))}
    return warm.run(REFIT, warm.task(data, payload, kind="training.refit", inputs=inputs))


def test_a_refit_learns_from_all_rows_but_the_sealed_ones_and_answers_for_itself(
    warm: Warm, trained: tuple[pl.DataFrame, Ran], tmp_path: Path
) -> None:
    table, ran = trained
    assert ran.parts is not None
    sealed = np.flatnonzero(ran.parts == -2)
    for key in dict.fromkeys([a_model(ran), list(ran.candidates)[-1]]):
        done = refitted(warm, trained, tmp_path, key)
        told, files = done.result["data"], done.result["files"]
        assert told["name"] == f"{ran.candidates[key]['data']['name']}, refitted"
        assert told["train_rows"] == table.height - len(sealed)
        found = pl.read_parquet(done.folder / files["predictions"])
        assert found["row"].to_list() == sealed.tolist()
        rows = plain(table[sealed.tolist()].select(USED))
        (answer,) = warm.serve(done.folder / files["artifact"], [(USED, rows)]).result["data"][
            "answers"
        ]
        got = np.array(answer["probabilities"] or [[v] for v in answer["predictions"]])
        np.testing.assert_allclose(got, numbers(found), rtol=1e-9, atol=1e-9)
        before = ran.predictions(key).filter(pl.col("row").is_in(sealed.tolist()))
        assert np.abs(numbers(before) - numbers(found)).max() > 1e-6, "the old model answered"


def test_train_py_of_a_refit_fits_the_refit_again(
    warm: Warm, trained: tuple[pl.DataFrame, Ran], tmp_path: Path
) -> None:
    done = refitted(warm, trained, tmp_path, a_model(trained[1]))
    unpack(done.folder / done.result["files"]["artifact"], tmp_path / "model")
    command = [warm.python, "-I", tmp_path / "model" / "train.py"]
    again = subprocess.run(
        [*command, tmp_path / "data.parquet", "--threads", "1"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert f"Fitted on {done.result['data']['train_rows']} rows" in again.stdout
    assert float(again.stdout.split()[-1]) < 1e-9, again.stdout


@pytest.mark.once
def test_a_refit_that_takes_too_long_or_is_stopped_ends_with_a_sentence(
    warm: Warm, trained: tuple[pl.DataFrame, Ran], tmp_path: Path
) -> None:
    table, ran = trained
    data = tmp_path / "data.parquet"
    table.write_parquet(data)
    payload = ran.payload | {"split": ran.payload["split"] | {"refit": True}, "budget_s": 0.01}
    inputs = {"data": str(data), "model": str(ran.artifact(a_model(ran)))}
    slow = warm.run(REFIT, warm.task(data, payload, inputs=inputs))
    assert [(m["code"], "longer than" in m["sentence"]) for m in slow.of("error")] == [
        ("time_limit", True)
    ]
    folder, wait = warm.start(REFIT, warm.task(data, payload | {"budget_s": 30}, inputs=inputs))
    (folder / "stop").touch()
    stopped = wait()
    assert [message["code"] for message in stopped.of("error")] == ["stopped"]
    assert stopped.seconds < GRACE_S


@pytest.mark.once
@pytest.mark.slow
def test_artifact_stands_alone_in_a_fresh_virtualenv(warm: Warm, tmp_path: Path) -> None:
    table = messy(1000, "binary")
    ran = warm.train(table, payload_for(table, ROLES, "binary", budget_s=4))
    key = list(ran.candidates)[-1]  # a blend, usually: it needs what all its members need
    unpack(ran.artifact(key), tmp_path / "model")
    venv = tmp_path / "venv"
    subprocess.run([warm.python, "-m", "venv", venv], check=True)
    python = venv / "bin" / "python"
    requirements = tmp_path / "model" / "requirements.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
    for as_csv in (True, False):
        assert_stands_alone(python, tmp_path / "model", table, ran, key, as_csv=as_csv)
