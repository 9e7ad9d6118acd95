"""Files that `torch.save` wrote, read without running or inflating what they hold."""

import argparse
import zipfile
from typing import Any, BinaryIO

import torch


class UnreadableWeights(ValueError):
    """A file that is not what it should be, or not safe to read; the text says why."""


def load_tensors(stream: BinaryIO) -> Any:
    """Reads tensors and plain values onto the CPU.

    Raises:
        UnreadableWeights: if the file is no ZIP archive as torch writes it since 1.6, uncompressed: a
            compressed one may be a thousand times as large in memory.
        Exception: of many kinds, if it is damaged or holds anything else; torch names no set of them.
    """
    if not zipfile.is_zipfile(stream):
        raise UnreadableWeights("it is not, or not whole, what torch.save writes since torch 1.6")
    size = stream.seek(0, 2)
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
    is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not is_stored or sum(entry.file_size for entry in entries) > size:
        raise UnreadableWeights("its entries are compressed")
    stream.seek(0)
    with torch.serialization.safe_globals([argparse.Namespace]):  # a trainer's options, as MAE keeps them
        return torch.load(stream, "cpu", weights_only=True)
