"""Pictures for engines: every kind of value becomes the same pixels, or a clear error."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from training.engines import images
from training.engines.frame import Frame
from training.engines.tables import InputError


def file_of(image: Image.Image, format: str = "PNG") -> bytes:
    target = io.BytesIO()
    image.save(target, format)
    return target.getvalue()


HALVES = Image.fromarray(
    np.concatenate(
        [np.full((20, 10, 3), (200, 0, 0), np.uint8), np.full((20, 10, 3), (0, 0, 200), np.uint8)],
        axis=1,
    )
)


def test_bytes_and_base64_are_the_same_picture():
    data = file_of(HALVES)
    text = base64.b64encode(data).decode()
    pixels = images.pixels_of(data, 8)
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    assert pixels[4, 0].tolist() == [200, 0, 0]
    assert pixels[4, 7].tolist() == [0, 0, 200]
    for other in (text, f"data:image/png;base64,{text}", bytearray(data)):
        assert np.array_equal(images.pixels_of(other, 8), pixels)


def test_the_middle_is_cut_out_and_nothing_is_squeezed():
    wide = Image.new("RGB", (60, 20), (0, 200, 0))
    wide.paste(HALVES, (20, 0))
    assert np.array_equal(images.pixels_of(file_of(wide), 20), np.asarray(HALVES))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "I;16"])
def test_every_mode_becomes_three_channels(mode):
    white = (
        Image.new("I;16", (9, 9), 65535) if mode == "I;16" else Image.new("RGB", (9, 9), "white")
    )
    data = file_of(white if mode == "I;16" else white.convert(mode))
    assert images.pixels_of(data, 4).tolist() == np.full((4, 4, 3), 255).tolist()


def test_what_lets_light_through_lies_on_white():
    data = file_of(Image.new("RGBA", (9, 9), (0, 0, 0, 0)))
    assert images.pixels_of(data, 4).min() == 255


def test_a_picture_that_is_missing_is_grey():
    assert set(images.pixels_of(None, 4).ravel().tolist()) == {128}


@pytest.mark.parametrize("value", [b"", b"no picture", "no base64!", "aGVsbG8=", 7, ["x"]])
def test_what_is_no_picture_is_told(value, monkeypatch):
    with pytest.raises(InputError) as caught:
        images.pixels_of(value, 8)
    assert caught.value.code == "wrong_type"


def test_too_many_pixels_are_not_decoded(monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 100)
    with pytest.raises(InputError, match="million pixels"):
        images.pixels_of(file_of(HALVES), 8)


@pytest.mark.parametrize("fits", [True, False])
def test_a_column_is_decoded_at_once_or_as_it_is_asked(monkeypatch, fits):
    monkeypatch.setattr(images, "IN_MEMORY", 1 << 30 if fits else 0)
    values = np.empty(20, dtype=object)
    values[:] = [file_of(Image.new("RGB", (6, 6), (shade, 0, 0))) for shade in range(20)]
    samples = images.samples_of(Frame({"image": values}, 20), 4, threads=2)
    assert (samples.dtype == np.uint8) == fits
    rows = np.array([3, 1, 19, 0, 7])
    found = images.pixels(samples[rows], 4)
    assert found.shape == (5, 4, 4, 3)
    assert found[:, 0, 0, 0].tolist() == rows.tolist()
    assert images.usual_side(values, 224, 4) == 6


def test_moving_keeps_what_is_seen():
    pixels = np.zeros((5, 32, 32, 3), dtype=np.uint8)
    pixels[:, 14:18, 14:18] = 255
    moved = images.shifted(pixels, np.random.default_rng(0))
    assert (moved == 255).sum(axis=(1, 2, 3)).tolist() == [48] * 5
    assert len({one.tobytes() for one in moved}) > 1
