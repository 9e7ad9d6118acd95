"""Checkpoints and weights on disk: exact round trips, and every kind of damage told or survived."""

import logging
import os
import pickle
import time
from pathlib import Path

import pytest
import torch

from data_prep.errors import TrainingStopped
from pipeline.runs.run_folder import FoldFolder
from pipeline.training import checkpoint as checkpoint_module
from pipeline.training.checkpoint import CheckpointWriter, load_checkpoint, save_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> FoldFolder:
    return FoldFolder(tmp_path)


def checkpoint(number: int) -> dict:
    """One of each kind of value that a checkpoint holds."""
    return {
        "model": {"weight": torch.full((2, 3), float(number))},
        "random": torch.get_rng_state(),
        "counters": {"epoch": number, "loss_sum": 0.1 * number},
        "history": [{"epoch": 1.0, "val_auc": float("nan")}],
    }


def number_of(loaded: dict | None) -> int:
    assert loaded is not None
    return loaded["counters"]["epoch"]


# Checkpoints


def test_a_checkpoint_comes_back_as_it_was(folder: FoldFolder) -> None:
    saved = checkpoint(3)
    save_checkpoint(folder, saved)
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert torch.equal(loaded["model"]["weight"], saved["model"]["weight"])
    assert torch.equal(loaded["random"], saved["random"])
    assert loaded["counters"] == saved["counters"]
    assert repr(loaded["history"]) == repr(saved["history"])


def test_without_a_checkpoint_there_is_none(folder: FoldFolder) -> None:
    assert load_checkpoint(folder) is None


def test_the_last_two_are_kept(folder: FoldFolder) -> None:
    for number in range(4):
        save_checkpoint(folder, checkpoint(number))
    assert sorted(path.name for path in folder.folder.iterdir()) == ["last.pt", "previous.pt"]
    assert number_of(load_checkpoint(folder)) == 3
    folder.last.unlink()
    assert number_of(load_checkpoint(folder)) == 2


@pytest.mark.parametrize(
    "damage", [lambda old: old[: len(old) // 2], lambda old: b"", lambda old: b"\0" * 99]
)
def test_a_damaged_last_one_falls_back_to_the_one_before_with_a_warning(
    folder: FoldFolder, caplog: pytest.LogCaptureFixture, damage
) -> None:
    save_checkpoint(folder, checkpoint(1))
    save_checkpoint(folder, checkpoint(2))
    folder.last.write_bytes(damage(folder.last.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert number_of(load_checkpoint(folder)) == 1
    (record,) = caplog.records
    assert str(folder.last) in record.getMessage()
    assert "trying the checkpoint before it" in record.getMessage()


def test_a_damaged_last_one_never_takes_the_place_of_the_good_one(
    folder: FoldFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the next save is broken off: then nothing would be left to read."""
    save_checkpoint(folder, checkpoint(1))
    save_checkpoint(folder, checkpoint(2))
    folder.last.write_bytes(b"damaged")
    load_checkpoint(folder)

    def die(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, checkpoint(3))
    assert number_of(load_checkpoint(folder)) == 1


def test_training_stops_where_no_checkpoint_can_be_read(folder: FoldFolder) -> None:
    """It never starts silently at step 0."""
    for path in (folder.last, folder.previous):
        path.write_bytes(b"damaged")
    with pytest.raises(
        TrainingStopped, match="can be read: remove that folder to train the fold anew"
    ) as caught:
        load_checkpoint(folder)
    assert caught.value.exit_code == 3
    assert folder.last.exists()


class Payload:
    """What somebody might slip into a checkpoint: unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_checkpoint_is_not_executed(folder: FoldFolder, tmp_path: Path, write) -> None:
    target = tmp_path / "executed"
    write({"model": Payload(target)}, folder.last)
    with pytest.raises(TrainingStopped):
        load_checkpoint(folder)
    assert not target.exists()


# Weights


# In the background


def test_what_is_saved_is_what_there_was_when_it_was_saved(folder: FoldFolder) -> None:
    saved = checkpoint(1)
    with CheckpointWriter(folder) as writer:
        writer.submit(saved)
        saved["model"]["weight"].fill_(-1.0)
        saved["history"][0]["epoch"] = 9.0
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert torch.equal(loaded["model"]["weight"], torch.full((2, 3), 1.0))
    assert loaded["history"][0]["epoch"] == 1.0


def test_each_checkpoint_is_on_disk_before_the_next_is_begun_and_at_the_end(
    folder: FoldFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    write = checkpoint_module.save_checkpoint

    def write_slowly(target: FoldFolder, saved: dict) -> None:
        events.append(f"begin {number_of(saved)}")
        time.sleep(0.05)
        write(target, saved)
        events.append(f"end {number_of(saved)}")

    monkeypatch.setattr(checkpoint_module, "save_checkpoint", write_slowly)
    with CheckpointWriter(folder) as writer:
        for number in (1, 2):
            writer.submit(checkpoint(number))
            events.append(f"on from {number}")
        writer.wait()
        events.append("waited")
    assert [event for event in events if "on" not in event] == [
        "begin 1",
        "end 1",
        "begin 2",
        "end 2",
        "waited",
    ]
    assert events.index("on from 1") < events.index("end 1")
    assert number_of(load_checkpoint(folder)) == 2


def test_a_checkpoint_that_could_not_be_written_is_no_secret(
    folder: FoldFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one, or the end, raises what went wrong; an error that is on its way is not hidden by it."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_checkpoint", fail)
    with pytest.raises(OSError, match="No space left"), CheckpointWriter(folder) as writer:
        writer.submit(checkpoint(1))
    with CheckpointWriter(folder) as writer:
        writer.submit(checkpoint(1))
        with pytest.raises(OSError, match="No space left"):
            writer.submit(checkpoint(2))

    def save_and_break_off() -> None:
        with CheckpointWriter(folder) as writer:
            writer.submit(checkpoint(1))
            raise KeyError

    with pytest.raises(KeyError):
        save_and_break_off()
