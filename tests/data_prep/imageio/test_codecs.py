"""Codecs: exact round trips, reduced resolutions, refused sizes and cut frames, the NEMA conformance set."""

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from data_prep.errors import ImageError
from data_prep.imageio import codecs
from data_prep.imageio.codecs import Layout, encode
from data_prep.imageio.frame import Pixels
from data_prep.storage.byte_source import Span
from tests.data_prep.dicom_files import make_dataset
from tests.data_prep.reading import read_frame

ENCODINGS = {
    "uncompressed": (codecs.EXPLICIT_VR_LITTLE_ENDIAN, False),
    "JPEG lossless": (codecs.JPEG_LOSSLESS_SV1, False),
    "JPEG 2000": (codecs.JPEG_2000_LOSSLESS, False),
    "JPEG 2000 in a JP2 box": (codecs.JPEG_2000_LOSSLESS, True),
    "high-throughput JPEG 2000": (codecs.HTJ2K_LOSSLESS, False),
}
each_encoding = pytest.mark.parametrize(("syntax", "jp2"), ENCODINGS.values(), ids=ENCODINGS)


def decode(encoded: bytes, syntax: str, layout: Layout, level: int = 0) -> Pixels:
    return codecs.decode(Span.of(encoded), syntax, layout, level)


def find_max_level(encoded: bytes, syntax: str, layout: Layout) -> int:
    return codecs.find_max_level(Span.of(encoded), syntax, layout)


