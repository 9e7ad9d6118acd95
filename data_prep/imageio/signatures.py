"""What kind of file some first bytes begin, so that a message can say what was met instead."""

from typing import NamedTuple

DICOM_PREFIX_START = 128  # of DICM, PS3.10 7.1


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
