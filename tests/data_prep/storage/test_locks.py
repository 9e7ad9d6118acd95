"""Locks of folders: who holds one, who may take it after him, and what other machines are told."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.errors import FolderInUse, UserError
from data_prep.storage import locks
from data_prep.storage.locks import locked, require_unlocked

HOLD_LOCK = """
import sys
from pathlib import Path
from data_prep.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_hears_who_holds_the_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"in use by process {holder.pid} on ") as error:
            locked(tmp_path).__enter__()
        assert error.value.exit_code == 5
        with pytest.raises(FolderInUse, match=f"in use by process {holder.pid} on "):
            require_unlocked(tmp_path)
        holder.kill()
    with locked(tmp_path):  # whoever is dead holds nothing
        pass


def test_to_ask_for_a_lock_takes_and_writes_nothing(tmp_path: Path) -> None:
    require_unlocked(tmp_path / "absent")
    require_unlocked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass
    before = (tmp_path / ".lock").read_bytes()
    require_unlocked(tmp_path)
    assert (tmp_path / ".lock").read_bytes() == before


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "new" / "folder"):
            assert (tmp_path / "new" / "folder").is_dir()


def hold_from_elsewhere(folder: Path, *, seconds_ago: float) -> Path:
    """Leaves what another machine leaves where the file system locks each machine by itself."""
    path = folder / ".lock"
    path.write_text("process 7 on another-machine")
    then = time.time() - seconds_ago
    os.utime(path, (then, then))
    return path


def test_a_machine_that_gave_a_sign_of_life_holds_its_folder(tmp_path: Path) -> None:
    path = hold_from_elsewhere(tmp_path, seconds_ago=240)
    for ask in (require_unlocked, lambda folder: locked(folder).__enter__()):
        with pytest.raises(
            FolderInUse, match=r"process 7 on another-machine, which gave .* 24\d s ago"
        ) as error:
            ask(tmp_path)
        assert str(path) in str(error.value)
    assert path.read_text() == "process 7 on another-machine"
    path.unlink()
    with locked(tmp_path):
        pass


def test_a_machine_that_gave_no_sign_for_five_minutes_holds_nothing(tmp_path: Path) -> None:
    path = hold_from_elsewhere(tmp_path, seconds_ago=310)
    require_unlocked(tmp_path)
    with locked(tmp_path):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(f"process 7 on {socket.gethostname()}")
    with locked(tmp_path):
        pass


def test_the_holder_gives_signs_of_life_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    path = tmp_path / ".lock"
    with locked(tmp_path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 600
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
    os.utime(path, (0, 0))
    time.sleep(0.1)
    assert path.stat().st_mtime == 0


def test_a_block_that_fails_lets_other_machines_in_at_once(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert (tmp_path / ".lock").read_text() == ""


@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
def test_what_stands_in_the_locks_place_is_left_alone(tmp_path: Path, what: str) -> None:
    path, other = tmp_path / ".lock", tmp_path / "other"
    other.write_text("process 7 on another-machine")
    {"link": lambda: path.symlink_to(other), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[what]()
    for ask in (require_unlocked, lambda folder: locked(folder).__enter__()):
        with pytest.raises(UserError, match=rf"\.lock: it is a {what}, not a file; remove it"):
            ask(tmp_path)
    assert other.read_text() == "process 7 on another-machine"


def test_what_is_no_holders_name_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 7 on \x1b[31mevil")
    with locked(tmp_path):
        pass


def test_a_machine_from_the_future_holds_nothing(tmp_path: Path) -> None:
    hold_from_elsewhere(tmp_path, seconds_ago=-1e6)
    require_unlocked(tmp_path)
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), locked(tmp_path / "file" / "inside"):
        pass
