"""A few of the kills of `make campaign`."""

from pathlib import Path

import pytest

from tests.campaigns.kills import kill_loop, make_subjects, run_apart


@pytest.mark.slow
def test_commands_killed_at_random_moments_leave_what_unbroken_ones_leave(tmp_path: Path) -> None:
    subjects = make_subjects(tmp_path)
    run_apart(subjects, tmp_path / "loops")
    for subject in subjects:
        done = kill_loop(subject, tmp_path / "loops" / subject.name, num_kills=1)
        assert done.kills == 1
        assert done.through >= 1