def make_smooth(rows: int = 203, columns: int = 150, *, bits: int = 12) -> Pixels:
    """A smooth picture with a little noise, within `bits`."""
    y, x = np.mgrid[:rows, :columns]
    noise = np.random.default_rng(0).normal(0, 0.01, (rows, columns))
    picture = 0.5 + 0.35 * np.sin(x / 20) * np.cos(y / 30) + noise
    return (picture * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def layout_of(pixels: Pixels, *, bits_stored: int | None = None) -> Layout:
    bits = pixels.itemsize * 8
    return Layout(*pixels.shape, bits, bits_stored or bits, is_signed=pixels.dtype.kind == "i")


def rle_encode(pixels: Pixels) -> bytes:
    dataset = make_dataset(pixels)
    dataset.ensure_file_meta()
    dataset.compress(codecs.RLE_LOSSLESS, pixels)
    return read_first_frame(dataset.PixelData)


def read_first_frame(pixel_data: bytes) -> bytes:
    """The one fragment after an empty offset table."""
    table_length = struct.unpack_from("<I", pixel_data, 4)[0]
    start = 8 + table_length
    (length,) = struct.unpack_from("<I", pixel_data, start + 4)
    return pixel_data[start + 8 : start + 8 + length]


def refusal(encoded: bytes, syntax: str, layout: Layout, level: int = 0) -> str:
    with pytest.raises(ImageError) as error:
        decode(encoded, syntax, layout, level)
    assert "object at 0x" not in str(error.value), "a memory address would differ from run to run"
    return error.value.reason


@each_encoding
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_what_encode_writes_decodes_to_the_same_pixels(syntax: str, jp2: bool, bits: int) -> None:
    pixels = make_smooth(bits=bits)
    encoded = encode(pixels, syntax, bits_stored=bits, jp2=jp2)
    decoded = decode(encoded, syntax, layout_of(pixels))
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_rle_that_pydicom_wrote_decodes_to_the_same_pixels(bits: int) -> None:
    pixels = make_smooth(bits=bits)
    decoded = decode(rle_encode(pixels), codecs.RLE_LOSSLESS, layout_of(pixels))
    np.testing.assert_array_equal(decoded, pixels)


def test_uncompressed_pixels_come_in_either_byte_order() -> None:
    pixels = make_smooth()
    for order, syntax in [("<", codecs.IMPLICIT_VR_LITTLE_ENDIAN), (">", codecs.EXPLICIT_VR_BIG_ENDIAN)]:
        decoded = decode(pixels.astype(f"{order}u2").tobytes(), syntax, layout_of(pixels))
        np.testing.assert_array_equal(decoded, pixels)
        assert decoded.dtype.isnative


@pytest.mark.parametrize("syntax", [codecs.JPEG_LOSSLESS_SV1, codecs.JPEG_LS_LOSSLESS])
def test_the_sign_is_carried_into_the_unused_bits(syntax: str) -> None:
    signed = (make_smooth().astype(np.int32) - 2048).astype(np.int16)
    stored = (signed & 0x0FFF).astype(np.uint16)
    if syntax == codecs.JPEG_LS_LOSSLESS:
        encoded = bytes(imagecodecs.jpegls_encode(stored))
    else:
        encoded = encode(stored, syntax, bits_stored=12)
    decoded = decode(encoded, syntax, layout_of(signed, bits_stored=12))
    np.testing.assert_array_equal(decoded, signed)


def make_signed(bits: int) -> Pixels:
    """A smooth picture around zero, within `bits`."""
    return (make_smooth(bits=bits).astype(np.int32) - 2 ** (bits - 1)).astype(
        np.int8 if bits <= 8 else np.int16
    )


J2K_WRITERS = {
    "one tile": {},
    "JP2": {"codecformat": "jp2"},
    "one resolution": {"resolutions": 1},
}


@pytest.mark.parametrize("options", J2K_WRITERS.values(), ids=J2K_WRITERS)
@pytest.mark.parametrize(
    ("precision", "bits_stored"), [(12, 12), (16, 16), (16, 12), (12, 16), (8, 8), (10, 12), (13, 16)]
)
@pytest.mark.parametrize("is_signed", [True, False])
def test_a_stream_of_another_sign_is_read_as_the_header_says(
    options: dict[str, Any], precision: int, bits_stored: int, is_signed: bool
) -> None:
    """In full, since each lower resolution is a mean over values that jump."""
    bits = min(precision, bits_stored)
    signed = make_signed(bits)
    unsigned = signed.view(f"u{signed.itemsize}") & (2**bits - 1)
    options = {"codecformat": "j2k"} | options
    stored = (unsigned if is_signed else signed).astype(
        f"{'u' if is_signed else 'i'}{1 if precision <= 8 else 2}"
    )
    encoded = bytes(
        imagecodecs.jpeg2k_encode(stored, level=0, reversible=True, bitspersample=precision, **options)
    )
    allocated = 8 if bits_stored <= 8 else 16
    layout = Layout(*signed.shape, allocated, bits_stored, is_signed=is_signed)
    decoded = decode(encoded, codecs.JPEG_2000_LOSSLESS, layout)
    np.testing.assert_array_equal(decoded, signed if is_signed else unsigned)
    assert decoded.dtype.kind == ("i" if is_signed else "u")
    assert find_max_level(encoded, codecs.JPEG_2000_LOSSLESS, layout) == 0


def test_tiles_of_another_sign_too() -> None:
    signed = make_signed(8)
    stream = BytesIO()
    Image.fromarray(signed.view(np.uint8)).save(stream, "JPEG2000", tile_size=(64, 64), no_jp2=True)
    np.testing.assert_array_equal(decode(stream.getvalue(), codecs.JPEG_2000, layout_of(signed)), signed)
    assert find_max_level(stream.getvalue(), codecs.JPEG_2000, layout_of(signed)) == 0


def test_high_throughput_streams_of_another_sign_too() -> None:
    signed = make_signed(16)
    encoded = bytes(imagecodecs.htj2k_encode(signed.view(np.uint16), reversible=True))
    layout = layout_of(signed)
    np.testing.assert_array_equal(decode(encoded, codecs.HTJ2K_LOSSLESS, layout), signed)
    assert find_max_level(encoded, codecs.HTJ2K_LOSSLESS, layout) == 0


def test_two_complements_of_fewer_bits_are_read_as_the_header_says() -> None:
    """Whether the bits above hold the sign or not."""
    signed = make_signed(12)
    for stored in (signed, signed & 0x0FFF):
        for values in (stored, stored.view(np.uint16)):
            encoded = bytes(imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat="j2k"))
            layout = layout_of(signed, bits_stored=12)
            np.testing.assert_array_equal(decode(encoded, codecs.JPEG_2000_LOSSLESS, layout), signed)
            assert find_max_level(encoded, codecs.JPEG_2000_LOSSLESS, layout) == 0


@pytest.mark.parametrize(("precision", "bits_stored"), [(16, 12), (12, 12), (12, 16)])
def test_unsigned_values_under_an_unsigned_header_keep_their_levels(precision: int, bits_stored: int) -> None:
    pixels = make_smooth(bits=12)
    encoded = encode(pixels, codecs.JPEG_2000_LOSSLESS, bits_stored=precision)
    layout = layout_of(pixels, bits_stored=bits_stored)
    assert find_max_level(encoded, codecs.JPEG_2000_LOSSLESS, layout) >= 4


PADDINGS = [b"\0", b"\0\0\0", bytes(1000), b"\xff" * 3, b"\xff" * 1000, b"\0\xff\xff\0\0"]


