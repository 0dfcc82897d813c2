"""Pages of data sets: what they show, to whom, with how many queries."""

import re
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from datasets.models import Dataset, DatasetVersion
from organizations.models import Membership, Role
from tests.training import make
from workers.models import Task

pytestmark = pytest.mark.django_db
JSON = {"Accept": "application/json"}


def as_(member: Membership) -> Client:
    client = Client()
    client.force_login(member.user)
    return client


@pytest.fixture
def developer() -> Membership:
    return make.member()


@pytest.fixture
def version(developer: Membership) -> DatasetVersion:
    return make.version(developer)


def a_file(name: str = "t.csv") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, b"a,b\n1,2\n")


def acts_on(version: DatasetVersion) -> dict[str, str]:
    dataset = version.dataset_id
    return {
        "new-version": reverse("datasets:new-version", args=[dataset]),
        "role": reverse("datasets:role", args=[dataset]),
        "delete": reverse("datasets:delete", args=[dataset]),
    }


def test_anonymous_people_are_sent_to_the_sign_in_page(version: DatasetVersion) -> None:
    detail = reverse("datasets:detail", args=[version.dataset_id])
    for url in (reverse("home"), reverse("datasets:list"), detail):
        response = Client().get(url)
        assert (response.status_code, response["Location"]) == (302, f"/sign-in?next={url}")
    for url in [*acts_on(version).values(), reverse("datasets:upload")]:
        assert Client().post(url).status_code == 302


def test_another_organizations_data_is_not_there(version: DatasetVersion) -> None:
    stranger = as_(make.member(Role.ADMIN))
    for name in ("detail",):
        assert (
            stranger.get(reverse(f"datasets:{name}", args=[version.dataset_id])).status_code == 404
        )
    assert stranger.get(reverse("datasets:ingest", args=[version.pk])).status_code == 404
    assert stranger.get(reverse("datasets:rejects", args=[version.pk])).status_code == 404
    for url in acts_on(version).values():
        assert stranger.post(url, {"file": a_file()}).status_code == 404
    assert "No data sets yet" in stranger.get(reverse("datasets:list")).content.decode()
    assert Dataset.objects.filter(pk=version.dataset_id).exists()


def test_a_viewer_reads_but_may_not_change(version: DatasetVersion) -> None:
    viewer = as_(make.member(Role.VIEWER, organization=version.organization))
    url = reverse("datasets:detail", args=[version.dataset_id])
    for tab in ("columns", "rows", "versions", "nonsense"):
        page = viewer.get(url, {"tab": tab})
        assert page.status_code == 200
        assert "Train on this" not in page.content.decode()
    for act in [*acts_on(version).values(), reverse("datasets:upload")]:
        assert viewer.post(act, {"file": a_file()}).status_code == 403


def test_a_longer_list_takes_no_more_queries(
    developer: Membership, version: DatasetVersion, django_assert_num_queries: Any
) -> None:
    client = as_(developer)
    client.get(reverse("home"))  # what is used of quotas is asked once a minute
    for n in (0, 5):
        for i in range(n):
            make.version(developer, name=f"set {i}")
        with django_assert_num_queries(5):  # session, user, membership, count, rows
            client.get(reverse("datasets:list"))
        # And running, recent, data sets; deployments and pipelines that need attention.
        with django_assert_num_queries(8):
            client.get(reverse("home"))


def test_the_list_finds_by_name(developer: Membership, version: DatasetVersion) -> None:
    client = as_(developer)
    assert "flowers" in client.get(reverse("datasets:list"), {"search": "LOW"}).content.decode()
    none = client.get(reverse("datasets:list"), {"search": "birds"}).content.decode()
    assert "No data set has this in its name" in none


def names_in(page: str) -> list[str]:
    return re.findall(r'class="row-link"[^>]*>([^<]+)<', page)


def test_the_list_is_sorted_and_filtered_by_its_address(
    developer: Membership, version: DatasetVersion, django_assert_num_queries: Any
) -> None:
    colleague = make.member(Role.DEVELOPER, organization=developer.organization)
    other = make.version(colleague, name="Ants")
    DatasetVersion.objects.filter(pk=other.pk).update(rows=9)
    for one, by in ((other, colleague), (version, developer)):
        Dataset.objects.filter(pk=one.dataset_id).update(created_by=by.user)
    waiting = Dataset.objects.create(organization=developer.organization, name="zebras")
    client, url = as_(developer), reverse("datasets:list")

    def shown(**query: str) -> list[str]:
        with django_assert_num_queries(5):  # as without
            return names_in(client.get(url, query).content.decode())

    flowers = version.dataset.name
    assert shown() == [waiting.name, "Ants", flowers]  # newest first
    assert shown(sort="name") == ["Ants", flowers, "zebras"]
    assert shown(sort="-name") == ["zebras", flowers, "Ants"]
    assert shown(sort="-rows") == [flowers, "Ants", "zebras"]  # without a value: last
    assert shown(sort="rows") == ["Ants", flowers, "zebras"]
    assert shown(sort="password") == shown()
    assert shown(owner=colleague.user.username, search="A") == ["Ants"]
    page = client.get(url, {"sort": "rows", "owner": developer.user.username, "search": "fl"})
    text = page.content.decode()
    assert 'aria-sort="ascending"' in text
    assert f'href="?sort=-rows&amp;owner={developer.user.username}&amp;search=fl"' in text
    with django_assert_num_queries(4):  # nothing there: no rows are asked for
        none = client.get(url, {"owner": "nobody-here"}).content.decode()
    assert "No data set is like this" in none


