"""The load of `make campaign`, with fewer files."""

from pathlib import Path

import pandas as pd
import pytest

from tests.campaigns.load import prepare_watched, write_load


@pytest.mark.slow
def test_many_files_are_counted_exactly_and_leave_nothing_behind(tmp_path: Path) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    num_bad = write_load(data, num_images=1200, num_files=40, share_bad=0.01)
    watched = prepare_watched(data, cache, workers=2)
    assert watched.exit_code == 0
    manifest = pd.read_csv(cache / "manifest.csv")
    assert manifest["status"].value_counts().to_dict() == {"prepared": 1200 - num_bad, "failed": num_bad}
    failures = pd.read_csv(cache / "failures.csv")
    assert failures["reason"].tolist() == ["truncated"] * num_bad
    assert len(list((cache / "images").rglob("*.png"))) == 1200 - num_bad
    assert watched.left_processes == 0
    assert watched.left_files == []
    assert max(watched.handles) < 100
    assert watched.growth_mb() < 100