@each_encoding
@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_behind_a_frame_is_left_out(syntax: str, jp2: bool, padding: bytes) -> None:
    pixels = make_smooth()
    encoded = encode(pixels, syntax, bits_stored=12, jp2=jp2) + padding
    layout = layout_of(pixels)
    np.testing.assert_array_equal(decode(encoded, syntax, layout), pixels)
    assert find_max_level(encoded, syntax, layout) == find_max_level(encoded[: -len(padding)], syntax, layout)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("value", [0, 0xFF, 0xFFFF, 0xFE01])
def test_padding_behind_an_rle_frame_is_left_out(padding: bytes, value: int) -> None:
    """Also where the last samples look like it."""
    pixels = make_smooth(21, 15, bits=16)
    for flat in (0, 1, 2, 40):
        pixels[-1, len(pixels[0]) - flat :] = value
        pixels[-2, :flat] = value
        encoded = rle_encode(pixels) + padding
        np.testing.assert_array_equal(decode(encoded, codecs.RLE_LOSSLESS, layout_of(pixels)), pixels)


@pytest.mark.parametrize("padding", [b"", b"\0", b"\xff\xff"])
@each_encoding
def test_an_end_marker_may_be_missing_where_all_data_are_there(
    syntax: str, jp2: bool, padding: bytes
) -> None:
    if syntax in codecs.NATIVE:
        return
    pixels = make_smooth()
    encoded = encode(pixels, syntax, bits_stored=12, jp2=jp2)
    assert encoded.endswith(b"\xff\xd9")
    encoded = encoded[:-2] + padding
    layout = layout_of(pixels)
    np.testing.assert_array_equal(decode(encoded, syntax, layout), pixels)


def test_a_frame_is_known_by_its_first_bytes() -> None:
    """Exporters name one kind of JPEG for another."""
    pixels = make_smooth()
    frames = [encode(pixels, syntax, bits_stored=12, jp2=jp2) for syntax, jp2 in ENCODINGS.values()][1:]
    frames.append(bytes(imagecodecs.jpegls_encode(pixels)))
    layout = layout_of(pixels)
    for syntax in codecs.SUPPORTED - codecs.SAMPLES_AS_THEY_ARE:
        for encoded in frames:
            np.testing.assert_array_equal(decode(encoded, syntax, layout), pixels)
    assert refusal(frames[0], codecs.RLE_LOSSLESS, layout) == "decode_error"
    with pytest.raises(ImageError, match="neither JPEG nor JPEG 2000: it begins with '02000000'"):
        decode(rle_encode(pixels), codecs.JPEG_LOSSLESS_SV1, layout)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("level", [1, 2])
def test_a_level_is_a_smaller_picture_of_the_same_thing(bits: int, level: int) -> None:
    """Its shape is the full one divided and rounded up, its values near the mean of the pixels around."""
    pixels = make_smooth(208, 152, bits=bits)
    encoded = encode(pixels, codecs.JPEG_2000_LOSSLESS, bits_stored=bits)
    small = decode(encoded, codecs.JPEG_2000_LOSSLESS, layout_of(pixels), level)
    step = 2**level
    assert small.shape == (208 // step, 152 // step)
    means = pixels.reshape(208 // step, step, 152 // step, step).mean(axis=(1, 3))
    assert small.mean() == pytest.approx(means.mean(), rel=0.01)
    assert np.abs(small - means).mean() < 0.03 * 2**bits


def test_only_jpeg2000_has_levels() -> None:
    for syntax in codecs.SUPPORTED - codecs.JPEG_2000_FAMILY:
        assert find_max_level(b"", syntax, Layout(2, 2, 16, 12, is_signed=False)) == 0


@each_encoding
@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.98, 0.9999])
@pytest.mark.parametrize("level", [0, 2])
def test_a_cut_frame_is_refused_and_never_half_an_image(
    syntax: str, jp2: bool, part: float, level: int
) -> None:
    pixels = make_smooth()
    encoded = encode(pixels, syntax, bits_stored=12, jp2=jp2)
    cut = encoded[: int(len(encoded) * part)]
    allowed = {"truncated", "decode_error"}
    has_levels = syntax in codecs.JPEG_2000_FAMILY
    assert refusal(cut, syntax, layout_of(pixels), level if has_levels else 0) in allowed


@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.98])
def test_a_cut_rle_or_jpeg_ls_frame_is_refused(part: float) -> None:
    pixels = make_smooth()
    frames = {
        codecs.RLE_LOSSLESS: rle_encode(pixels),
        codecs.JPEG_LS_LOSSLESS: imagecodecs.jpegls_encode(pixels),
    }
    for syntax, encoded in frames.items():
        cut = bytes(encoded[: int(len(encoded) * part)])
        assert refusal(cut, syntax, layout_of(pixels)) in {"truncated", "decode_error"}


