"""Figures for TensorBoard: those of history.csv, each epoch once, whatever was killed."""

import sys
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.runs.run_folder import Run
from pipeline.training.cross_validate import cross_validate
from pipeline.training.tensorboard import write_events
from tests.pipeline.tiny import make_recipe, quiet


def read_events(folder: Path, name: str) -> dict[int, float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_tensorboard_shows_the_history_and_nothing_else_changes(
    cache: Cache, unbroken: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    cross_validate(make_recipe(tensorboard=True), cache, run, reporter=quiet(), folds=[0])
    history = pd.read_csv(run.fold(0).history).set_index("epoch")
    for name in ("train_loss", "val_loss", "learning_rate", "val_image_auc"):
        assert read_events(run.fold(0).events, name) == pytest.approx(history[name].to_dict())
    assert set(read_events(run.fold(0).events, "images_per_second")) == {1, 2, 3}
    assert not unbroken.fold(0).events.exists()
    assert run.fold(0).weights.read_bytes() == unbroken.fold(0).weights.read_bytes()


def test_an_epoch_that_is_made_again_is_shown_once(tmp_path: Path) -> None:
    for step, loss in [(1, 0.9), (2, 0.8), (2, 0.7), (3, 0.6)]:
        write_events(tmp_path, {"train_loss": loss}, step=step)
    assert read_events(tmp_path, "train_loss") == pytest.approx({1: 0.9, 2: 0.7, 3: 0.6})


def test_without_tensorboard_the_way_out_is_told_before_anything_is_written(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt '.\[tensorboard\]'"):
        cross_validate(make_recipe(tensorboard=True), cache, Run(tmp_path / "run"), reporter=quiet())
    assert not (tmp_path / "run").exists()
