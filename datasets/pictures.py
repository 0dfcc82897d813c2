"""A zip archive with a folder of pictures per class, as a table: the bytes of each picture (JPEG or
PNG) and its folder's name.

Archives and pictures are attacks too. Nothing is unpacked to disk, a size is counted rather than
believed, and a picture's size in pixels is known before any is decoded. What is stored was decoded
here once, so that whoever reads it later knows what to expect: upright, no longer side than
``SIDE``, and without what a camera wrote about place and owner.

Imports no Django: it runs on nodes.
"""

import base64
import hashlib
import io
import stat
import statistics
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from datasets.delimited import Reject
from datasets.formats import size_text
from datasets.sniff import ACCEPTED, BadFile

SIDE = 512  # pixels of the longer side that is kept; no model here looks at more
MAX_PIXELS = 50_000_000  # of one picture as it comes
MAX_BYTES = 32 << 20  # of one picture as it comes
MAX_DIRECTORY = 64 << 20  # bytes of the archive's list of files
MAX_PICTURES = 200_000
AT_ONCE = 32  # pictures that are read at a time
SAMPLES = 12  # small copies for the data set's page
SAMPLE_SIDE = 72
COLUMN, LABEL = "image", "label"
ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
PARTS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
_JUNK = frozenset({"thumbs.db", "desktop.ini"})


class Unfit(Exception):
    """It is no picture that can be used, for the reason given."""


@dataclass(frozen=True)
class Picture:
    data: bytes  # JPEG or PNG
    width: int
    height: int
    format: str  # as it came
    smaller: bool = False  # than it came
    sample: str = ""  # a small copy as a data: address


@dataclass
class Some:
    """What came of a few files of the archive."""

    pictures: list[Picture] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    bytes_read: int = 0
    share: float = 0.0  # of all files, once these are done


# --- One picture ---------------------------------------------------------------------------------


def normalised(data: bytes, *, sample: bool = False) -> Picture:
    """The picture as it is stored. Raises Unfit for what is none, or is too large."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            kind = str(opened.format)
            if opened.width * opened.height > MAX_PIXELS:
                raise Unfit(
                    f"it has {opened.width:,} × {opened.height:,} pixels, and at most "
                    f"{MAX_PIXELS // 1_000_000} million are taken"
                )
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG may be decoded smaller at once
            as_it_is = kind in ("JPEG", "PNG") and opened.mode in ("RGB", "L", "RGBA", "P")
            turned = opened.getexif().get(0x0112, 1) != 1
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except Unfit:
        raise
    except Image.DecompressionBombError:
        raise Unfit("it unpacks to far more pixels than a picture has") from None
    except UnidentifiedImageError:
        raise Unfit("it is no picture, whatever it is called") from None
    except MemoryError:
        raise Unfit("it needs too much memory") from None
    # A damaged file may raise anything: decoders are many, and they don't agree.
    except Exception as error:
        raise Unfit(f"it is damaged ({_first_line(error)})") from None
    width, height = image.size
    smaller = max(width, height) > SIDE
    small = _sample(image) if sample else ""
    bare = not opened.info.get("exif") and not opened.info.get("icc_profile")
    if as_it_is and bare and not turned and not smaller and len(data) <= 4 * SIDE * SIDE:
        return Picture(data, width, height, kind, sample=small)
    image = _plain(image)
    image.thumbnail((SIDE, SIDE))
    target = io.BytesIO()
    if kind == "JPEG":
        image.convert("RGB").save(target, "JPEG", quality=92)
    else:
        image.save(target, "PNG")
    return Picture(target.getvalue(), *image.size, kind, smaller, small)


def _plain(image: Image.Image) -> Image.Image:
    """The same in eight bits a channel: grey, colours, or colours that let light through."""
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("RGB", "RGBA", "L"):
        return image.copy()
    through = image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if through else "L" if image.mode in ("1", "I", "F") else "RGB")


def _sample(image: Image.Image) -> str:
    small = _plain(image)
    small.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE))
    if small.mode == "RGBA":
        white = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(white, small)
    target = io.BytesIO()
    small.convert("RGB").save(target, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode("ascii")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


# --- The archive ---------------------------------------------------------------------------------


def is_workbook(path: Path) -> bool:
    """Whether the archive is an Excel file. Raises BadFile for a list of files that is too long."""
    _check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return "xl/workbook.xml" in archive.NameToInfo
    except zipfile.BadZipFile:
        return False


def _check_directory(path: Path) -> None:
    """Refuse an archive whose list of files would take too much memory.

    The list's length stands at the end of the file (APPNOTE.TXT 4.3.16, and 4.3.14 for Zip64), and
    is what ``zipfile`` goes by.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - (1 << 16) - 200))
        tail = file.read()
    lengths = []
    if (at := tail.rfind(b"PK\x05\x06")) >= 0 and len(tail) >= at + 22:
        lengths.append(struct.unpack_from("<L", tail, at + 12)[0] % 0xFFFFFFFF)
    if (at := tail.rfind(b"PK\x06\x06")) >= 0 and len(tail) >= at + 56:
        lengths.append(struct.unpack_from("<Q", tail, at + 40)[0])
    if max(lengths, default=0) > MAX_DIRECTORY:
        raise BadFile(
            f"The archive lists more files than can be read: at most {MAX_PICTURES:,} pictures "
            "are taken.",
            code="too-many-pictures",
            limit=MAX_PICTURES,
        )


