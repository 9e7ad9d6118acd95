"""Writes constraints-hashed.txt: the packages of constraints.txt with the checksums of their files.

    make hashes

Asks pip alone, by its installation report. Left out are torch and torchvision, of which each machine takes
the build that suits it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"torch", "torchvision"}
HEADER = """\
# The packages of constraints.txt with the SHA-256 of their wheels for Python 3.11 on Linux x86_64, but for
# torch and torchvision. Made from constraints.txt by `make hashes`, which asks pip's own report:
# `pip install --dry-run --ignore-installed --no-deps --report`. To install no other files, and torch after
# them: pip install --require-hashes --no-deps -r constraints-hashed.txt
"""


def read_pins(path: Path) -> list[str]:
    """Returns the lines NAME==VERSION, without those of torch."""
    pins = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return [pin for pin in pins if pin and normalize(pin.split("==")[0]) not in LEFT_OUT]


def normalize(name: str) -> str:
    """Returns a package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def hash_pins(pins: list[str]) -> list[str]:
    """Returns a line for each pin, with the checksum of the file that pip would take."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
    command += ["--ignore-installed", "--no-deps", "--only-binary", ":all:", "--report", "-", *pins]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    found = {
        normalize(each["metadata"]["name"]): each["download_info"]["archive_info"]["hashes"]["sha256"]
        for each in report["install"]
    }
    return [f"{pin} --hash=sha256:{found[normalize(pin.split('==')[0])]}" for pin in sorted(pins)]


if __name__ == "__main__":
    lines = hash_pins(read_pins(ROOT / "constraints.txt"))
    (ROOT / "constraints-hashed.txt").write_text(HEADER + "\n".join(lines) + "\n")
