"""A few of the kills of `make campaign`."""

from pathlib import Path

import pytest

from tests.campaigns.kills import kill_loop, make_subjects


@pytest.mark.slow
def test_commands_killed_at_random_moments_leave_what_unbroken_ones_leave(tmp_path: Path) -> None:
    for subject in make_subjects(tmp_path):
        done = kill_loop(subject, tmp_path / "loops" / subject.name, num_kills=1)
        assert done.kills == 1
        assert done.through >= 1
