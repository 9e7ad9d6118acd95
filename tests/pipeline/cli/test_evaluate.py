"""`mammo evaluate` and `mammo compare` on finished runs: what is printed, written and refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.cli.app import app
from pipeline.cli.evaluate import SHOWN_FIGURES
from pipeline.evaluation.compare import COMPARED, COMPARISON_COLUMNS
from pipeline.reporting.formatting import FIGURE_NAMES
from pipeline.runs.run_folder import Run
from tests.pipeline.synthetic_run import make_oof, write_run


def mammo(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


def refuse(*arguments: object) -> str:
    """Returns the one sentence that ends a command."""
    ended = mammo(*arguments)
    assert isinstance(ended.exception, UserError), ended.output
    assert "\n" not in str(ended.exception)
    return str(ended.exception)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs on the same breasts, the second with more skill."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, skill in zip(folders, (0.0, 3.0), strict=True):
        write_run(folder, make_oof(num_folds=5, num_cancers=25, skill=skill))
    return folders


@pytest.mark.parametrize("num_folds", [2, 5])
def test_evaluate_prints_one_table_with_intervals_and_where_the_rest_stands(
    tmp_path: Path, num_folds: int
) -> None:
    folder = write_run(tmp_path / "run", make_oof(num_folds=num_folds, num_cancers=25, skill=3.0)).folder
    shown = CliRunner().invoke(app, ["evaluate", str(folder)], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    lines = [re.split(r"  +", line.strip()) for line in shown.stdout.splitlines()]
    start = lines.index(["per breast", "all", "95 %", "by fold"])
    table = lines[start : start + 3 + len(SHOWN_FIGURES)]
    content = json.loads((folder / "metrics.json").read_text())
    assert table[1][:2] == ["breasts", "120"]
    for name, *cells in table[3:]:
        (figure,) = [figure for figure, title in FIGURE_NAMES.items() if title == name]
        folds = [f"{estimate[figure]:.3f}" for estimate in content["folds"]]
        span = ", ".join(folds) if num_folds == 2 else " to ".join(dict.fromkeys([min(folds), max(folds)]))
        low, high = content["pooled"]["interval_95"][figure]
        assert cells == [f"{content['pooled'][figure]:.3f}", f"{low:.3f} to {high:.3f}", span]
    told = shown.stdout.splitlines()[start:]
    assert all(len(line) <= 80 for line in told if str(folder) not in line and "no slices" not in line)
    numbers = re.findall(r"\b0\.\d{3} to 0\.\d{3}\b", "".join(told[3 + len(SHOWN_FIGURES) :]))
    assert not numbers, "no interval is printed twice"
    assert f"all figures, also per image and slice: {folder / 'metrics.json'}" in shown.stdout
    assert told[-1] == f"report: {folder / 'report.html'}"
    assert "undefined" not in shown.stdout
    assert "no slices by site, machine, view, density, age, implant: the predictions" in shown.stdout


def test_the_figure_that_leads_where_counting_tells_stands_first(tmp_path: Path) -> None:
    """Breasts with cancer have more images; the AUC of images that weighs breasts alike leads then."""
    oof = make_oof(num_cancers=40, num_patients=100)
    keep = (oof["cancer"] == 1) | ~oof.duplicated(["patient_id", "laterality"])
    folder = write_run(tmp_path / "run", oof[keep]).folder
    lines = CliRunner().invoke(app, ["evaluate", str(folder)], env={"COLUMNS": "80"}).stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("cancers "))
    assert lines[start + 1].startswith("AUC, each breast's images")
    assert all(len(line) <= 80 for line in lines[start - 2 : start + 9])


def test_evaluate_says_what_is_undefined_and_why_in_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_oof(num_cancers=0))
    shown = mammo("evaluate", run.folder)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("undefined, since there is no breast with cancer: pF1 of the raw") == 1


def test_evaluate_says_that_the_report_has_no_pictures_and_takes_the_cache(
    finished: Run, cache: Cache, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(cache.folder, tmp_path / "moved"))
    finished.environment.write_text('{"cache": "gone"}')
    told = mammo("evaluate", finished.folder).stdout
    assert "warning: The cases have no pictures: the run's cache gone is no longer there." in told
    assert f"`mammo evaluate {finished.folder} --cache CACHE`" in told
    told = mammo("evaluate", finished.folder, "--cache", moved).stdout
    assert "no pictures" not in told
    assert "is not a cache" in refuse("evaluate", finished.folder, "--cache", tmp_path / "gone")


def test_compare_prints_a_verdict_per_figure_and_writes_the_table(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "differences.csv"
    shown = mammo("compare", *runs, "--out", out)
    assert shown.exit_code == 0, shown.output
    assert f"{runs[1]} compared with {runs[0]}, per breast" in shown.stdout
    lines = shown.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("figure "))
    end = next(number for number, line in enumerate(lines) if line.startswith("p: "))
    assert max(map(len, lines[start:end])) <= 80
    place = {name: lines[start].index(name) for name in ("first", "this is")}
    told = " ".join(line[: place["first"]].strip() for line in lines[start + 1 : end])
    assert all(FIGURE_NAMES[name].replace("\xa0", " ") in told.replace("\xa0", " ") for name in COMPARED)
    words = [line[place["this is"] :].strip() for line in lines[start + 1 : end]]
    assert len([word for word in words if word in {"better", "worse", "unclear"}]) == len(COMPARED)
    assert "<0.001" in lines[start + 1]
    assert words[0] == "better"
    assert "AUC decides" in shown.stdout
    table = pd.read_csv(out)
    assert list(table) == COMPARISON_COLUMNS
    assert table.set_index("figure").loc["auc", "verdict"] == "better"


def test_compare_changes_no_run(runs: list[Path]) -> None:
    before = {path: path.read_bytes() for run in runs for path in run.rglob("*") if path.is_file()}
    assert mammo("compare", *runs).exit_code == 0
    after = {path: path.read_bytes() for run in runs for path in run.rglob("*") if path.is_file()}
    assert after == before


def test_compare_refuses_other_patients_one_run_and_an_unfinished_run(
    runs: list[Path], tmp_path: Path
) -> None:
    other = write_run(tmp_path / "other", make_oof(num_patients=50, num_folds=5)).folder
    assert f"{other} has no prediction of 20 breasts of {runs[0]}" in refuse("compare", runs[0], other)
    assert "needs two different runs or more" in refuse("compare", runs[0], runs[0])
    (runs[1] / "fold_1/oof.csv").unlink()
    assert "fold 1 of 5 still to be trained" in refuse("compare", *runs)


def test_compare_refuses_a_place_that_cannot_be_written_before_it_reads_a_run(
    runs: list[Path], tmp_path: Path
) -> None:
    """A run that is not finished is not even looked at."""
    (runs[1] / "fold_1/oof.csv").unlink()
    (tmp_path / "file").write_text("")
    assert "is not a folder; remove it or name another" in refuse(
        "compare", *runs, "--out", tmp_path / "file/x.csv"
    )


def test_compare_overwrites_nothing_but_a_comparison(runs: list[Path]) -> None:
    before = (runs[0] / "folds.csv").read_bytes()
    ended = mammo("compare", *runs, "--out", runs[0] / "folds.csv")
    assert ended.exit_code != 0
    assert "would be overwritten" in str(ended.exception)
    assert (runs[0] / "folds.csv").read_bytes() == before


# On other patients


def judge_on(run: Path, name: str, oof: pd.DataFrame) -> None:
    """Leaves what `mammo evaluate RUN --data` keeps of its predictions."""
    folder = Run(run).external(name)
    folder.folder.mkdir(parents=True)
    kept = oof.assign(prediction_id=oof["patient_id"] + "_" + oof["laterality"], file="")
    kept.drop(columns="fold").to_csv(folder.oof, index=False)
    folder.metrics.write_text("{}")


def test_compare_on_an_external_set_takes_the_predictions_there(runs: list[Path], tmp_path: Path) -> None:
    """The better one at home is the worse one there, by scikit-learn's AUC."""
    for run in runs:
        assert mammo("evaluate", run).exit_code == 0
    assert f"{runs[0]} was not judged on north: run `mammo evaluate" in refuse(
        "compare", *runs, "--on", "north"
    )
    there = [make_oof(num_patients=80, num_cancers=40, skill=skill, seed=5) for skill in (2.5, 0.5)]
    for run, oof in zip(runs, there, strict=True):
        judge_on(run, "north", oof)
    out = tmp_path / "there.csv"
    shown = mammo("compare", *runs, "--on", "north", "--out", out)
    assert shown.exit_code == 0, shown.output
    row = pd.read_csv(out).set_index("figure").loc["auc"]
    for name, oof in zip(("reference_value", "value"), there, strict=True):
        logits = np.log(oof["probability"] / (1 - oof["probability"]))
        breasts = oof.assign(logit=logits).groupby(["patient_id", "laterality"])
        expected = roc_auc_score(breasts["cancer"].first(), breasts["logit"].mean())
        assert row[name] == pytest.approx(expected)
    assert row["verdict"] == "worse"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data", "x", "--cache", "y"], "--cache names the cache of the run and goes without --data"),
        (["--name", "north"], "--name goes with --data"),
        (["--skip-seen"], "--skip-seen goes with --data"),
        (["--engine", "ray"], "--engine ray goes with --data"),
        (["--data", "x", "--engine", "ray", "--workers", "2"], "--workers goes with --engine local"),
        (["--data", "x", "--name", "../x"], "choose a --name of"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(
    runs: list[Path], options: list[str], sentence: str
) -> None:
    assert sentence in refuse("evaluate", runs[0], *options)


def test_data_is_a_cache_where_the_folder_holds_the_settings_of_one(runs: list[Path], tmp_path: Path) -> None:
    assert mammo("evaluate", runs[0]).exit_code == 0
    (tmp_path / "north").mkdir()
    assert "has no train.csv" in refuse("evaluate", runs[0], "--data", tmp_path / "north")
    (tmp_path / "north/settings.toml").write_text('split = "train"\n')
    assert "run its `mammo prepare` command again" in refuse(
        "evaluate", runs[0], "--data", tmp_path / "north"
    )
