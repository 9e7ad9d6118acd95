"""Names and cells that a spreadsheet or a browser would run: refused in tables, shown as text in pages."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from data_prep.errors import UserError
from data_prep.storage.atomic import write_csv
from pipeline.evaluation.artifacts import evaluate_run
from pipeline.reporting.report import write_report
from pipeline.runs.run_folder import Run
from tests.browser import open_page
from tests.pipeline.tiny import quiet

MARKUP = "<img src=x onerror='window.planted=1'>"
FORMULAS = ["=cmd|' 'C calc'!A0", "+1+cmd()", "-2+3+cmd()", "@SUM(1+1)", "\t=1+1", "\r=1+1"]


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_cell_that_begins_like_a_formula_is_never_written(tmp_path: Path, formula: str) -> None:
    path = tmp_path / "a.csv"
    with pytest.raises(
        UserError, match=r"a\.csv is not written: .* in the column name begins like a formula"
    ):
        write_csv(path, pd.DataFrame({"name": ["good", formula], "value": [1.0, -2.0]}))
    assert not path.exists()


def test_numbers_and_other_texts_are_written_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    cells = ["-7", "-1.5e-3", "+2", "a=b", "1-2", "", "L"]
    write_csv(path, pd.DataFrame({"name": cells, "value": [-1.0] * len(cells)}))
    assert pd.read_csv(path, dtype=str, keep_default_na=False)["name"].tolist() == cells


def test_markup_in_names_and_cells_does_not_run_in_a_browser(unbroken: Run, tmp_path: Path) -> None:
    """As the run's name, and as a view that somebody wrote into its predictions."""
    run = Run(Path(shutil.copytree(unbroken.folder, tmp_path / f"run {MARKUP}")))
    for path in run.folder.glob("fold_*/oof.csv"):
        oof = pd.read_csv(path, dtype=str)
        oof["view"] = f"<script>window.planted=2</script>{MARKUP}"
        oof.to_csv(path, index=False)
    write_report(run, evaluate_run(run), reporter=quiet())
    question = """{planted: "planted" in window,
        strangers: [...document.images].filter(image => !image.src.startsWith("data:")).length,
        told: document.body.innerText.includes("onerror")}"""
    opened = open_page(run.report, question, tmp_path)
    assert opened.answer == {"planted": False, "strangers": 0, "told": True}
    assert opened.console == []