@each_encoding
def test_a_frame_of_another_size_is_refused(syntax: str, jp2: bool) -> None:
    encoded = encode(make_smooth(64, 48), syntax, bits_stored=12, jp2=jp2)
    wrong = Layout(65, 48, 16, 12, is_signed=False)
    reason = refusal(encoded, syntax, wrong)
    assert reason == ("truncated" if syntax in codecs.NATIVE else "size_mismatch")


@pytest.mark.parametrize("rows", [63, 65])
def test_an_rle_frame_of_another_size_is_refused(rows: int) -> None:
    encoded = rle_encode(make_smooth(64, 48))
    assert refusal(encoded, codecs.RLE_LOSSLESS, Layout(rows, 48, 16, 16, is_signed=False)) == "decode_error"


def test_a_size_bomb_is_refused_before_it_is_decoded() -> None:
    pixels = make_smooth(64, 48)
    jpeg = encode(pixels, codecs.JPEG_LOSSLESS_SV1, bits_stored=12)
    place = jpeg.index(b"\xff\xc3") + 5
    bomb = jpeg[:place] + struct.pack(">2H", 65535, 65535) + jpeg[place + 4 :]
    assert refusal(bomb, codecs.JPEG_LOSSLESS_SV1, layout_of(pixels)) == "size_mismatch"

    stream = encode(pixels, codecs.JPEG_2000_LOSSLESS, bits_stored=12)
    bomb = stream[:8] + struct.pack(">2I", 20000, 20000) + stream[16:]
    assert refusal(bomb, codecs.JPEG_2000_LOSSLESS, layout_of(pixels)) == "size_mismatch"
    huge = Layout(20000, 20000, 16, 12, is_signed=False)
    assert refusal(bomb, codecs.JPEG_2000_LOSSLESS, huge) == "too_large"


def test_bytes_that_are_no_frame_are_refused() -> None:
    layout = Layout(64, 48, 16, 12, is_signed=False)
    for syntax in codecs.SUPPORTED:
        for junk in (b"", b"\xff", b"\xff\xd8\xff\xd9", b"\xff\x4f\xff\x51", bytes(64), b"junk " * 40):
            assert refusal(junk, syntax, layout) in {"truncated", "decode_error"}


def test_a_codestream_behind_junk_is_refused_in_words_that_do_not_change() -> None:
    encoded = b"junk" + encode(make_smooth(64, 48), codecs.JPEG_2000_LOSSLESS, bits_stored=12)
    layout = Layout(64, 48, 16, 12, is_signed=False)
    assert refusal(encoded, codecs.JPEG_2000_LOSSLESS, layout) == "decode_error"


def test_colour_is_refused() -> None:
    stream = BytesIO()
    Image.new("RGB", (48, 64)).save(stream, "JPEG2000")
    layout = Layout(64, 48, 8, 8, is_signed=False)
    assert refusal(stream.getvalue(), codecs.JPEG_2000, layout) == "unsupported"
    stream = BytesIO()
    Image.new("RGB", (48, 64)).save(stream, "JPEG")
    assert refusal(stream.getvalue(), codecs.JPEG_BASELINE, layout) == "unsupported"


def test_an_unknown_transfer_syntax_is_refused() -> None:
    layout = Layout(2, 2, 8, 8, is_signed=False)
    assert refusal(b"", "1.2.840.10008.1.2.4.100", layout) == "unsupported"
    with pytest.raises(ValueError, match="cannot be written"):
        encode(np.zeros((2, 2), np.uint8), codecs.RLE_LOSSLESS, bits_stored=8)


@pytest.mark.parametrize("image", ["CT1", "MR4", "RG3"])
def test_the_nema_files_decode_to_the_reference(real_data: Path, image: str) -> None:
    folder = real_data / "codec_wg04"
    compressed = (folder / f"REF/{image}_UNC.zst").read_bytes()
    reference = dcmread(BytesIO(imagecodecs.zstd_decode(compressed))).pixel_array
    for kind in ("J2KR", "JPLL", "JLSL", "RLE"):
        np.testing.assert_array_equal(read_frame(folder / kind / f"{image}_{kind}").pixels, reference, kind)
    for lossy in ("J2KI", "JLSN"):
        pixels = read_frame(folder / lossy / f"{image}_{lossy}").pixels
        assert np.abs(pixels.astype(np.int32) - reference).mean() < 0.01 * np.ptp(reference)
