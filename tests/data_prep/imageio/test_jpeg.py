"""JPEG and JPEG-LS: padding, missing ends, cut and damaged data."""

import re
import struct
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from data_prep.errors import ImageError
from data_prep.imageio import jpeg
from data_prep.imageio.frame import Pixels
from tests.data_prep.imageio.test_codecs import make_smooth

PIXELS = make_smooth(101, 75)
BRIGHTNESS = (PIXELS >> 4).astype(np.uint8)


def save_with_pillow(**options: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(BRIGHTNESS).save(stream, "JPEG", **options)
    return stream.getvalue()


KINDS: dict[str, bytes] = {
    "baseline": imagecodecs.jpeg8_encode(BRIGHTNESS, level=90),
    "extended": imagecodecs.jpeg8_encode(PIXELS, level=90, bitspersample=12),
    "restarts": save_with_pillow(restart_marker_rows=1),
    "lossless": imagecodecs.jpeg8_encode(PIXELS, lossless=True, predictor=1, bitspersample=12),
    "lossless, predictor 6": imagecodecs.jpeg8_encode(PIXELS, lossless=True, predictor=6, bitspersample=12),
    "JPEG-LS": imagecodecs.jpegls_encode(PIXELS),
    "near-lossless JPEG-LS": imagecodecs.jpegls_encode(PIXELS, level=3),
}
each_kind = pytest.mark.parametrize("encoded", KINDS.values(), ids=KINDS)


def decode(encoded: bytes) -> Pixels:
    return jpeg.decode(encoded, jpeg.read_stream(encoded))


def reason(encoded: bytes) -> str:
    with pytest.raises((ImageError, RuntimeError)) as error:
        decode(encoded)
    return error.value.reason if isinstance(error.value, ImageError) else "decode_error"


def punch(encoded: bytes, place: int, size: int = 64) -> bytes:
    return encoded[:place] + bytes(size) + encoded[place + size :]


@each_kind
@pytest.mark.parametrize("padding", [b"\0", b"\xff\xff\0", bytes(999), b"\xff" * 999, b"\0\xff\xd8\0"])
def test_what_follows_the_end_marker_is_padding(encoded: bytes, padding: bytes) -> None:
    np.testing.assert_array_equal(decode(encoded + padding), decode(encoded))


@each_kind
@pytest.mark.parametrize("padding", [b"", b"\0", b"\xff\xff"])
def test_a_frame_without_its_end_marker_is_read(encoded: bytes, padding: bytes) -> None:
    np.testing.assert_array_equal(decode(encoded[:-2] + padding), decode(encoded))


@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
@pytest.mark.parametrize("count", [3, 7, 64])
def test_encoders_may_align_the_end_marker(fill: bytes, count: int) -> None:
    """With JPEG's fill bytes, T.81 B.1.1.2, and with zeros; CharLS takes neither."""
    for name, encoded in KINDS.items():
        if "JPEG-LS" not in name:
            aligned = encoded[:-2] + count * fill + encoded[-2:]
            np.testing.assert_array_equal(decode(aligned), decode(encoded), name)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("lossless", [False, True])
def test_fill_bytes_may_stand_before_any_marker(count: int, lossless: bool) -> None:
    encoded = KINDS["lossless"] if lossless else KINDS["restarts"]
    filled = re.sub(rb"\xff(?=[\xd0-\xd7\xd9\xda\xdb\xc4])", b"\xff" * (1 + count), encoded)
    assert len(filled) > len(encoded) + 2 * count
    np.testing.assert_array_equal(decode(filled), decode(encoded))


def test_a_progressive_frame_may_end_in_the_grey_that_no_data_decode_to() -> None:
    picture = BRIGHTNESS[:96, :64].copy()
    picture[-16:, -16:] = 128
    stream = BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", progressive=True, quality=95)
    assert decode(stream.getvalue())[-1, -1] == 128


@each_kind
@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_a_byte_of_padding_before_the_end_marker_is_read(encoded: bytes, fill: bytes) -> None:
    np.testing.assert_array_equal(decode(encoded[:-2] + fill + encoded[-2:]), decode(encoded))


@each_kind
def test_a_frame_that_ends_before_its_picture_is_truncated(encoded: bytes) -> None:
    start = jpeg.read_stream(encoded).scan[0]
    for length in [*range(len(encoded) - 12, len(encoded) - 2), (start + len(encoded)) // 2]:
        cut = encoded[:length]
        assert reason(cut) in {"truncated", "decode_error" if cut.endswith(b"\xff") else ""}, length


@each_kind
def test_a_cut_frame_with_an_end_marker_is_damaged(encoded: bytes) -> None:
    start, end = jpeg.read_stream(encoded).scan
    assert reason(encoded[: (start + end) // 2].rstrip(b"\xff") + b"\xff\xd9") == "decode_error"


@each_kind
def test_a_hole_in_the_data_is_damage(encoded: bytes) -> None:
    """Where it is seen: as many bits may, by chance, hold as many samples."""
    start, end = jpeg.read_stream(encoded).scan
    places = np.linspace(start + 100, end - 200, 12).astype(int)
    found = 0
    for place in places:
        try:
            decode(punch(encoded, place))
        except (ImageError, RuntimeError):
            found += 1
    assert found >= 8


def test_a_marker_within_the_data_is_damage() -> None:
    encoded = KINDS["lossless"]
    middle = len(encoded) // 2
    broken = encoded[:middle] + b"\xff\x3c" + encoded[middle + 2 :]
    with pytest.raises(ImageError, match=f"marker FF3C .* byte {middle}") as error:
        decode(broken)
    assert error.value.reason == "decode_error"


def test_restart_markers_are_counted_and_in_order() -> None:
    encoded = KINDS["restarts"]
    for marker, other in [(b"\xff\xd3", b"\xff\xd4"), (b"\xff\xd0", b"\x12\x34")]:
        assert reason(encoded.replace(marker, other, 1)) == "decode_error"


def test_a_flat_grey_picture_is_no_damage() -> None:
    """Mid-grey is also what libjpeg-turbo makes of no data."""
    for flat in (np.full((40, 24), 128, np.uint8), np.full((40, 24), 2048, np.uint16)):
        bits = 8 if flat.itemsize == 1 else 12
        encoded = imagecodecs.jpeg8_encode(flat, level=90, bitspersample=bits)
        np.testing.assert_array_equal(decode(encoded), flat)
        lossless = imagecodecs.jpeg8_encode(flat, lossless=True, predictor=1, bitspersample=bits)
        np.testing.assert_array_equal(decode(lossless), flat)


@pytest.mark.parametrize("value", [0, 1, 200, 255])
@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (9, 200)])
def test_flat_pictures_are_no_damage(value: int, shape: tuple[int, int]) -> None:
    flat = np.full(shape, value, np.uint8)
    for options in ({"level": 95}, {"level": 50, "optimize": True}, {"lossless": True, "predictor": 1}):
        assert np.abs(decode(imagecodecs.jpeg8_encode(flat, **options)).astype(int) - flat).max() < 6


def test_a_progressive_frame_without_its_end_marker_is_truncated() -> None:
    """Nothing says how many scans should follow."""
    encoded = save_with_pillow(progressive=True)
    assert decode(encoded + bytes(9)).shape == BRIGHTNESS.shape
    assert reason(encoded[:-2]) == "truncated"


def test_headers_that_never_end_are_refused() -> None:
    for junk in (b"\xff\xe0\0\2" * 10_000, b"\xff" * 100_000, b"\xff\xdd\0\2" + KINDS["baseline"][2:]):
        with pytest.raises(ImageError) as error:
            jpeg.read_stream(jpeg.START_OF_IMAGE + junk)
        assert error.value.reason == "decode_error"


def test_a_frame_with_two_starts_is_refused() -> None:
    encoded = KINDS["baseline"]
    place = encoded.index(b"\xff\xc0")
    (length,) = struct.unpack_from(">H", encoded, place + 2)
    twice = encoded[:place] + encoded[place : place + 2 + length] + encoded[place:]
    with pytest.raises(ImageError, match="2 starts of frame"):
        jpeg.read_stream(twice)
