"""Pictures for engines: from a column's values (or a request's) to arrays of pixels.

Shared by the engines that learn from pictures (torch.py's resnet and vgg, tensorflow.py's inception
and mobilenet): what a picture looks like to one of them is what it looks like to the other. An
image column's values reach an engine as ``frame.RAW``: bytes (JPEG or PNG, as datasets/pictures.py
stores them), or from a request a text of base64, with or without ``data:image/png;base64,`` before.

A copy of this file travels in every artifact of a picture model: it needs numpy and Pillow alone.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .frame import Frame
from .tables import Array, InputError

MOST_BYTES = 32 << 20
MOST_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
GREY = 128  # of a picture that is missing
IN_MEMORY = 1 << 30  # bytes of pixels that are decoded once and kept; more are decoded every epoch


def bytes_of(value: object) -> bytes:
    """The file behind a value of an image column. Raises InputError for anything else."""
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
    elif isinstance(value, str):
        head, comma, tail = value.partition(",")
        text = tail if comma and head.startswith("data:") else value
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise _wrong("is no base64 of a picture") from None
    else:
        raise _wrong("has to be a picture: its bytes, in JSON as base64")
    if len(data) > MOST_BYTES:
        raise _wrong(f"is larger than {MOST_BYTES >> 20} MiB")
    return data


def pixels_of(value: object, side: int) -> Array:
    """One picture as side x side x 3 bytes (uint8, RGB): upright, scaled, the middle cut out.

    None is a grey area. Raises InputError for what is no picture, or has too many pixels.
    """
    from PIL import Image, ImageOps

    if value is None:
        return np.full((side, side, 3), GREY, dtype=np.uint8)
    try:
        with Image.open(io.BytesIO(bytes_of(value)), formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise _wrong(f"has more than {MOST_PIXELS // 1_000_000} million pixels")
            opened.draft("RGB", (2 * side, 2 * side))  # a JPEG may be decoded smaller at once
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except InputError:
        raise
    except Exception as error:  # decoders are many, and don't agree on what to raise
        raise _wrong("is no picture that can be read") from error
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    fitted = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BILINEAR)
    return np.asarray(fitted, dtype=np.uint8)


def _wrong(what: str) -> InputError:
    return InputError(f"The image {what}.", "wrong_type", {"image": f"It {what}."})


def stack(values: Sequence[object] | Array, side: int, threads: int = 1) -> Array:
    """Pictures x side x side x 3 (uint8). Decoding lets other threads run, so several help."""
    found = np.empty((len(values), side, side, 3), dtype=np.uint8)

    def one(place: int) -> None:
        found[place] = pixels_of(values[place], side)

    if threads > 1 and len(values) > 8:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(len(values))))
    else:
        for place in range(len(values)):
            one(place)
    return found


def column_of(frame: Frame) -> Array:
    """The values of the frame's column of pictures: the only one, or the first of several."""
    return np.asarray(next(iter(frame.features.values())), dtype=object)


def samples_of(frame: Frame, side: int, threads: int = 1) -> Array:
    """The frame's pictures with rows as first axis, for :func:`pixels`.

    Pixels where all of them fit in memory, else the values, to be decoded each time anew.
    """
    values = column_of(frame)
    fits = len(values) * side * side * 3 <= IN_MEMORY
    return stack(values, side, threads) if fits else values


def pixels(samples: Array, side: int, threads: int = 1) -> Array:
    """Pictures x side x side x 3 (uint8) of some of the rows of :func:`samples_of`."""
    return samples if samples.dtype == np.uint8 else stack(samples, side, threads)


def shifted(seen: Array, random: np.random.Generator, share: float = 0.08) -> Array:
    """The same pictures, each moved a little in a direction of its own; edges are stretched.

    Keeps small sets of pictures from being learnt by heart; a mirror would not do for writing.
    """
    count, side = seen.shape[:2]
    most = max(1, round(side * share))
    moved = np.empty_like(seen)
    places = np.arange(side)
    for at, (down, right) in enumerate(random.integers(-most, most + 1, (count, 2))):
        rows = np.clip(places + down, 0, side - 1)
        columns = np.clip(places + right, 0, side - 1)
        moved[at] = seen[at][rows][:, columns]
    return moved


def usual_side(values: Sequence[Any] | Array, most: int, least: int) -> int:
    """A side that suits these pictures: the median of their shorter sides, within limits."""
    from PIL import Image

    sides = []
    for value in values[:: max(1, len(values) // 50)]:
        try:
            with Image.open(io.BytesIO(bytes_of(value)), formats=FORMATS) as opened:
                sides.append(min(opened.size))
        except (InputError, OSError):
            continue
    return int(np.clip(np.median(sides) if sides else most, least, most))
