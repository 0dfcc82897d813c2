"""Zip archives of class folders: what becomes of the pictures, and of what is none."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image

from datasets import actions, pictures
from organizations.models import Role
from tests.datasets.ingesting import read
from tests.datasets.nodes import ingest_next
from tests.datasets.test_nasty_files import refused
from tests.factories import bearer
from tests.training import make

RANDOM = np.random.default_rng(0)


def picture(
    format: str = "PNG", size: tuple[int, int] = (24, 16), mode: str = "RGB", **how: object
) -> bytes:
    """A picture of noise, unlike any other."""
    pixels = RANDOM.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(target, format, **how)
    return target.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def classes(root: str = "", count: int = 12) -> dict[str, bytes]:
    return {
        f"{root}{label}/{number}.png": picture()
        for label in ("cats", "dogs")
        for number in range(count)
    }


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("root", ["", "pets/", "a/b/"])
def test_folders_name_the_classes(tmp_path, root):
    files = classes(root)
    result = read(tmp_path, zipped(files), "pets.zip")
    assert result.frame.columns == ["image", "label"]
    assert result.frame.schema["image"] == pl.Binary
    assert result.frame["label"].to_list() == ["cats"] * 12 + ["dogs"] * 12
    assert result.frame["image"].to_list() == list(files.values())  # untouched
    assert result.dtypes == {"image": "binary", "label": "string"}
    assert result.roles == {"image": "image", "label": "categorical"}
    about = result.column("image")
    assert (about["distinct"], about["missing"], about["formats"]) == (24, 0, {"PNG": 24})
    assert about["width"] == {"min": 24, "median": 24, "max": 24}
    assert len(about["samples"]) == 12
    assert all(one.startswith("data:image/jpeg;base64,") for one in about["samples"])


def test_parts_are_put_together(tmp_path):
    files = classes("pets/train/") | classes("pets/Test/", 3)
    result = read(tmp_path, zipped(files), "pets.zip")
    assert result.frame["label"].value_counts(sort=True).rows() == [("cats", 15), ("dogs", 15)]
    assert "train" in result.notices


@pytest.mark.parametrize(
    ("format", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "RGB"),
     ("WEBP", "RGBA"), ("TIFF", "L"), ("PNG", "1"), ("PNG", "LA"), ("TIFF", "CMYK")],
)  # fmt: skip
def test_every_kind_of_picture_is_stored_as_one_of_two(format, mode):
    found = pictures.normalised(picture(format, mode=mode), sample=True)
    kept = decoded(found.data)
    assert kept.format in {"JPEG", "PNG"}
    assert (kept.size, found.format) == ((24, 16), format)
    assert kept.mode in {"RGB", "L", "RGBA", "P"}


def test_sixteen_bits_become_eight():
    target = io.BytesIO()
    Image.fromarray(np.array([[0, 65535], [32768, 256]], dtype=np.uint16)).save(target, "PNG")
    kept = np.asarray(decoded(pictures.normalised(target.getvalue()).data))
    assert kept.tolist() == [[0, 255], [128, 1]]


def test_large_pictures_are_made_smaller_and_upright(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side
    turned[0x010F] = "a camera that told too much"
    large = picture("JPEG", (2000, 1000), exif=turned.tobytes())
    found = pictures.normalised(large)
    assert decoded(found.data).size == (256, 512)
    assert not decoded(found.data).getexif()
    result = read(tmp_path, zipped(classes() | {"cats/large.jpg": large}), "pets.zip")
    assert "1 pictures were larger than 512 pixels" in result.notices


def test_what_can_not_be_read_is_set_aside_by_name(tmp_path):
    files = classes(count=30) | {
        "cats/broken.png": picture()[:200],
        "cats/empty.jpg": b"",
        "dogs/note.jpg": b"I am no picture",
        "../../etc/cats/up.png": picture(),
        "/dogs/root.png": picture(),
        "cover.png": picture(),
    }
    result = read(tmp_path, zipped(files), "pets.zip")
    assert result.frame.height == 60
    assert result.data["rejected"] == 6
    assert result.rejects is not None
    reasons = dict(result.rejects.select("raw", "reason").rows())
    assert "damaged" in reasons["cats/broken.png"]
    assert "empty" in reasons["cats/empty.jpg"]
    assert "no picture" in reasons["dogs/note.jpg"]
    assert "out of the archive" in reasons["../../etc/cats/up.png"]
    assert "no class's folder" in reasons["cover.png"]
    assert not (tmp_path.parent / "etc").exists()
    assert result.notices.startswith("6 pictures can't be read")


def test_too_many_that_can_not_be_read(tmp_path):
    files = classes() | {f"cats/x{number}.jpg": b"nothing" for number in range(20)}
    error = refused(tmp_path, zipped(files), "pets.zip")
    assert error.code == "bad-rows"
    assert "cats/x0.jpg" in error.sentence


def test_what_lies_about_in_archives_is_left_out(tmp_path):
    files = classes() | {
        "__MACOSX/cats/._0.png": b"\0" * 30,
        "cats/.DS_Store": b"\0" * 30,
        "dogs/Thumbs.db": b"\0" * 30,
        "README.txt": b"Take them.",
    }
    result = read(tmp_path, zipped(files), "pets.zip")
    assert (result.frame.height, result.data["rejected"]) == (24, 0)
    assert "README.txt" in result.notices


def test_copies_are_told(tmp_path):
    files = classes()
    files["dogs/copy.png"] = files["cats/0.png"]
    result = read(tmp_path, zipped(files), "pets.zip")
    assert result.column("image")["distinct"] == 24
    assert "1 pictures are copies of others" in result.notices


@pytest.mark.parametrize("files", [{"1.png": 0, "2.png": 0}, {"cats/1.png": 0, "cats/2.png": 0}])
def test_without_folders_there_are_no_classes(tmp_path, files):
    error = refused(tmp_path, zipped({name: picture() for name in files}), "pets.zip")
    assert error.code == "no-class-folders"
    assert "cats/1.jpg" in error.sentence


def test_more_than_may_be_unpacked(tmp_path):
    noise = {f"{label}/{n}.bmp": picture("BMP", (64, 64)) for label in "ab" for n in range(30)}
    assert read(tmp_path, zipped(noise), "a.zip", max_decoded_bytes=1 << 20).frame.height == 60
    error = refused(tmp_path, zipped(noise), "a.zip", max_decoded_bytes=200_000)
    assert error.code == "too-large-decoded"


def test_bombs_are_not_believed(tmp_path, monkeypatch):
    """A picture that is all one colour, or a file that is all zeros, packs to next to nothing."""
    monkeypatch.setattr(pictures, "MAX_BYTES", 1 << 20)
    for side, told in ((9_000, "9,000 × 9,000"), (60_000, "far more pixels")):
        bomb = picture("PNG", (10, 10))
        head = b"IHDR" + struct.pack(">II", side, side) + bomb[24:29]
        wide = bomb[:12] + head + struct.pack(">L", zlib.crc32(head)) + bomb[33:]
        with pytest.raises(pictures.Unfit, match=told):
            pictures.normalised(wide)
    files = classes() | {"cats/zeros.png": bytes(2 << 20)}
    result = read(tmp_path, zipped(files), "pets.zip")
    assert result.rejects is not None
    assert "larger than 1.0 MiB" in result.rejects["reason"][0]


def test_a_list_of_files_that_is_too_long(tmp_path, monkeypatch):
    content = zipped(classes())
    monkeypatch.setattr(pictures, "MAX_PICTURES", 20)
    assert refused(tmp_path, content, "pets.zip").code == "too-many-pictures"
    monkeypatch.setattr(pictures, "MAX_DIRECTORY", 500)
    monkeypatch.setattr(zipfile, "ZipFile", None)  # it is not even opened
    assert refused(tmp_path, content, "pets.zip").code == "too-many-pictures"


def test_a_damaged_archive(tmp_path):
    content = zipped(classes())
    assert refused(tmp_path, content[: len(content) // 2], "pets.zip").code == "bad-zip"


def test_an_archive_with_a_password(tmp_path):
    content = bytearray(zipped({"cats/1.png": picture(), "dogs/1.png": picture()}))
    at = 0
    while (at := content.find(b"PK\x01\x02", at)) >= 0:
        content[at + 8] |= 1
        at += 4
    assert refused(tmp_path, bytes(content), "pets.zip").code == "zip-locked"


def test_a_group_of_rows_is_small_enough_for_a_preview(tmp_path):
    result = read(tmp_path, zipped(classes(count=200)), "pets.zip")
    assert result.frame.height == 400
    lazy = pl.scan_parquet(Path(tmp_path) / "data.parquet")
    assert lazy.slice(390, 5).collect()["label"].to_list() == ["dogs"] * 5


# --- In Parquet -----------------------------------------------------------------------------------


def parquet(images: list[bytes | None]) -> bytes:
    target = io.BytesIO()
    table = {"image": images, "prediction": [f"n{row % 3}" for row in range(len(images))]}
    pl.DataFrame(table, schema={"image": pl.Binary, "prediction": pl.String}).write_parquet(target)
    return target.getvalue()


def test_pictures_in_parquet_stay_pictures(tmp_path):
    """As a batch's predictions over pictures come back."""
    files: list[bytes | None] = [picture() for _ in range(30)]
    result = read(tmp_path, parquet([*files, None]), "scored.parquet")
    assert result.frame["image"].to_list() == [*files, None]
    assert result.roles == {"image": "image", "prediction": "categorical"}
    about = result.column("image")
    assert (about["missing"], about["distinct"]) == (1, 30)
    assert 10 <= len(about["samples"]) <= 12


