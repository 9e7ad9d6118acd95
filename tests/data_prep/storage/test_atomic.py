"""The writers: all or nothing, whatever happens; journals that lose at most a line; locks."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DiskFull, UserError
from data_prep.storage import atomic
from data_prep.storage.atomic import (
    Journal,
    SharedLog,
    make_folder,
    write_bytes,
    write_csv,
    write_json,
    write_text,
)


def fail_with(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    write_text(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(
        *(atomic.os, "fsync") if step == "fsync" else (Path, step), lambda *_: fail_with(number)
    )
    with pytest.raises(DiskFull, match=f"disk full at {tmp_path}") as error:
        write_text(path, "new")
    assert error.value.exit_code == 4
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_large_file_has_its_space_before_its_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with atomic.preallocate(path, 10_000) as stream:
        (temporary,) = tmp_path.iterdir()
        assert temporary.stat().st_size == 10_000
        assert temporary.stat().st_blocks * 512 >= 10_000
        stream.seek(9_999)
        stream.write(b"z")
        stream.seek(0)
        stream.write(b"a")
    assert path.read_bytes() == b"a" + bytes(9_998) + b"z"
    assert names_in(tmp_path) == ["large"]


@pytest.mark.parametrize("number", [None, errno.ENOSPC, errno.EDQUOT])
def test_too_little_space_for_a_large_file_is_told_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """Be it that the disk has no such space, or that the system refuses it."""
    path = tmp_path / "large"
    path.write_text("old")
    if number is not None:
        monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**16))
        monkeypatch.setattr(atomic.os, "posix_fallocate", lambda *_: fail_with(number))
    with pytest.raises(DiskFull, match=r"disk full at .*, large needs 4000000\.0 GB: free some space"):
        atomic.preallocate(path, 4 * 10**15).__enter__()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["large"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_large_file_that_is_given_up_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "large"
    path.write_text("old")
    with pytest.raises(error), atomic.preallocate(path, 100):
        raise error
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["large"]


def test_a_full_device_stops_the_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(atomic, "open_own", lambda _, mode: os.fdopen(full, mode))
    with pytest.raises(DiskFull):
        Journal(tmp_path / "journal.jsonl").append({"image_id": "1"})


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (lambda path: write_text(path, ""), make_folder, lambda path: Journal(path).append({})):
        with pytest.raises(UserError, match=r"cannot write .*file/inside"):
            write(tmp_path / "file" / "inside")


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "images/7").mkdir(parents=True)
    for name in ("images/7/70.png", f"images/7/{atomic.TEMPORARY_PREFIX}123-70.png", ".lock", "a.csv"):
        (tmp_path / name).write_text("")
    atomic.remove_temporaries(tmp_path)
    assert names_in(tmp_path) == [".lock", "a.csv", "images"]
    assert names_in(tmp_path / "images/7") == ["70.png"]


def test_what_only_looks_like_a_killed_writers_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    kept = [f"{atomic.TEMPORARY_PREFIX}notes.txt", "mine/.tmp-", "mine/.tmp-12", "mine/x.tmp-12-a"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / f"{atomic.TEMPORARY_PREFIX}12-folder").mkdir()
    (tmp_path / f"{atomic.TEMPORARY_PREFIX}12-link").symlink_to(tmp_path / "mine/.tmp-12")
    before = sorted(tmp_path.rglob("*"))
    atomic.remove_temporaries(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for write in (make_folder, lambda path: write_text(path / "inside", "")):
        with pytest.raises(UserError, match="file is not a folder; remove it or name another place"):
            write(tmp_path / "file")
    with pytest.raises(UserError, match=r"folder: it is a folder; remove it or name another place"):
        write_text(tmp_path / "folder", "")


@pytest.mark.parametrize("content", [b"\x00\xff\x93binary\n", b"{}\n{\n{}\n", b"\n", b"3\n", b"[]\n"])
def test_a_damaged_journal_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"journal\.jsonl is damaged: remove it and run the interrupted command"
    ):
        journal.read()


@given(numbers=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_come_back_from_csv_exactly(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    write_csv(path, pd.DataFrame({"number": numbers}))
    header, *cells = path.read_text().splitlines()
    assert header == "number"
    assert [float(cell) for cell in cells] == numbers


def test_json_is_indented_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"auc": 0.1, "name": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"auc": 0.1, "name": None}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"auc": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text())["auc"] == 0.1


@given(cut=st.integers(0, 200))
def test_a_torn_journal_loses_at_most_its_last_line(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    records = [{"image_id": str(number), "message": 'a "quoted"\nline, größer'} for number in range(4)]
    ends = [0]
    for record in records:
        journal.append(record)
        ends.append(journal.path.stat().st_size)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:cut])
    num_whole = sum(end <= min(cut, len(whole)) for end in ends[1:])
    assert journal.read() == records[:num_whole]
    journal.mend()
    journal.append({"image_id": "new"})
    assert journal.read() == [*records[:num_whole], {"image_id": "new"}]


def test_an_absent_journal_is_empty(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.mend()
    journal.remove()
    assert journal.read() == []
    assert names_in(tmp_path) == []


def test_a_log_is_read_line_by_line_whatever_else_happens_to_it(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("of an earlier command\n")
    there, here = SharedLog(path), SharedLog(path)
    there.write("one\nand ")
    assert here.read() == ["one"]
    there.write("two\n")
    assert here.read() == ["and two"]
    assert here.read() == []
    with path.open("ab") as stream:
        stream.write(b"dam\xffaged\n")
    there.write("a name \udcff\n")
    assert here.read() == ["dam\ufffdaged", "a name ?"]
    path.unlink()
    path.mkdir()
    there.write("lost\n")
    assert here.read() == []
