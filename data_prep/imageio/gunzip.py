"""DICOM files that somebody packed with gzip, RFC 1952."""

import zlib

from data_prep.errors import ImageError
from data_prep.imageio.encapsulation import MAX_INFLATED_BYTES
from data_prep.storage.byte_source import ByteSource

MAGIC = b"\x1f\x8b"
GZIP_FORMAT = 16 + zlib.MAX_WBITS  # zlib's way to ask for it


def gunzip(source: ByteSource) -> ByteSource | None:
    """Returns what a file holds that is packed with gzip, whatever its name; None where it is not packed.

    Raises:
        ImageError: if the file is cut short, damaged, or unpacks to more than any mammogram.
    """
    if not source.content.startswith(MAGIC):
        return None
    source.read_to(source.size)
    inflater = zlib.decompressobj(GZIP_FORMAT)
    try:
        content = inflater.decompress(source.content, MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise ImageError("decode_error", "the file is packed with gzip and damaged: pack it again") from error
    if inflater.unconsumed_tail:
        raise ImageError("too_large", f"the file unpacks to more than {MAX_INFLATED_BYTES >> 20} MB")
    if not inflater.eof:
        raise ImageError("truncated", "the file is packed with gzip and cut short: copy it again")
    return ByteSource.of(content)
