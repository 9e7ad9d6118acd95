"""JPEG 2000: what a codestream says of itself, and its levels from the shortened codestream, bit for bit."""

import io
import shutil
import struct
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from data_prep.errors import ImageError
from data_prep.imageio import jpeg2000
from data_prep.imageio.dicom import open_dicom
from data_prep.imageio.frame import Pixels
from data_prep.imageio.jpeg2000 import read_codestream, shorten
from data_prep.storage.byte_source import ByteSource, Span

STRUCTURES: dict[str, tuple[dict[str, Any], bool]] = {  # how Pillow writes it, whether it can be shortened
    "LRCP": ({}, True),
    "irreversible": ({"irreversible": True}, True),
    "RLCP": ({"progression": "RLCP"}, True),
    "RPCL": ({"progression": "RPCL"}, True),
    "RPCL in layers": ({"progression": "RPCL", "quality_layers": [40, 10, 0]}, True),
    "irreversible in layers": (
        {"progression": "RLCP", "quality_layers": [40, 10], "irreversible": True},
        True,
    ),
    "precincts": ({"precinct_size": (64, 64), "progression": "RPCL"}, True),
    "two levels": ({"num_resolutions": 3}, True),
    "packet lengths": ({"plt": True}, True),
    "JP2": ({"no_jp2": False}, True),
    "LRCP in layers": ({"quality_layers": [40, 10, 0]}, False),
    "by position": ({"progression": "PCRL"}, False),
    "by component": ({"progression": "CPRL"}, False),
    "tiles": ({"tile_size": (128, 128)}, False),
}
OPJ_COMPRESS = shutil.which("opj_compress") or ""
SIZES = [(208, 160), (203, 151), (1025, 333)]


