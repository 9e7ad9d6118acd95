"""The demo finds the phantoms' cancers, and goes on where it was stopped."""

import json
from pathlib import Path

import pytest

from tests.test_end_to_end import mammo


@pytest.mark.slow
def test_the_demo_finds_the_phantoms_cancers(tmp_path: Path) -> None:
    mammo("demo", "--out", "demo", folder=tmp_path, timeout_s=1200)
    metrics = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert metrics["pooled"]["auc"] >= 0.80
    mammo("check", "demo/submission.csv", "--data", "demo/data", folder=tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*.csv")}
    assert "finished before" in mammo("demo", "--out", "demo", folder=tmp_path)
    assert {path: path.read_bytes() for path in before} == before
