"""Files that ask for far more than they hold: refused in a process of little memory, and soon."""

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.imageio import codecs
from data_prep.storage.byte_source import MAX_READS
from tests.data_prep.dicom_files import make_breast, write_dicom

MEMORY_MB = 300  # more than the process had before it read the file
PROGRAM = """
import json, sys
from pathlib import Path
from data_prep.errors import ImageError
from data_prep.preprocessing.preprocess import open_image
from tests.data_prep.reading import prepare_image
from data_prep.preprocessing.settings import PrepareSettings

def read_peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

sound, bomb = map(Path, sys.argv[1:])
prepare_image(sound, PrepareSettings(side=32))
before = read_peak()
try:
    prepare_image(bomb, PrepareSettings(side=32))
    said = "image", ""
except ImageError as error:
    said = error.reason, str(error)
print(json.dumps([*said, read_peak() - before]))
"""


def sound(folder: Path, syntax: str = codecs.EXPLICIT_VR_LITTLE_ENDIAN, **options: object) -> bytes:
    path = write_dicom(folder / "sound.dcm", make_breast(), transfer_syntax=syntax, BitsStored=12, **options)
    return path.read_bytes()


def after_meta(content: bytes) -> int:
    """Where the data set begins."""
    return content.index(struct.pack("<2H2s", 0x0008, 0x0016, b"UI"))


def insert(content: bytes, elements: bytes) -> bytes:
    """Puts elements in front of all others."""
    return content[: after_meta(content)] + elements + content[after_meta(content) :]


def put(content: bytes, element: tuple[int, int], value: bytes) -> bytes:
    """Overwrites the value of a short element."""
    place = content.index(struct.pack("<2H", *element)) + 8
    return content[:place] + value + content[place + len(value) :]


def deflate_bomb(folder: Path) -> bytes:
    """A gigabyte of zeros behind a sound beginning, in a megabyte."""
    content = sound(folder)
    start = after_meta(content)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [deflater.compress(content[start:])]
    parts += [deflater.compress(bytes(2**20)) for _ in range(1024)]
    parts.append(deflater.flush())
    old = codecs.EXPLICIT_VR_LITTLE_ENDIAN.encode().ljust(20, b"\0")
    new = codecs.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN.encode().ljust(22, b"\0")
    place = content.index(old[:19])
    head = content[: place - 2] + struct.pack("<H", 22) + new + content[place + 20 : start]
    (length,) = struct.unpack_from("<I", head, 140)
    return head[:140] + struct.pack("<I", length + 2) + head[144:] + b"".join(parts)


def million_elements(folder: Path) -> bytes:
    """Private elements of two bytes each."""
    element = struct.pack("<2H2sH2s", 0x0007, 0x1001, b"US", 2, b"\1\0")
    return insert(sound(folder), element * 1_000_000)


def million_fragments(folder: Path) -> bytes:
    """A frame in empty fragments."""
    content = sound(folder, codecs.RLE_LOSSLESS)
    place = content.index(struct.pack("<2H", 0x7FE0, 0x0010)) + 12
    item = struct.pack("<2HI", 0xFFFE, 0xE000, 0)
    return content[:place] + item * 1_000_000 + content[place:]