def test_bytes_that_are_no_pictures_are_set_aside_or_refused(tmp_path):
    files: list[bytes | None] = [picture() for _ in range(30)]
    result = read(tmp_path / "few", parquet([*files, b"nothing"]), "scored.parquet")
    assert (result.frame.height, result.data["rejected"]) == (30, 1)
    assert result.rejects is not None
    assert result.rejects["raw"].to_list() == ["row 31"]
    error = refused(tmp_path / "many", parquet([b"%d" % row for row in range(50)]), "x.parquet")
    assert error.code == "bad-rows"
    assert "no picture" in error.sentence


# --- On the page and in the API -------------------------------------------------------------------


@pytest.fixture
def by(db):
    return make.member(Role.DEVELOPER)


@pytest.fixture
def dataset(by, tmp_path):
    upload = SimpleUploadedFile("pets.zip", zipped(classes("pets/")))
    made = actions.upload(by, upload)
    ingest_next(tmp_path)
    made.refresh_from_db()
    assert made.state == "ready"
    return made


def test_the_page_shows_them(client, by, dataset):
    client.force_login(by.user)
    page = client.get(f"/data/{dataset.pk}").content.decode()
    assert page.count("data:image/jpeg;base64,") == 12
    assert "24 × 16 pixels" in page
    assert page.count("role-choice") == 1  # what holds pictures can't be said to hold anything else
    rows = client.get(f"/data/{dataset.pk}?tab=rows").content.decode()
    assert rows.count('class="thumbnail"') == 24
    address = f"/data/versions/{dataset.latest_id}/picture?column=image&row=3"
    assert address.replace("&", "&amp;") in rows
    shown = client.get(address)
    assert shown["Content-Type"] == "image/png"
    assert decoded(shown.content).size == (24, 16)
    assert "sandbox" in shown["Content-Security-Policy"]
    assert client.get(address.replace("column=image", "column=label")).status_code == 400
    assert client.get(address.replace("row=3", "row=24")).status_code == 404


def test_the_api_gives_them_one_by_one(client, by, dataset):
    def ask(path, **asked):
        return client.get(f"/api/datasets/{dataset.pk}/{path}", asked, headers=bearer(by.user))

    first = ask("preview", rows=2).json()["rows"][0]
    assert first["label"] == "cats"
    assert first["image"].startswith("picture, ")
    found = [ask("image", row=row) for row in (0, 23)]
    assert [decoded(one.content).format for one in found] == ["PNG", "PNG"]
    assert found[0].content != found[1].content
    assert ask("image", row=24).status_code == 404
    assert ask("image", row="x").status_code == 400
    assert ask("image", column="label").json()["errors"]["column"]


def test_a_table_of_pictures_needs_a_model_that_reads_them(by, dataset):
    """Engines for tables leave the column out, and nobody can predict a picture."""
    columns = {column["name"]: column["role"] for column in dataset.latest.columns}
    assert columns == {"image": "image", "label": "categorical"}
    with pytest.raises(actions.Invalid):
        actions.change_dataset(by, dataset, roles={"image": "numeric"})
