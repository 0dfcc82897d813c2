"""What columns have to do with each other: the measures against known values, the page, the API."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from django.test import Client
from django.urls import reverse
from scipy import stats

from datasets import associations, related
from datasets.models import DatasetVersion
from datasets.profile import profile
from organizations.models import Membership, Role
from tests.training import make

DTYPES = {pl.Int64: "integer", pl.Float64: "float", pl.String: "string", pl.Boolean: "boolean"}


def measured(frame: pl.DataFrame) -> dict[str, Any]:
    dtypes = [(name, DTYPES.get(type(dtype), "date")) for name, dtype in frame.schema.items()]
    columns = profile(lambda names: frame.select(names), dtypes, frame.height)
    found = associations.measure(lambda name: frame[name], columns, frame.height)
    assert associations.checked(json.loads(json.dumps(found)), columns) == found
    return found


def pairs(frame: pl.DataFrame) -> dict[tuple[str, str], list[Any]]:
    found = measured(frame)
    names = found["columns"]
    return {(names[a], names[b]): rest for a, b, *rest in found["pairs"]}


def with_gaps(values: np.ndarray, rng: np.random.Generator) -> list[float | None]:
    return [
        None if gone else float(v)
        for v, gone in zip(values, rng.random(len(values)) < 0.1, strict=True)
    ]


def test_numbers_are_compared_as_scipy_does_over_the_rows_that_have_both() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=400).round(1)  # with ties
    frame = pl.DataFrame(
        {"x": with_gaps(x, rng), "y": with_gaps(np.exp(-x) + rng.random(400), rng)}
    )
    measure, spearman, pearson, rows = pairs(frame)["x", "y"]
    both = frame.drop_nulls()
    assert (measure, rows) == ("spearman", both.height)
    assert spearman == pytest.approx(stats.spearmanr(both["x"], both["y"]).statistic, abs=1e-4)
    assert pearson == pytest.approx(stats.pearsonr(both["x"], both["y"]).statistic, abs=1e-4)
    assert spearman < pearson < 0  # it only falls, but not straight


def test_categories_are_compared_by_a_corrected_v() -> None:
    rng = np.random.default_rng(4)
    a = rng.integers(0, 4, 300)
    frame = pl.DataFrame(
        {
            "a": a.astype(str),
            "same": np.array(["p", "q", "r", "s"])[a],
            "noisy": np.where(rng.random(300) < 0.4, a, rng.integers(0, 4, 300)).astype(str),
            "chance": rng.integers(0, 12, 300).astype(str),
        }
    )
    found = pairs(frame)
    assert found["a", "same"] == ["cramers_v", 1.0, None, 300]
    # Bergsma's formula over scipy's chi-squared.
    table = frame.pivot("noisy", index="a", values="same", aggregate_function="len").fill_null(0)
    chi2 = stats.chi2_contingency(table.drop("a").to_numpy(), correction=False).statistic
    corrected = 4 - 9 / 299
    expected = np.sqrt(max(0, chi2 / 300 - 9 / 299) / (corrected - 1))
    assert found["a", "noisy"][1] == pytest.approx(expected, abs=1e-4)
    plain = stats.contingency.association(
        pl.DataFrame(frame.pivot("chance", index="a", values="same", aggregate_function="len"))
        .drop("a").fill_null(0).to_numpy().astype(int)
    )  # fmt: skip
    assert plain > 0.15 > found["a", "chance"][1]  # what chance makes of many values is taken off


def test_a_number_and_a_category_are_compared_by_the_corrected_ratio() -> None:
    rng = np.random.default_rng(5)
    group = rng.integers(0, 3, 200)
    x = group * 2.0 + rng.normal(size=200)
    frame = pl.DataFrame({"g": group.astype(str), "x": x, "yes": x > 2})
    found = pairs(frame)
    f, k, n = stats.f_oneway(*(x[group == one] for one in range(3))).statistic, 3, 200
    share = f * (k - 1) / (f * (k - 1) + n - k)
    expected = np.sqrt(1 - (1 - share) * (n - 1) / (n - k))
    assert found["g", "x"][:2] == ["correlation_ratio", pytest.approx(expected, abs=1e-4)]
    assert found["x", "yes"][0] == "correlation_ratio"
    assert found["g", "yes"][0] == "cramers_v"


def test_what_can_not_be_compared_is_left_out_or_has_no_value() -> None:
    rng = np.random.default_rng(6)
    n = 60
    frame = pl.DataFrame(
        {
            "id": np.arange(n),  # an identifier
            "same": ["x"] * n,
            "a": [float(v) if i < 30 else None for i, v in enumerate(rng.normal(size=n))],
            "b": [float(v) if i >= 27 else None for i, v in enumerate(rng.normal(size=n))],
            "huge": [1e308 * (-1) ** i * (1 + i % 7) / 7 for i in range(n)],
        }
    )
    found = measured(frame)
    assert found["columns"] == ["a", "b", "huge"]
    assert found["pairs"][0][2:] == ["spearman", None, None, 3]
    json.dumps(found, allow_nan=False)
    wide = pl.DataFrame({f"c{i}": rng.normal(size=20) for i in range(33)})
    found = measured(wide)
    assert (len(found["columns"]), found["left_out"]) == (associations.MOST_COLUMNS, 3)


def test_of_a_long_table_a_sample_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(associations, "SAMPLE", 100)
    found = measured(pl.DataFrame({"a": np.arange(500) % 50, "b": np.arange(500) % 50 * 2}))
    assert found["rows"] == 100
    assert found["pairs"] == [[0, 1, "spearman", 1.0, 1.0, 100]]


@pytest.mark.parametrize(
    "odd",
    [
        None, [], {}, {"columns": ["x"]}, {"columns": ["a", "other"]},
        {"columns": ["a", "b"], "left_out": 0, "rows": 9, "pairs": []},
        {"columns": ["a", "b"], "left_out": 0, "rows": 9, "pairs": [[0, 1, "magic", 0.1, None, 9]]},
        {"columns": ["a", "b"], "left_out": 0, "rows": 9, "pairs": [[0, 5, "spearman", 0.1, 0, 9]]},
        {"columns": ["a", "b"], "left_out": 0, "rows": 9, "pairs": [[0, 1, "spearman", "x", 0, 9]]},
    ],
)  # fmt: skip
def test_odd_things_of_a_node_are_not_kept(odd: Any) -> None:
    assert associations.checked(odd, [{"name": "a"}, {"name": "b"}]) is None


# --- The page and the API -------------------------------------------------------------------------


@pytest.fixture
def version(db: None) -> DatasetVersion:
    made = make.version(make.member())
    made.associations = {
        "columns": ["length", "width", "species"],
        "left_out": 2,
        "rows": 10,
        "pairs": [
            [0, 1, "spearman", -0.31, -0.25, 10],
            [0, 2, "correlation_ratio", 0.9, None, 10],
            [1, 2, "correlation_ratio", None, None, 4],
        ],
    }
    made.save(update_fields=["associations"])
    return made


def signed_in(version: DatasetVersion, role: Role = Role.VIEWER) -> Client:
    member: Membership = make.member(role, organization=version.organization)
    client = Client()
    client.force_login(member.user)
    return client


def test_the_page_sorts_what_goes_with_a_column(
    version: DatasetVersion, django_assert_num_queries: Any
) -> None:
    client, url = signed_in(version), reverse("datasets:detail", args=[version.dataset_id])
    # Session, user, membership; events, data set with its newest version, versions, quotas.
    with django_assert_num_queries(6):
        page = client.get(url, {"tab": "associations", "of": "length"}).content.decode()
    assert "What goes with length" in page
    assert page.index('<th scope="row">species') < page.index('<th scope="row">width')
    assert "Most closely related to length: species (0.90)" in page
    assert '<td class="up-5" title="length · species: Correlation ratio 0.90 (n = 10)">0.90' in page
    assert '<td class="down-1"' in page
    assert "2 further columns were left out" in page
    assert (
        "What goes with species" in client.get(f"{url}?tab=associations&of=%00no").content.decode()
    )


def test_a_version_from_before_says_what_to_do(version: DatasetVersion) -> None:
    DatasetVersion.objects.update(associations=None)
    client = signed_in(version)
    url = reverse("datasets:detail", args=[version.dataset_id])
    assert "Not compared yet" in client.get(url, {"tab": "associations"}).content.decode()
    answer = client.get(reverse("dataset-associations", args=[version.dataset_id]))
    assert (answer.status_code, answer.json()["code"]) == (409, "not-measured")


def test_the_api_tells_pairs_the_strongest_first(
    version: DatasetVersion, django_assert_num_queries: Any
) -> None:
    client, path = signed_in(version), reverse("dataset-associations", args=[version.dataset_id])
    with django_assert_num_queries(5):  # session, user, membership; data set, version
        told = client.get(path).json()
    assert [one["value"] for one in told["pairs"]] == [0.9, -0.31, None]
    assert told["pairs"][1] == {
        "columns": ["length", "width"], "measure": "spearman", "value": -0.31, "pearson": -0.25,
        "rows": 10,
    }  # fmt: skip
    of = client.get(path, {"column": "width"}).json()
    assert [one["columns"] for one in of["pairs"]] == [["length", "width"], ["width", "species"]]
    assert client.get(path, {"column": "nothing"}).status_code == 400


def test_shades_grow_with_the_value() -> None:
    steps = [related.shade(value) for value in (None, 0.0, 0.1, 0.2, -0.5, 0.99, 1.0)]
    assert steps == ["", "", "", "up-1", "down-3", "up-5", "up-5"]
