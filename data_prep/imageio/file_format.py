"""What kind of file some bytes begin, whatever its name; and what is in one that is packed with gzip."""

import gzip
import io
import zlib
from typing import NamedTuple

from data_prep.errors import ImageError
from data_prep.imageio.encapsulation import MAX_INFLATED_BYTES
from data_prep.storage.byte_source import ByteSource

DICOM_PREFIX_START = 128  # of DICM, PS3.10 7.1
GZIP = b"\x1f\x8b"


class Kind(NamedTuple):
    """A kind of file, with its article, and the suffix under which it is read here; None where it is not."""

    name: str
    suffix: str | None


MAGICS = {
    b"\x89PNG\r\n\x1a\n": Kind("a PNG", ".png"),
    b"\xff\xd8\xff": Kind("a JPEG", ".jpg"),
    b"P2": Kind("a PGM", ".pgm"),
    b"P5": Kind("a PGM", ".pgm"),
    b"II*\0": Kind("a TIFF, which is not read here", None),
    b"MM\0*": Kind("a TIFF, which is not read here", None),
    b"BM": Kind("a BMP, which is not read here", None),
    b"\xff\x4f\xff\x51": Kind("a bare JPEG 2000 codestream, which is not read here", None),
    b"\0\0\0\x0cjP  ": Kind("a JP2, which is not read here", None),
    b"PK\x03\x04": Kind("a ZIP archive, which is not read here", None),
    b"%PDF": Kind("a PDF, which is not read here", None),
    b"<": Kind("a page of HTML or XML, as a failed download leaves it", None),
}


def name_kind(content: bytes) -> Kind | None:
    """Returns the kind of file that some first bytes begin; None for an unknown one."""
    if content[DICOM_PREFIX_START : DICOM_PREFIX_START + 4] == b"DICM":
        return Kind("DICOM", ".dcm")
    return next((kind for magic, kind in MAGICS.items() if content.startswith(magic)), None)


def gunzip(source: ByteSource) -> ByteSource | None:
    """Returns what a file holds that is packed with gzip, RFC 1952; None where it is not packed.

    Raises:
        ImageError: if the file is cut short, damaged, or unpacks to more than any mammogram.
    """
    if not source.content.startswith(GZIP):
        return None
    source.read_to(source.size)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(source.content)) as packed:  # all members of it
            content = packed.read(MAX_INFLATED_BYTES + 1)
    except EOFError as error:
        raise ImageError("truncated", "the file is packed with gzip and cut short: copy it again") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise ImageError("decode_error", "the file is packed with gzip and damaged: pack it again") from error
    if len(content) > MAX_INFLATED_BYTES:
        raise ImageError("too_large", f"the file unpacks to more than {MAX_INFLATED_BYTES >> 20} MB")
    return ByteSource.of(content)
