"""Where a run's cache is found again."""

import json
import shutil
from pathlib import Path

import pytest

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.runs.records import describe_cache, describe_epoch, find_cache
from pipeline.runs.run_folder import Run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a cache, in so far as one is looked for, and a run."""
    (tmp_path / "place/cache").mkdir(parents=True)
    (tmp_path / "place/cache/settings.toml").touch()
    (tmp_path / "place/reports/first").mkdir(parents=True)
    return tmp_path / "place"


def make_run(place: Path, environment: dict[str, str]) -> Run:
    run = Run(place / "reports/first")
    run.environment.write_text(json.dumps(environment))
    return run


def test_a_cache_is_found_from_any_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    run = make_run(place, describe_cache(Cache(Path("cache")), Run(Path("reports/first"))))
    monkeypatch.chdir("/")
    assert find_cache(run).folder == place / "cache"


def test_a_cache_and_a_run_that_moved_together_are_found(place: Path) -> None:
    make_run(place, describe_cache(Cache(place / "cache"), Run(place / "reports/first")))
    moved = Path(shutil.move(place, place.parent / "moved"))
    assert find_cache(Run(moved / "reports/first")).folder == moved / "cache"


def test_a_path_that_an_older_mammo_wrote_is_looked_for_above_the_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert find_cache(make_run(place, {"cache": "cache"})).folder == place / "cache"


def test_a_cache_that_is_gone_is_named(place: Path) -> None:
    run = make_run(place, describe_cache(Cache(place / "cache"), Run(place / "reports/first")))
    shutil.rmtree(place / "cache")
    with pytest.raises(UserError, match=f"the run's cache {place}/cache is no longer there"):
        find_cache(run)
    with pytest.raises(UserError, match=r"the run.s environment\.json names no cache"):
        find_cache(make_run(place, {}))


def test_an_epoch_is_told_by_the_figures_that_it_has() -> None:
    row = {"epoch": 1.0, "train_loss": 0.5, "val_loss": 0.25, "val_auc": float("nan"), "val_pf1": 0.125}
    assert describe_epoch(row) == "loss 0.500, val 0.250, AUC undefined, pF1 0.125"
    row = {"epoch": 1.0, "train_loss": 0.5, "test_loss": 0.25, "test_accuracy": 1.0}
    assert describe_epoch(row) == "loss 0.500, test 0.250, accuracy 1.000"
