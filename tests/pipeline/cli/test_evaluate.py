"""`mammo evaluate` and `mammo compare` on finished runs: what is printed, written and refused."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

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


def test_evaluate_prints_folds_intervals_and_where_the_rest_stands(runs: list[Path]) -> None:
    shown = CliRunner().invoke(app, ["evaluate", str(runs[1])], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    assert re.search(r"^AUC 0\.\d{3}, 95 % interval 0\.\d{3} to ", shown.stdout, re.MULTILINE)
    lines = [re.split(r"  +", line.strip()) for line in shown.stdout.splitlines()]
    start = lines.index(["per breast, fold", "0", "1", "2", "3", "4", "all"])
    table = lines[start : start + 3 + len(SHOWN_FIGURES)]
    content = json.loads((runs[1] / "metrics.json").read_text())
    for name, *cells in table[3:]:
        (figure,) = [figure for figure, title in FIGURE_NAMES.items() if title == name]
        assert cells == [f"{estimate[figure]:.3f}" for estimate in [*content["folds"], content["pooled"]]]
    assert f"all figures, also per image and slice: {runs[1] / 'metrics.json'}" in shown.stdout
    assert shown.stdout.splitlines()[-1] == f"report: {runs[1] / 'report.html'}"
    assert "undefined" not in shown.stdout
    assert "no slices by site, machine, view, density, age, implant: the predictions" in shown.stdout


def test_evaluate_says_what_is_undefined_and_why_in_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_oof(num_cancers=0))
    shown = mammo("evaluate", run.folder)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("undefined, since there is no breast with cancer: pF1 of the raw") == 1


def test_compare_prints_a_verdict_per_figure_and_writes_the_table(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "differences.csv"
    shown = mammo("compare", *runs, "--out", out)
    assert shown.exit_code == 0, shown.output
    assert f"{runs[1]} compared with {runs[0]}, per breast" in shown.stdout
    lines = [line for line in shown.stdout.splitlines() if line.startswith(tuple(FIGURE_NAMES.values()))]
    verdicts = {line.split("  ")[0].strip(): line.split()[-1] for line in lines}
    assert set(verdicts) == {FIGURE_NAMES[name] for name in COMPARED}
    assert verdicts["AUC"] == "better"
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
    assert "of 5 folds, 1 still to be trained" in refuse("compare", *runs)


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
    assert f"{runs[0]} was not judged on north: give `mammo evaluate" in refuse(
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
        (["--data", "x", "--cache", "y"], "give either --data DATA or --cache CACHE"),
        (["--name", "north"], "--name goes with --data or --cache"),
        (["--skip-seen"], "--skip-seen goes with --data or --cache"),
        (["--engine", "ray"], "--engine ray goes with --data or --cache"),
        (["--data", "x", "--engine", "ray", "--workers", "2"], "--workers goes with --engine local"),
        (["--data", "x", "--name", "../x"], "choose a --name of"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(
    runs: list[Path], options: list[str], sentence: str
) -> None:
    assert sentence in refuse("evaluate", runs[0], *options)
