"""The wheel: the two packages with their data files, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith("mammo_vit-")
    assert wheel.name.endswith("-py3-none-any.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_it_holds_every_file_of_the_two_packages_and_no_other(members: set[str]) -> None:
    expected = {
        str(path.relative_to(ROOT))
        for package in ("data_prep", "pipeline")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in members if ".dist-info/" not in name} == expected


@pytest.mark.parametrize(
    "name",
    [
        "data_prep/py.typed",
        "pipeline/py.typed",
        "pipeline/reporting/templates/report.html.j2",
        "pipeline/cli/app.py",
    ],
)
def test_it_holds_what_a_user_needs(members: set[str], name: str) -> None:
    assert name in members


def test_it_holds_the_licence_and_the_command(members: set[str]) -> None:
    names = {name.partition(".dist-info/")[2] for name in members}
    assert {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"} <= names