class Archive:
    """The pictures of an archive, and which class each is of."""

    def __init__(self, path: Path, *, limit: int) -> None:
        """Raises BadFile where it is no archive of class folders. ``limit``: unpacked bytes."""
        self.limit = limit
        self.notices: list[str] = []
        self.rejects: list[Reject] = []
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise BadFile(
                f"The zip archive is damaged or incomplete ({_first_line(error)}). Make it again.",
                code="bad-zip",
            ) from None
        found = self._pictures()
        if len(found) > MAX_PICTURES:
            raise BadFile(
                f"The archive holds {len(found):,} pictures; at most {MAX_PICTURES:,} are taken.",
                code="too-many-pictures",
                limit=MAX_PICTURES,
            )
        self.found = self._labelled(found)
        step = max(1, len(self.found) // SAMPLES)
        self.samples = {number for number, *_ in self.found[step // 2 :: step][:SAMPLES]}

    def _pictures(self) -> list[tuple[int, zipfile.ZipInfo, tuple[str, ...]]]:
        """What is called a picture: its number in the archive, and the parts of its path."""
        found, others = [], []
        locked = 0
        for number, info in enumerate(self.archive.infolist(), 1):
            name = info.filename
            path = PurePosixPath(name.replace("\\", "/"))
            if info.is_dir() or "__MACOSX" in path.parts or path.name.lower() in _JUNK:
                continue
            if path.name.startswith("."):
                continue
            if path.suffix.lower() not in ENDINGS:
                others.append(name)
                continue
            locked += info.flag_bits & 1
            if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                self._reject(number, "its path leads out of the archive", name)
            elif stat.S_ISLNK(info.external_attr >> 16):
                self._reject(number, "it is a link", name)
            else:
                found.append((number, info, path.parts))
        if locked:
            raise BadFile(
                "The archive is locked with a password. Make it again without one.",
                code="zip-locked",
            )
        if not found:
            raise BadFile(
                "The file is a zip archive without pictures. Unpack it and upload the "
                f"{ACCEPTED} file inside. A data set of pictures is a zip of one folder per class.",
                code="zip-archive",
            )
        if others:
            some = ", ".join(other[-80:] for other in others[:3])
            self.notices.append(
                f"{len(others):,} files that are no pictures were left out: {some}"
                f"{', …' if len(others) > 3 else ''}."
            )
        return found

    def _reject(self, number: int, why: str, name: str) -> None:
        self.rejects.append(Reject(number, why, _shown(name)))

    def _labelled(
        self, found: list[tuple[int, zipfile.ZipInfo, tuple[str, ...]]]
    ) -> list[tuple[int, zipfile.ZipInfo, str]]:
        """The class of each: the first folder that tells pictures apart, ordered by class."""
        depth = 0
        while True:
            deeper = [parts for *_, parts in found if len(parts) > depth + 2]
            first = {parts[depth] for parts in deeper}
            stray = len(found) - len(deeper)  # a cover beside the folders hinders nobody
            if not deeper or stray > len(found) // 10:
                break
            if len(first) > 1 and not {name.lower() for name in first} <= PARTS:
                break
            if len(first) > 1:
                told = ", ".join(sorted(first))
                self.notices.append(f"The pictures of the folders {told} were put together.")
            depth += 1
        labelled = []
        for number, info, parts in found:
            if len(parts) < depth + 2:
                self._reject(number, "it lies in no class's folder", info.filename)
                continue
            label = " ".join(parts[depth].split())
            if not label or len(label) > 200 or any(ord(letter) < 32 for letter in parts[depth]):
                self._reject(number, "its folder's name can't name a class", info.filename)
                continue
            labelled.append((number, info, label))
        labels = {label for *_, label in labelled}
        if len(labels) < 2:
            told = f"all {len(found):,} pictures are in one" if labels else "there is none"
            raise BadFile(
                f"The archive needs one folder of pictures per class, and {told}. Put them into "
                "folders that are called like their classes, as in cats/1.jpg and dogs/1.jpg.",
                code="no-class-folders",
            )
        return sorted(labelled, key=lambda one: (one[2], one[0]))

    def jobs(self) -> Iterator["Reading"]:
        """The pictures, a few at a time."""
        for start in range(0, len(self.found), AT_ONCE):
            some = self.found[start : start + AT_ONCE]
            share = min(1.0, (start + AT_ONCE) / len(self.found))
            yield Reading(self.archive, some, self.samples, self.limit, share)


@dataclass(frozen=True)
class Reading:
    """A few pictures of an archive, to be read on any thread."""

    archive: zipfile.ZipFile
    found: Sequence[tuple[int, zipfile.ZipInfo, str]]
    samples: set[int]
    limit: int
    share: float

    def __call__(self) -> Some:
        done = Some(share=self.share)
        for number, info, label in self.found:
            try:
                data = self._bytes(info)
                done.bytes_read += len(data)
                picture = normalised(data, sample=number in self.samples)
            except Unfit as why:
                done.rejects.append(Reject(number, str(why), _shown(info.filename)))
                continue
            done.pictures.append(picture)
            done.labels.append(label)
        return done

    def _bytes(self, info: zipfile.ZipInfo) -> bytes:
        try:
            with self.archive.open(info) as file:
                data = file.read(MAX_BYTES + 1)
        except Exception as error:  # zlib, bz2 and lzma have errors of their own
            raise Unfit(f"it can't be unpacked ({_first_line(error)})") from None
        if len(data) > MAX_BYTES:
            raise Unfit(f"it is larger than {size_text(MAX_BYTES)}")
        if not data:
            raise Unfit("it is empty")
        return data


def _shown(name: str) -> str:
    return name[:500].replace("\0", "\N{SYMBOL FOR NULL}")


# --- What is in them -----------------------------------------------------------------------------


class Described:
    """Statistics of a column of pictures, gathered as they come."""

    def __init__(self) -> None:
        self.widths: list[int] = []
        self.heights: list[int] = []
        self.formats: Counter[str] = Counter()
        self.digests: set[bytes] = set()
        self.samples: list[str] = []
        self.made_small = self.missing = 0

    def add(self, picture: Picture | None) -> None:
        if picture is None:
            self.missing += 1
            return
        self.widths.append(picture.width)
        self.heights.append(picture.height)
        self.formats[picture.format] += 1
        self.made_small += picture.smaller
        self.digests.add(hashlib.sha256(picture.data).digest()[:16])
        if picture.sample:
            self.samples.append(picture.sample)

    @property
    def again(self) -> int:
        """How many pictures are a copy of an earlier one."""
        return len(self.widths) - len(self.digests)

    def column(self, name: str = COLUMN) -> dict[str, Any]:
        """As profile.describe tells of any column."""

        def spread(values: list[int]) -> dict[str, float]:
            if not values:
                return {}
            return {"min": min(values), "median": statistics.median(values), "max": max(values)}

        return {
            "name": name,
            "dtype": "binary",
            "role": "image",
            "missing": self.missing,
            "distinct": len(self.digests),
            "top": [],
            "width": spread(self.widths),
            "height": spread(self.heights),
            "formats": dict(self.formats.most_common()),
            "samples": self.samples[:SAMPLES],
        }
