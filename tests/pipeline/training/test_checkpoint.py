"""Checkpoints and weights on disk: exact round trips, and every kind of damage told or survived."""

import logging
import os
import pickle
from pathlib import Path

import pytest
import torch

from data_prep.errors import TrainingStopped
from pipeline.runs.run_folder import FoldFolder
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint


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

    monkeypatch.setattr("pipeline.training.checkpoint.write_bytes", die)
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
