"""Raster images: the full range of PNG, JPEG and PGM becomes the display, bad files an ImageError."""

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

from data_prep.errors import ImageError
from data_prep.imageio.frame import Grid, Pixels
from data_prep.imageio.pose import UPRIGHT
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


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_tells_what_makes_a_picture_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    """As Pillow does it; the pixels stay as they are stored."""
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(make_picture(np.uint8)).save(path, exif=exif.tobytes())
    frame = open_raster(path).read_frame()
    with Image.open(path) as image:
        np.testing.assert_array_equal(frame.pixels, np.asarray(image))
        np.testing.assert_array_equal(frame.pose.turn(frame.pixels), ImageOps.exif_transpose(image))
    assert frame.warnings == ()


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0"])
def test_an_orientation_that_there_is_not_is_told(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(make_picture(np.uint8)).save(path, exif=exif)
    frame = open_raster(path).read_frame()
    assert (frame.pose, frame.warnings) == (UPRIGHT, ("orientation_unknown",))


def test_real_film_scans_are_read(real_data: Path) -> None:
    paths = sorted((real_data / "mini_mias").glob("*.pgm"))
    assert len(paths) == 4
    for path in paths:
        frame = open_raster(path).read_frame()
        assert frame.pixels.shape == (1024, 1024)
        assert to_display(frame).max() > 0.5


@pytest.mark.parametrize(("bits", "shown"), [(8, 8), (10, 10), (12, 12), (13, 14), (14, 14), (15, 16)])
@pytest.mark.parametrize("mode", ["grey", "RGB", "RGBA"])
def test_values_of_fewer_bits_in_a_file_of_16_get_a_detectors_range(
    tmp_path: Path, bits: int, shown: int, mode: str
) -> None:
    """As `cv2.imwrite(path, dataset.pixel_array)` leaves them."""
    pixels = (make_picture(np.uint16) >> (16 - bits)).astype(np.uint16)
    alpha = [np.full_like(pixels, 2**16 - 1)] * (mode == "RGBA")
    colours = pixels if mode == "grey" else np.dstack([pixels] * 3 + alpha)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(colours))
    frame = open_raster(tmp_path / "a.png").read_frame()
    np.testing.assert_allclose(to_display(frame), pixels / (2**shown - 1), atol=1e-5)
    assert frame.warnings == ("low_range",)


def test_a_darker_picture_of_a_series_has_the_same_range(tmp_path: Path) -> None:
    for largest in (1500, 4095):
        frame = open_raster(save(tmp_path / "a.png", np.full((9, 9), largest, np.uint16))).read_frame()
        np.testing.assert_allclose(to_display(frame), largest / 4095, atol=1e-6)


def test_bits_that_a_png_states_are_its_range(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((9, 9), 300, np.uint16))
    content = path.read_bytes()
    body = b"sBIT" + bytes([11])
    chunk = struct.pack(">I", 1) + body + struct.pack(">I", zlib.crc32(body))
    place = content.index(b"IDAT") - 4
    path.write_bytes(content[:place] + chunk + content[place:])
    assert to_display(open_raster(path).read_frame()).max() == pytest.approx(300 / 2047)


@pytest.mark.parametrize("largest", [100, 1000, 4095, 65535])
@pytest.mark.parametrize("comment", [b"", b"# made by 9 8 7\n"])
def test_a_pgm_states_its_largest_value(tmp_path: Path, largest: int, comment: bytes) -> None:
    pixels = np.linspace(0, largest / 3 if largest < 65535 else largest, 63).round().reshape(7, 9)
    body = pixels.astype(">u2" if largest > 255 else "u1").tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5\n" + comment + b"9 7\n%d\n" % largest + body)
    frame = open_raster(tmp_path / "a.pgm").read_frame()
    np.testing.assert_allclose(to_display(frame), pixels / largest, atol=0.003 if largest < 256 else 1e-4)
    assert frame.warnings == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_is_transparent_is_black(tmp_path: Path, dtype: type[Any], mode: str) -> None:
    pixels, maximum = make_picture(dtype), np.iinfo(dtype).max
    alpha = np.where(np.arange(30) < 10, 0, maximum).astype(dtype) * np.ones_like(pixels)
    pixels[20:, :10] = maximum  # white that nobody sees
    channels = [pixels] * (3 if mode == "RGBA" else 1)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.dstack([*channels, alpha])))
    shown = to_display(open_raster(tmp_path / "a.png").read_frame())
    np.testing.assert_allclose(shown, np.where(alpha > 0, pixels / maximum, 0), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_transparent_grey_is_black(tmp_path: Path, dtype: type[Any]) -> None:
    pixels = make_picture(dtype)
    value = int(pixels[5, 5])
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=value)
    frame = open_raster(tmp_path / "a.png").read_frame()
    np.testing.assert_array_equal(frame.pixels, np.where(pixels == value, 0, pixels))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"II*\0" + bytes(200), "is a TIFF, which is not read here; PNG, JPEG and PGM are read"),
        (bytes(128) + b"DICM" + bytes(200), "is DICOM, so its name should end with .dcm"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is a PNG that is damaged or cut short"),
        (b"<!DOCTYPE html>" + bytes(99), "a page of HTML or XML, as a failed download leaves it"),
        (bytes(99), "of no kind that is known here; PNG, JPEG and PGM are read: save it as one of them"),
    ],
)
def test_a_message_names_what_the_file_is(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=said) as error:
        open_raster(tmp_path / "a.png")
    assert error.value.reason == "not_image"
