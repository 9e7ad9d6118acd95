"""How much of the machine this process may use, the limits of its container included.

Needs nothing but Python: the doctor asks it where packages are broken.
"""

import math
import multiprocessing
import os
import resource
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where torch's workers put batches  # nosec B108
CGROUPS = Path("/sys/fs/cgroup")
MOST_MEMORY = 4 * 2**30  # bytes of address space for one file's work; the largest mammogram takes a third
OWN_GROUPS = Path("/proc/self/cgroup")


def count_cores() -> int:
    """Returns the number of cores that this process may use: those it is bound to, or its quota of time."""
    quotas = [max(1, math.ceil(quota)) for quota in map(_read_quota, _find_groups()) if quota is not None]
    return min([len(os.sched_getaffinity(0)), *quotas])


def count_memory_bytes() -> int:
    """Returns the memory that this process may use: the machine's, or its container's limit."""
    limits = [limit for group in _find_groups() for limit in _read_memory_limits(group)]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def _find_groups() -> Iterator[Path]:
    """Yields the folders of this process's control groups and of those around them, cgroups(7).

    In a container they may not be where `OWN_GROUPS` says: the container's own one is the mount itself.
    """
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:  # no Linux, or /proc is not mounted
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mount = CGROUPS / controllers  # of version 2, which names no controllers, the root
        group = mount / path.strip("/")
        yield from (each for each in (group, *group.parents) if each.is_relative_to(mount))


def _read_quota(group: Path) -> float | None:
    """Returns how many cores' time a group may take; None where nothing limits it."""
    words = _read_words(group / "cpu.max")  # version 2: quota and period
    if not words:
        words = [*_read_words(group / "cpu.cfs_quota_us"), *_read_words(group / "cpu.cfs_period_us")]
    if len(words) != 2 or not all(word.isdecimal() for word in words):  # "max", or -1
        return None
    return int(words[0]) / int(words[1])


def _read_memory_limits(group: Path) -> list[int]:
    names = ("memory.max", "memory.limit_in_bytes")
    return [int(word) for name in names for word in _read_words(group / name) if word.isdecimal()]


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


@cache
def limit_memory() -> None:
    """Limits a worker's address space, so that a hostile file costs itself, and not the machine's memory.

    For what decodes, as files that are mapped into memory count too. Does nothing in a command's own process.
    """
    if sys.platform == "linux" and multiprocessing.parent_process() is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MOST_MEMORY
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if most < 0 else min(limit, most), most))