def nest(depth: int) -> Callable[[Path], bytes]:
    """Sequences of undefined length within each other."""
    sequence = struct.pack("<2H2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<2HI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return lambda folder: insert(sound(folder), (sequence + item) * depth)


def long_element(tag: tuple[int, int], length: int) -> Callable[[Path], bytes]:
    """An element whose length is a lie."""
    return lambda folder: insert(sound(folder), struct.pack("<2H2sHI", *tag, b"UN", 0, length))


def many_rows(folder: Path) -> bytes:
    """A header of 65,535 rows and columns."""
    content = put(sound(folder), (0x0028, 0x0010), b"\xff\xff")
    return put(content, (0x0028, 0x0011), b"\xff\xff")


def large_codestream(folder: Path) -> bytes:
    """A codestream of 20,000 x 20,000 under a sound header."""
    content = sound(folder, codecs.JPEG_2000_LOSSLESS)
    place = content.index(struct.pack(">2H", 0xFF4F, 0xFF51)) + 8
    return content[:place] + struct.pack(">2I", 20_000, 20_000) + content[place + 8 :]


def two_codestreams(folder: Path) -> bytes:
    """A JP2 file whose codestream is 20,000 x 20,000, behind a box with the start of a sound one."""
    content = sound(folder, codecs.JPEG_2000_LOSSLESS, jp2=True)
    start = content.index(struct.pack(">2H", 0xFF4F, 0xFF51))
    frame = content.index(b"\0\0\0\x0cjP  ")
    bare = content[start:]
    decoy = struct.pack(">I4s", 8 + len(bare), b"free") + bare
    large = bare[:8] + struct.pack(">2I", 20_000, 20_000) + bare[16:]
    grown = content[: frame + 12] + decoy + content[frame + 12 : start] + large
    length = struct.pack("<I", len(grown) - frame)
    return grown[: frame - 4] + length + grown[frame:]


def rle_bomb(folder: Path) -> bytes:
    """Runs that make a gigabyte of 16 MB."""
    content = sound(folder, codecs.RLE_LOSSLESS)
    item = content.rindex(struct.pack("<2H", 0xFFFE, 0xE000))
    runs = bytes([129, 7]) * 4_000_000
    frame = struct.pack("<16I", 2, 64, 64 + len(runs), *[0] * 13) + 2 * runs
    end = struct.pack("<2HI", 0xFFFE, 0xE0DD, 0)
    return content[: item + 4] + struct.pack("<I", len(frame)) + frame + end


def rle_offset(folder: Path) -> bytes:
    """A segment that begins a gigabyte behind the frame: imagecodecs alone dies of it."""
    content = sound(folder, codecs.RLE_LOSSLESS)
    place = content.rindex(struct.pack("<2H", 0xFFFE, 0xE000)) + 16
    return content[:place] + struct.pack("<I", 2**30) + content[place + 4 :]


def wide_png(folder: Path) -> bytes:
    """A PNG of 15,000 x 15,000 black pixels."""
    rows = zlib.compress(bytes(15_001) * 15_000, 9)
    chunks = [(b"IHDR", struct.pack(">2I5B", 15_000, 15_000, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    framed = [
        struct.pack(">I", len(body)) + k + body + struct.pack(">I", zlib.crc32(k + body))
        for k, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


BOMBS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "deflate bomb": (deflate_bomb, "too_large"),
    "a million elements": (million_elements, "too_large"),
    "a million fragments": (million_fragments, "too_large"),
    "300 sequences deep": (nest(300), "parse_error"),
    "100,000 sequences deep": (nest(100_000), "parse_error"),
    "a length that is not a length": (long_element((0x0008, 0x2112), 0x7FFFFFFE), "bad_value"),
    "a window of 2 GB": (long_element((0x0028, 0x1050), 0x7FFFFFFE), "bad_value"),
    "65,535 rows and columns": (many_rows, "too_large"),
    "SIZ of 20,000": (large_codestream, "size_mismatch"),
    "a codestream behind another": (two_codestreams, "image"),  # of the first, the only one that was judged
    "RLE bomb": (rle_bomb, "decode_error"),
    "RLE offset": (rle_offset, "truncated"),
    "PNG of 225 million pixels": (wide_png, "too_large"),
}


def read_in_child(folder: Path, bomb: Path) -> tuple[str, str, float]:
    """Reason code, sentence, and the megabytes that the bomb took; a child that hangs or dies fails."""
    whole = write_dicom(folder / "whole.dcm", make_breast(), BitsStored=12)
    command = [sys.executable, "-c", PROGRAM, str(whole), str(bomb)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    reason, sentence, megabytes = json.loads(ended.stdout)
    return reason, sentence, megabytes


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory(tmp_path: Path, name: str) -> None:
    make, expected = BOMBS[name]
    bomb = tmp_path / ("a.png" if "PNG" in name else "a.dcm")
    bomb.write_bytes(make(tmp_path))
    reason, sentence, megabytes = read_in_child(tmp_path, bomb)
    assert reason == expected, sentence
    assert megabytes < MEMORY_MB


def test_of_a_file_of_gigabytes_no_more_is_read_than_of_any_mammogram(tmp_path: Path) -> None:
    """A sparse file whose first element fills a gigabyte, and whose pixels lie behind it."""
    content = sound(tmp_path)
    start, bomb = after_meta(content), tmp_path / "a.dcm"
    with bomb.open("wb") as stream:
        stream.write(content[:start] + struct.pack("<2H2sHI", 0x0007, 0x1001, b"OB", 0, 2**30))
        stream.seek(2**30, 1)
        stream.write(content[start:])
    reason, sentence, megabytes = read_in_child(tmp_path, bomb)
    assert reason == "too_large", sentence
    assert megabytes < MEMORY_MB


def test_a_header_of_many_elements_is_still_read(tmp_path: Path) -> None:
    element = struct.pack("<2H2sH2s", 0x0007, 0x1001, b"US", 2, b"\1\0")
    many = tmp_path / "a.dcm"
    many.write_bytes(insert(sound(tmp_path), element * (MAX_READS // 8)))
    reason, sentence, _ = read_in_child(tmp_path, many)
    assert reason == "image", sentence


@pytest.mark.parametrize(
    ("element", "value"), [((0x0028, 0x1051), b"1e400 "), ((0x0028, 0x1050), b"20\n48 ")]
)
def test_a_window_of_odd_text_is_left_out(tmp_path: Path, element: tuple[int, int], value: bytes) -> None:
    odd = tmp_path / "a.dcm"
    odd.write_bytes(put(sound(tmp_path, WindowCenter="204800", WindowWidth="409600"), element, value))
    found, sentence, _ = read_in_child(tmp_path, odd)
    assert found == "image", sentence
