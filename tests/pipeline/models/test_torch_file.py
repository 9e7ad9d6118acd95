"""Files of torch.save: read if they are plain, refused if they would be larger in memory."""

import io
import zipfile
from pathlib import Path

import pytest
import torch

from pipeline.models.torch_file import load_tensors


def save(path: Path, **options: bool) -> Path:
    torch.save({"weight": torch.arange(1000.0), "epoch": 3}, path, **options)
    return path


def test_tensors_and_values_come_back(tmp_path: Path) -> None:
    with save(tmp_path / "a.pth").open("rb") as stream:
        loaded = load_tensors(stream)
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["weight"], torch.arange(1000.0))


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    compressed = io.BytesIO()
    with (
        zipfile.ZipFile(save(tmp_path / "a.pth")) as plain,
        zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match="compressed"):
        load_tensors(compressed)


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "a.pth").read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
    place = content.rindex(entry.filename.encode()) - 46  # its record in the central directory
    content[place + 20 : place + 28] = 2 * (2**31).to_bytes(4, "little")  # sizes, packed and not
    with pytest.raises(ValueError, match="compressed"):
        load_tensors(io.BytesIO(bytes(content)))


def test_what_no_torch_of_today_writes_is_refused(tmp_path: Path) -> None:
    old = save(tmp_path / "a.pth", _use_new_zipfile_serialization=False).read_bytes()
    for content in (old, b"no archive"):
        with pytest.raises(ValueError, match=r"since torch 1\.6"):
            load_tensors(io.BytesIO(content))
