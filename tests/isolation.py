"""Processes without a network or with file systems of their own, by Linux namespaces.

Skips the test where the kernel refuses them: they need root, or namespaces for everybody.
"""

import shutil
import subprocess

import pytest


def without_network() -> list[str]:
    """What to put before a command so that it has no network, not even a loopback that works."""
    return _find_namespaces(["-n"], "true", "a network namespace")


def with_own_mounts() -> list[str]:
    """What to put before a command so that its mounts are its own and gone when it ends."""
    return _find_namespaces(["-m"], "mount -t tmpfs -o size=64k tmpfs /mnt", "a mount of its own")


def with_own_processes() -> list[str]:
    """What to put before a command so that it sees no process but its own; all of them end with it."""
    return _find_namespaces(["-p", "--fork", "--mount-proc"], "true", "a namespace of processes")


def _find_namespaces(options: list[str], trial: str, what: str) -> list[str]:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare on this machine")
    for command in (["unshare", *options], ["unshare", "-r", *options]):
        tried = subprocess.run([*command, "sh", "-c", trial], capture_output=True, timeout=600, check=False)
        if tried.returncode == 0:
            return command
    pytest.skip(f"this user may not make {what}")
