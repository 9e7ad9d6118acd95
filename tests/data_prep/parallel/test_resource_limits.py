"""Cores and memory of a container, by control groups as the kernel shows them: here, plain files."""

import os
from pathlib import Path

import pytest

from data_prep.parallel import resource_limits
from data_prep.parallel.resource_limits import count_cores, count_memory_bytes


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of control groups of a machine with 64 cores and 64 GiB."""
    monkeypatch.setattr(resource_limits, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resource_limits, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(64)))
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 2**24)
    return tmp_path / "cgroup"


def write(groups: Path, own: str, **files: str) -> None:
    """Writes the process's groups, and files as `folder__name`, where a dot is `_dot_`."""
    (groups.parent / "own").write_text(own)
    for name, content in files.items():
        path = groups / name.replace("_dot_", ".").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_this_machine_has_a_core() -> None:
    assert count_cores() >= 1


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", 64)]
)
def test_a_quota_of_the_container_counts_as_cores(groups: Path, quota: str, cores: int) -> None:
    write(groups, "0::/\n", cpu_dot_max=f"{quota}\n")
    assert count_cores() == cores


def test_cores_that_the_process_is_bound_to_count_where_they_are_fewer(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(groups, "0::/\n", cpu_dot_max="800000 100000\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {3, 5})
    assert count_cores() == 2


def test_a_groups_limits_and_those_of_the_groups_around_it_hold(groups: Path) -> None:
    """As in a job of Slurm, whose step has no limit of its own."""
    write(
        groups,
        "0::/slurm/job_1/step_0\n",
        slurm__job_1__step_0__cpu_dot_max="max 100000\n",
        slurm__job_1__cpu_dot_max="400000 100000\n",
        slurm__job_1__memory_dot_max=f"{2**33}\n",
        slurm__memory_dot_max="max\n",
        slurm__job_2__memory_dot_max=f"{2**20}\n",
    )
    assert count_cores() == 4
    assert count_memory_bytes() == 2**33


def test_the_older_control_groups_are_read_too(groups: Path) -> None:
    """In a container the mount is its own group, wherever the host says that it is."""
    write(
        groups,
        "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n",
        **{"cpu,cpuacct__cpu_dot_cfs_quota_us": "300000\n", "cpu,cpuacct__cpu_dot_cfs_period_us": "100000\n"},
        memory__memory_dot_limit_in_bytes=f"{2**34}\n",
    )
    assert count_cores() == 3
    assert count_memory_bytes() == 2**34


def test_limits_that_limit_nothing_leave_the_machine_as_it_is(groups: Path) -> None:
    write(
        groups,
        "4:memory:/\n1:cpu:/\n",
        cpu__cpu_dot_cfs_quota_us="-1\n",
        cpu__cpu_dot_cfs_period_us="100000\n",
        memory__memory_dot_limit_in_bytes="9223372036854771712\n",
    )
    assert count_cores() == 64
    assert count_memory_bytes() == 2**36


def test_a_machine_without_control_groups_is_counted_as_it_is(groups: Path) -> None:
    assert not groups.exists()
    assert count_cores() == 64
    assert count_memory_bytes() == 2**36
