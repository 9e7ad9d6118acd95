"""Raster images: the full range of PNG, JPEG and PGM becomes the display, bad files an ImageError."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.errors import ImageError
from data_prep.imageio.frame import Grid, Pixels
from data_prep.imageio.raster import open_raster
from data_prep.preprocessing.windowing import to_display


def make_picture(dtype: type[Any], rows: int = 40, columns: int = 30) -> Pixels:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (rows, columns)).astype(dtype)
    pixels[0, :2] = 0, np.iinfo(dtype).max
    return pixels


def save(path: Path, pixels: Pixels, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".pgm"])
def test_lossless_files_show_their_full_range(tmp_path: Path, dtype: type[Any], suffix: str) -> None:
    pixels = make_picture(dtype)
    file = open_raster(save(tmp_path / f"a{suffix}", pixels))
    assert (file.rows, file.columns, file.max_level) == (40, 30, 4)
    expected = pixels / np.iinfo(dtype).max
    np.testing.assert_allclose(to_display(file.read_frame()), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_equal_colour_channels_are_grey(tmp_path: Path, mode: str) -> None:
    pixels = make_picture(np.uint8)
    frame = open_raster(save(tmp_path / "a.png", pixels, mode)).read_frame()
    np.testing.assert_array_equal(frame.pixels, pixels)


def test_a_jpeg_is_close_to_what_was_saved(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :48]
    pixels = (100 + x + y).astype(np.uint8)
    frame = open_raster(save(tmp_path / "a.jpg", pixels)).read_frame()
    assert np.abs(frame.pixels.astype(int) - pixels).max() <= 4
    assert frame.transfer_syntax == "JPEG"


@pytest.mark.parametrize("content", [b"", b"text", bytes(300), b"\x89PNG\r\n\x1a\n", b"P5\n9 9\n255\n1"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        open_raster(path)
    assert error.value.reason == "not_image"
    assert "object at" not in str(error.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".pgm"])
@pytest.mark.parametrize("part", [0.1, 0.3, 0.7, 0.98])
def test_a_cut_file_is_never_half_an_image(tmp_path: Path, suffix: str, part: float) -> None:
    path = save(tmp_path / f"a{suffix}", make_picture(np.uint8, 200, 200))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(ImageError):
        open_raster(path)


def test_a_missing_file_is_an_io_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        open_raster(tmp_path / "absent.png")
    assert error.value.reason == "io_error"


def test_flipped_bytes_give_a_frame_or_an_image_error(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", make_picture(np.uint16))
    content = path.read_bytes()
    for place in range(8, len(content), 37):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :])
        try:
            frame = open_raster(path).read_frame()
        except ImageError:
            continue
        assert frame.pixels.shape == (frame.rows, frame.columns)


def test_a_size_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5\n30000 30000\n255\n")
    with pytest.raises(ImageError) as error:
        open_raster(path)
    assert error.value.reason == "too_large"


def test_lower_levels_are_averaged(tmp_path: Path) -> None:
    file = open_raster(save(tmp_path / "a.png", make_picture(np.uint8, 64, 48)))
    assert file.max_level == 5
    frame = file.read_frame(1)
    assert (frame.rows, frame.columns, frame.grid) == (64, 48, Grid(1))
    means = file.frame.pixels.reshape(32, 2, 24, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(frame.pixels, means, atol=0.51)


def test_real_film_scans_are_read(real_data: Path) -> None:
    paths = sorted((real_data / "mini_mias").glob("*.pgm"))
    assert len(paths) == 4
    for path in paths:
        frame = open_raster(path).read_frame()
        assert frame.pixels.shape == (1024, 1024)
        assert to_display(frame).max() > 0.5
