"""Files are opened only if they are files, and mammo's own never through a link."""

import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from data_prep.storage.files import (
    NotAFile,
    open_input,
    open_own,
    parse_json,
    parse_toml,
    read_input,
    read_own,
    real_folder,
    require_own,
)

DEEP = 100_000


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(path))


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS = {"pipe": make_pipe, "folder": make_folder, "socket": make_socket, "device": make_link_to_device}


@pytest.fixture
def short_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A path that is short enough for a socket."""
    monkeypatch.chdir(tmp_path)
    return Path("x")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_said_and_not_waited_for(kind: str, short_path: Path) -> None:
    KINDS[kind](short_path)
    with pytest.raises(NotAFile, match=f"it is a {kind}, not a file") as error:
        open_input(short_path)
    assert error.value.filename == str(short_path)
    for mode in ("rb", "r+b", "ab", "a+b"):
        with pytest.raises(NotAFile, match=f"it is a (link|{kind}), not a file"):
            open_own(short_path, mode)


@pytest.mark.parametrize("mode", ["rb", "r+b", "ab", "a+b", "xb"])
@pytest.mark.parametrize("target", ["file", "nothing"])
def test_a_link_is_followed_for_users_files_alone(tmp_path: Path, mode: str, target: str) -> None:
    (tmp_path / "file").write_bytes(b"secret")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    with pytest.raises(NotAFile, match="it is a link"):
        open_own(link, mode)
    assert not (tmp_path / "nothing").exists()
    assert (tmp_path / "file").read_bytes() == b"secret"
    if target == "file":
        assert read_input(link) == b"secret"


def test_files_are_opened_as_python_does(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open_own(path, "xb") as stream:
        stream.write(b"one")
    with pytest.raises(FileExistsError):
        open_own(path, "xb")
    with open_own(path, "ab") as stream:
        stream.write(b"two")
    with open_own(path, "r+b") as stream:
        stream.write(b"ONE")
    with open_own(path, "a+b") as stream:
        stream.seek(0)
        assert stream.read() == b"ONEtwo"
    assert read_own(path) == read_input(path) == b"ONEtwo"
    assert require_own(path) == path
    for call in (read_own, read_input, require_own):
        with pytest.raises(FileNotFoundError):
            call(tmp_path / "absent")


def test_folders_are_real_or_absent(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    assert real_folder(tmp_path) == tmp_path
    assert real_folder(tmp_path / "absent") == tmp_path / "absent"
    with pytest.raises(NotAFile, match="it is a link, not a folder"):
        real_folder(tmp_path / "link")
    with pytest.raises(NotADirectoryError):
        real_folder(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "parse", [lambda value: parse_json(value.encode()), lambda value: parse_toml(f"a = {value}")]
)
@pytest.mark.parametrize(
    ("value", "problem"), [(DEEP * "[" + DEEP * "]", "nested"), (5000 * "9", "digits"), ("", "value")]
)
def test_texts_that_break_parsers_are_value_errors(
    parse: Callable[[str], object], value: str, problem: str
) -> None:
    with pytest.raises(ValueError, match=f"(?i){problem}"):
        parse(value)
