"""The demo finds the phantoms' cancers, and goes on where it was stopped."""

import json
from pathlib import Path

import pytest

from tests.forked import run
from tests.test_end_to_end import mammo

PROGRAM = """
import sys
from pathlib import Path
from rich.console import Console
from pipeline.demo import make_recipe, run_demo
from pipeline.runtime.progress import Reporter

run_demo(Path("demo"), seed=0, num_patients=60, recipe=make_recipe(0), reporter=Reporter(Console()))
"""


@pytest.mark.slow
def test_the_demo_finds_the_phantoms_cancers(tmp_path: Path) -> None:
    """With fewer patients than the command, which then finds all done."""
    ended = run("-c", PROGRAM, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert metrics["pooled"]["auc"] >= 0.80
    mammo("check", "demo/submission.csv", "--data", "demo/data", folder=tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*.csv")}
    assert "finished before" in mammo("demo", "--out", "demo", folder=tmp_path)
    assert {path: path.read_bytes() for path in before} == before
