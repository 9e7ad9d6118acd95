"""The plan of a run before it is begun: true counts, a sober estimate, and nothing written."""

import re
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from data_prep.cache.folder import Cache
from data_prep.settings import dump_settings
from pipeline.cli.app import app
from pipeline.models.vit import VisionTransformer
from pipeline.runs.run_folder import Run
from pipeline.training import dry_run
from pipeline.training.dry_run import StepTime, make_dry_run
from pipeline.training.trainer import Trainer
from tests.pipeline.tiny import MODEL, heard, make_recipe, quiet


def test_the_folds_are_those_that_are_trained(cache: Cache, unbroken: Run) -> None:
    plan = make_dry_run(make_recipe(), cache, reporter=quiet())
    assert plan.table["fold"].tolist() == [0, 1]
    exams = cache.read_exams()
    for row in plan.table.itertuples():
        held_out = pd.read_csv(unbroken.fold(row.fold).oof)
        history = pd.read_csv(unbroken.fold(row.fold).history)
        assert (row.held_out, row.held_out_positives) == (len(held_out), held_out["cancer"].sum())
        assert row.images + row.held_out == len(exams)
        assert row.positives + row.held_out_positives == exams["cancer"].sum()
        assert row.steps_per_epoch == history["step"].iloc[0]
    assert plan.num_parameters == sum(each.numel() for each in VisionTransformer(MODEL).parameters())
    assert (plan.num_tokens, plan.device, plan.precision) == (17, "cpu", "float32")
    assert plan.memory_mb > 50


def test_the_estimate_is_that_of_all_steps_and_predictions(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "time_steps", lambda _: StepTime(seconds=6.0, num_images=8.0, memory_mb=1.0))
    plan = make_dry_run(make_recipe(epochs=5), cache, reporter=quiet())
    steps, images = plan.table["steps_per_epoch"].sum(), plan.table["held_out"].sum()
    assert plan.seconds == pytest.approx(5 * (6.0 * steps + 0.25 * images))


def test_the_folds_are_told_before_the_first_step_and_every_step_is_counted(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    take_steps = dry_run.time_steps

    def time_steps(trainer: Trainer) -> StepTime:
        told.append("steps")
        return take_steps(trainer)

    monkeypatch.setattr(dry_run, "time_steps", time_steps)
    reporter = quiet()
    plan = make_dry_run(make_recipe(), cache, reporter=reporter, on_table=told.append)
    assert told[0] is plan.table
    assert told[1:] == ["steps"]
    assert re.search(r"measuring: (\d+)/\1 steps", heard(reporter))


def test_a_single_batch_can_be_timed_too(cache: Cache) -> None:
    plan = make_dry_run(make_recipe(batch_size=64), cache, reporter=quiet())
    assert plan.table["steps_per_epoch"].max() == 1
    assert plan.seconds > 0


def test_a_dry_run_prints_the_plan_and_writes_nothing(cache: Cache, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(dump_settings(make_recipe()))
    arguments = [
        "train",
        str(config),
        "--cache",
        str(cache.folder),
        "--run",
        str(tmp_path / "run"),
        "--dry-run",
    ]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    assert "held out positives" in shown.output
    assert "17 tokens, float32 on cpu" in shown.output
    assert "patches of 8 pixels were not counted" in shown.output
    assert re.search(r"3 epochs of 2 folds: about \d+ s on this machine", shown.output)
    assert not (tmp_path / "run").exists()