def make_picture(rows: int, columns: int, bits: int = 12) -> Pixels:
    y, x = np.mgrid[:rows, :columns]
    noise = np.random.default_rng(0).normal(0, 0.01, (rows, columns))
    picture = 0.5 + 0.35 * np.sin(x / 20) * np.cos(y / 30) + noise
    return np.asarray(picture * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def encode(pixels: Pixels, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", **{"no_jp2": True} | options)
    return stream.getvalue()


def decode(encoded: bytes, level: int = 0) -> Pixels:
    span = Span.of(encoded)
    return jpeg2000.decode(span, read_codestream(span), level)


def reduce(encoded: bytes, level: int) -> Pixels | None:
    """What Pillow makes of a level; None where it fails because of how it rounds sizes."""
    image = Image.open(io.BytesIO(encoded))
    image.reduce = level  # type: ignore[method-assign, assignment]
    try:
        image.load()
    except OSError:
        return None
    return np.asarray(image)


def ceil_shape(shape: tuple[int, ...], level: int) -> tuple[int, ...]:
    return tuple(-(-size // 2**level) for size in shape)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("options", "can_shorten"), STRUCTURES.values(), ids=STRUCTURES)
def test_a_level_is_what_the_whole_codestream_reduces_to(
    shape: tuple[int, int], bits: int, options: dict[str, Any], can_shorten: bool
) -> None:
    encoded = encode(make_picture(*shape, bits), **options)
    stream = read_codestream(Span.of(encoded))
    assert stream.can_shorten is can_shorten
    assert stream.max_level >= (stream.num_levels if can_shorten else 1)
    for level in range(stream.max_level + 1):
        decoded, expected = decode(encoded, level), reduce(encoded, level)
        assert decoded.shape == ceil_shape(shape, level)
        assert expected is not None or can_shorten
        if expected is not None:
            np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("shape", SIZES)
def test_levels_of_htj2k_are_what_openjph_skips_to(shape: tuple[int, int]) -> None:
    """OpenJPH is the oracle for every level, OpenJPEG decodes."""
    encoded = bytes(imagecodecs.htj2k_encode(make_picture(*shape, 16)))
    stream = read_codestream(Span.of(encoded))
    assert stream.can_shorten
    for level in range(stream.num_levels + 1):
        np.testing.assert_array_equal(
            decode(encoded, level), imagecodecs.htj2k_decode(encoded, skipres=(level, level)), f"{level}"
        )


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_values_come_back_whatever_the_precision(bits: int) -> None:
    pixels = make_picture(64, 48, bits)
    encoded = bytes(imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, bitspersample=bits))
    np.testing.assert_array_equal(decode(encoded), pixels)
    assert read_codestream(Span.of(encoded)).precision == bits


def test_signed_values_come_back() -> None:
    pixels = make_picture(64, 48, 12).astype(np.int16) - 2000
    encoded = bytes(imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True))
    stream = read_codestream(Span.of(encoded))
    assert stream.is_signed
    np.testing.assert_array_equal(decode(encoded), pixels)
    assert decode(encoded, 2).mean() == pytest.approx(pixels.mean(), abs=60)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_sample_k_of_a_level_lies_on_full_pixel_k_times_two_to_the_level(level: int) -> None:
    y, x = np.mgrid[:256, :192]
    ramp = (8 * x + 4 * y + 100).astype(np.uint16)
    small = decode(encode(ramp), level)
    step, inner = 2**level, slice(4, -4)
    np.testing.assert_allclose(small[inner, inner], ramp[::step, ::step][inner, inner], atol=2)


def open_length(encoded: bytes) -> bytes:
    """Says that the first tile-part goes up to the end marker."""
    place = encoded.index(b"\xff\x90\x00\x0a") + 6
    return encoded[:place] + bytes(4) + encoded[place + 4 :]


@pytest.mark.parametrize(
    "options", [{}, {"no_jp2": False}, {"progression": "PCRL"}, {"quality_layers": [40, 0]}]
)
@pytest.mark.parametrize("padding", [b"", b"\0", bytes(99), b"\xff\xff"])
def test_a_length_may_be_left_open(options: dict[str, Any], padding: bytes) -> None:
    encoded = encode(make_picture(208, 160), **options)
    levels = range(read_codestream(Span.of(encoded)).max_level + 1)
    changed = open_length(encoded) + padding
    assert read_codestream(Span.of(changed)).max_level == levels[-1]
    for level in levels:
        np.testing.assert_array_equal(decode(changed, level), decode(encoded, level))
    with pytest.raises(ImageError) as error:
        decode(changed[: len(encoded) - 2] + padding)
    assert error.value.reason == "truncated"


@pytest.mark.parametrize(
    "options", [{}, {"no_jp2": False}, {"quality_layers": [40, 0]}, {"tile_size": (128, 128)}]
)
def test_an_end_marker_may_be_missing_at_each_level(options: dict[str, Any]) -> None:
    encoded = encode(make_picture(256, 256, 8), **options)
    for level in (0, 1, 2):
        np.testing.assert_array_equal(decode(encoded[:-2], level), decode(encoded, level))


@pytest.mark.parametrize(("tile", "max_level"), [((37, 41), 0), ((40, 48), 3), ((64, 64), 5)])
def test_tiles_have_levels_as_far_as_they_can_be_halved(tile: tuple[int, int], max_level: int) -> None:
    """Pillow fails at others."""
    encoded = encode(make_picture(256, 192, 8), tile_size=tile)
    stream = read_codestream(Span.of(encoded))
    assert stream.max_level == max_level
    for level in range(1, max_level + 1):
        assert decode(encoded, level).shape == ceil_shape((256, 192), level)


def test_a_tile_that_is_missing_is_named() -> None:
    encoded = encode(make_picture(256, 256, 8), tile_size=(128, 128))
    last = encoded.rindex(b"\xff\x90\x00\x0a")
    with pytest.raises(ImageError, match="3 of 4 JPEG 2000 tiles are there") as error:
        decode(encoded[:last] + encoded[-2:])
    assert error.value.reason == "decode_error"


@pytest.mark.parametrize(
    ("offset", "max_level"), [((5, 7), 0), ((8, 16), 3), ((4, 0), 2), ((0, 1), 0), ((0, 0), 5)]
)
@pytest.mark.parametrize("tiles", [{}, {"tile_size": (256, 256)}])
def test_there_are_levels_as_far_as_they_lie_on_the_reference_grid(
    offset: tuple[int, int], max_level: int, tiles: dict[str, Any]
) -> None:
    """Sample k of others does not lie on pixel k * 2**level of the image."""
    encoded = bytearray(encode(make_picture(1024, 1536, 8), **tiles))
    sizes = struct.unpack_from(">4I", encoded, 8)
    struct.pack_into(">4I", encoded, 8, sizes[0] + offset[0], sizes[1] + offset[1], *offset)
    struct.pack_into(
        ">4I", encoded, 24, *(2 * np.add(sizes[:2], offset) if not tiles else (256, 256)), *offset
    )
    stream = read_codestream(Span.of(bytes(encoded)))
    assert (stream.left, stream.top, stream.columns, stream.rows) == (*offset, 1536, 1024)
    assert stream.max_level == (max_level if not tiles or offset == (0, 0) else 0)
    for level in range(7):  # ceil(Xsiz / 2**r) - ceil(XOsiz / 2**r), B.5
        ends, starts = (
            ceil_shape((1024 + offset[1], 1536 + offset[0]), level),
            ceil_shape(offset[::-1], level),
        )
        assert stream.shape(level) == (ends[0] - starts[0], ends[1] - starts[1])


@pytest.mark.skipif(not OPJ_COMPRESS, reason="opj_compress (Debian: libopenjp2-tools) is not installed")
@pytest.mark.parametrize("offset", [(5, 7), (8, 16)])
@pytest.mark.parametrize(
    "tiles", [[], ["-t", "64,64", "-T", "0,0"], ["-t", "64,64", "-T", "0,0", "-TP", "R"]]
)
def test_an_image_may_begin_anywhere_on_the_reference_grid(
    tmp_path: Path, offset: tuple[int, int], tiles: list[str]
) -> None:
    y, x = np.mgrid[:131, :90]
    ramp = (8 * x + 4 * y + 100).astype(np.uint16)
    (tmp_path / "ramp.pgm").write_bytes(b"P5\n90 131\n4095\n" + ramp.astype(">u2").tobytes())
    target = tmp_path / "ramp.j2k"
    command = [
        OPJ_COMPRESS,
        "-i",
        str(tmp_path / "ramp.pgm"),
        "-o",
        str(target),
        "-d",
        "{},{}".format(*offset),
    ]
    subprocess.run([*command, *tiles], check=True, capture_output=True)
    encoded = target.read_bytes()
    stream = read_codestream(Span.of(encoded))
    np.testing.assert_array_equal(decode(encoded), ramp)
    for level in range(1, stream.num_levels + 1 if stream.can_shorten else 1):
        small = decode(encoded, level)
        assert small.shape == stream.shape(level)
        if level <= min(stream.max_level, 2):
            wanted = ramp[:: 2**level, :: 2**level]
            np.testing.assert_allclose(small[4:-4, 4:-4], wanted[4:-4, 4:-4], atol=2)


@pytest.mark.parametrize("options", [{}, {"precinct_size": (64, 64), "progression": "RPCL"}])
@pytest.mark.parametrize("level", [1, 3])
def test_two_lengths_that_give_one_image_are_enough(level: int, options: dict[str, Any]) -> None:
    """A part that ends right behind a packet gives another image; many bytes more or less never the same."""
    encoded = encode(make_picture(101, 75), **options)
    stream = read_codestream(Span.of(encoded))
    expected, lengths = decode(encoded, level), defaultdict[bytes, list[int]](list)
    for length in range(stream.data[0], len(encoded)):
        try:
            decoded = imagecodecs.jpeg2k_decode(shorten(encoded[:length], stream, level))
        except imagecodecs.Jpeg2kError:
            continue
        if not np.array_equal(decoded, expected):
            lengths[decoded.tobytes()].append(length)
    assert lengths
    assert max(max(same) - min(same) for same in lengths.values()) < 10


@pytest.mark.parametrize(("level", "most"), [(1, 0.5), (2, 0.2), (3, 0.1), (4, 0.06)])
def test_a_level_needs_no_more_than_the_beginning_of_the_file(
    tmp_path: Path, level: int, most: float
) -> None:
    path = tmp_path / "a.j2k"
    path.write_bytes(encode(make_picture(2048, 1536)))
    source = ByteSource.open(path, whole=False)
    span = Span(source, 0, source.size)
    np.testing.assert_array_equal(
        jpeg2000.decode(span, read_codestream(span), level), decode(path.read_bytes(), level)
    )
    assert len(source.content) < most * source.size


def test_a_codestream_that_packs_its_low_levels_tightly_is_read_on(tmp_path: Path) -> None:
    """A lossy one spends most of its bytes on them, so the first guess is too short."""
    path = tmp_path / "a.j2k"
    path.write_bytes(encode(make_picture(2048, 1536), quality_layers=[60], irreversible=True))
    source = ByteSource.open(path, whole=False)
    span = Span(source, 0, source.size)
    decoded = jpeg2000.decode(span, read_codestream(span), 1)
    np.testing.assert_array_equal(decoded, decode(path.read_bytes(), 1))


@pytest.mark.parametrize("cut", [0, 3, 30, 60, 110])
def test_a_header_that_is_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(ImageError) as error:
        read_codestream(Span.of(encode(make_picture(64, 48))[:cut]))
    assert error.value.reason in {"decode_error", "truncated"}


def test_a_codestream_that_ends_too_soon_is_truncated() -> None:
    encoded = encode(make_picture(64, 48))
    for length in (len(encoded) // 2, len(encoded) - 3):
        with pytest.raises(ImageError) as error:
            read_codestream(Span.of(encoded[:length]))
        assert error.value.reason == "truncated"


def test_real_frames_decode_to_the_same_pixels_from_a_part_of_the_file(real_data: Path) -> None:
    shares = {1: 0.5, 2: 0.2, 3: 0.06, 4: 0.06, 5: 0.06}
    for path in sorted((real_data / "rsna_dicom").rglob("*.dcm")):
        whole = open_dicom(path)
        for level, share in shares.items():
            part = open_dicom(path, whole=False)
            pixels = part.read_frame(level).pixels
            np.testing.assert_array_equal(pixels, whole.read_frame(level).pixels)
            expected = reduce(bytes(whole.encoded.all()), level)
            if expected is not None:
                np.testing.assert_array_equal(pixels, expected)
            assert len(part.source.content) < share * part.source.size, (path.name, level)
