"""What a full disk does to an upload, on a real file system that is small."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.files.storage import FileSystemStorage
from django.core.files.uploadedfile import SimpleUploadedFile

from datasets.models import Dataset
from tests.factories import bearer
from tests.training import make
from workers.models import Artifact, Task

pytestmark = pytest.mark.django_db
MIB = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("where", ["temporary", "stored"])
def test_an_upload_that_finds_no_room_is_told_and_leaves_nothing(
    client, settings, monkeypatch, small_disk, where
):
    if where == "temporary":
        settings.FILE_UPLOAD_TEMP_DIR = small_disk
    else:
        monkeypatch.setattr("workers.files.default_storage", FileSystemStorage(small_disk))
    by = make.member()

    def post(size: int):
        content = b"a,b\n" + b"1,some text\n" * (size // 12)
        fields = {"file": SimpleUploadedFile("table.csv", content)}
        return client.post("/api/datasets/upload", fields, headers=bearer(by.user))

    refused = post(5 * MIB)
    assert refused.status_code == 507, refused.content
    assert refused["Content-Type"] == "application/problem+json"
    told = refused.json()
    assert told["code"] == "no-room"
    assert "disk is full" in told["detail"]
    assert not Dataset.objects.exists()
    assert not Artifact.objects.exists()
    assert not Task.objects.exists()
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
    taken = post(MIB)
    assert taken.status_code == 202, taken.content
    if where == "stored":
        assert [path.stat().st_size for path in small_disk.rglob("*") if path.is_file()]
