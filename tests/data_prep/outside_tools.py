"""Commands of other projects that tests ask; where they are not installed the tests skip."""

import shutil
import subprocess
from pathlib import Path

import pytest


def need(package: str, *commands: str) -> pytest.MarkDecorator:
    """Returns a mark that skips where one of a Debian package's commands is absent."""
    missing = [command for command in commands if shutil.which(command) is None]
    reason = f"{', '.join(missing)} not found: apt-get install {package}"
    return pytest.mark.skipif(bool(missing), reason=reason)


def call(*words: str | int | Path) -> None:
    """Runs a command, and fails with what it printed if it fails."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