def test_uploading_without_script_leads_to_the_data_set(developer: Membership) -> None:
    response = as_(developer).post(reverse("datasets:upload"), {"file": a_file()}, follow=True)
    dataset = Dataset.objects.get()
    assert response.redirect_chain[-1][0] == reverse("datasets:detail", args=[dataset.pk])
    assert f'data-live="dataset:{dataset.pk}"' in response.content.decode()


def test_uploading_with_script_says_where_to_go(developer: Membership) -> None:
    client, url = as_(developer), reverse("datasets:upload")
    answer = client.post(url, {"file": a_file()}, headers=JSON)
    assert answer.json() == {
        "location": reverse("datasets:detail", args=[Dataset.objects.get().pk])
    }
    refused = client.post(url, headers=JSON)
    assert refused.status_code == 400
    assert refused["Content-Type"] == "application/problem+json"


def test_an_upload_that_is_too_large_is_told_on_the_page(
    developer: Membership, settings: Any
) -> None:
    settings.MAX_UPLOAD_SIZE_MB = 0
    response = as_(developer).post(reverse("datasets:upload"), {"file": a_file()})
    assert response.status_code == 413
    assert "larger than this installation takes" in response.content.decode()
    assert not Dataset.objects.exists()


def test_a_sample_from_the_start_page_leads_on_to_training(developer: Membership) -> None:
    client, url = as_(developer), reverse("datasets:sample", args=["penguins"])
    response = client.post(url, {"then": "train"})
    dataset = Dataset.objects.get()
    assert response["Location"] == f"/training/new?dataset={dataset.pk}&target=species"
    waiting = client.get(response["Location"]).content.decode()
    assert "Waiting to be read" in waiting
    assert client.post(reverse("datasets:sample", args=["nothing"])).status_code == 400


def test_the_fragment_of_a_version_asks_for_a_new_page_once_it_is_read(
    developer: Membership, version: DatasetVersion
) -> None:
    client = as_(developer)
    done = client.get(reverse("datasets:ingest", args=[version.pk]))
    assert done["HX-Refresh"] == "true"
    client.post(reverse("datasets:upload"), {"file": a_file()})
    reading = DatasetVersion.objects.get(state="ingesting")
    assert "HX-Refresh" not in client.get(reverse("datasets:ingest", args=[reading.pk]))


def test_cards_show_roles_and_what_is_missing(
    developer: Membership, version: DatasetVersion
) -> None:
    page = as_(developer).get(reverse("datasets:detail", args=[version.dataset_id]))
    text = page.content.decode()
    assert text.count("<article") == 4
    assert "1.3% missing" in text


def test_a_changed_role_comes_back_in_its_card(
    developer: Membership, version: DatasetVersion
) -> None:
    url = reverse("datasets:role", args=[version.dataset_id])
    form = {"column": "colour", "role": "text"}
    fragment = as_(developer).post(url, form, headers={"HX-Request": "true"})
    assert "<option selected>text" in fragment.content.decode()
    version.refresh_from_db()
    column = version.column("colour")
    assert column is not None
    assert column["role"] == "text"
    assert as_(developer).post(url, {"column": "no", "role": "text"}).status_code == 400


def test_rows_come_in_pages_and_offsets_outside_do_no_harm(
    developer: Membership, version: DatasetVersion
) -> None:
    client = as_(developer)
    url = reverse("datasets:detail", args=[version.dataset_id])
    first = client.get(url, {"tab": "rows"}).content.decode()
    assert "Rows 1–50 of 150" in first
    assert "missing" in first
    second = client.get(url, {"tab": "rows", "offset": "50"}, headers={"HX-Request": "true"})
    assert "<html" not in second.content.decode()
    assert "Rows 51–100 of 150" in second.content.decode()
    assert "HX-Request" in second["Vary"]
    for offset in ("100000", "-3", "x"):
        assert client.get(url, {"tab": "rows", "offset": offset}).status_code == 200


def test_deleting_asks_nothing_more_and_tells_what_is_gone(
    developer: Membership, version: DatasetVersion
) -> None:
    url = reverse("datasets:delete", args=[version.dataset_id])
    response = as_(developer).post(url, follow=True)
    assert "The data set flowers is deleted" in response.content.decode()
    assert not Dataset.objects.exists()


def test_a_data_set_in_use_stays_and_the_page_says_why(
    developer: Membership, version: DatasetVersion
) -> None:
    make.job(developer, version)
    url = reverse("datasets:delete", args=[version.dataset_id])
    response = as_(developer).post(url, follow=True)
    assert "in use" in response.content.decode()
    assert Dataset.objects.exists()


def test_the_first_visit_offers_samples_and_an_upload(developer: Membership) -> None:
    page = as_(developer).get(reverse("home")).content.decode()
    assert "Train your first model" in page
    assert reverse("datasets:sample", args=["penguins"]) in page
    make.job(developer)
    assert Task.objects.exists()
    assert "Running now" in as_(developer).get(reverse("home")).content.decode()
