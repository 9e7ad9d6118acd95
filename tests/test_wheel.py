"""The wheel: the two packages with their data files and the recipes, and nothing else."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith("mammo_vit-")
    assert wheel.name.endswith("-py3-none-any.whl")
    return wheel


@pytest.fixture(scope="module")
def members(wheel: Path) -> set[str]:
    """The names in the wheel."""
    return set(zipfile.ZipFile(wheel).namelist())


def test_it_holds_every_file_of_the_two_packages_the_recipes_and_no_other(members: set[str]) -> None:
    expected = {f"pipeline/recipes/{path.name}" for path in (ROOT / "configs").glob("*.toml")}
    expected |= {
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


SHOW = """
from pathlib import Path
import pipeline
from pipeline.runs.recipe import load_recipe
from pipeline.runs.shipped_recipes import copy_recipe, list_recipes
print(Path(pipeline.__file__).parents[1])
print(*list_recipes())
shipped = load_recipe(Path("smoke"))
print(shipped == load_recipe(copy_recipe("smoke")) == load_recipe(Path("configs/smoke.toml")))
"""


def test_an_installed_one_has_the_recipes_without_a_checkout(wheel: Path, tmp_path: Path) -> None:
    """Unpacked as pip does; what it needs is this environment's, but for its own packages."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", SHOW]
    shown = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=True)
    place, names, is_same = shown.stdout.splitlines()
    assert place == str(site)
    assert names.split() == sorted(path.stem for path in (ROOT / "configs").glob("*.toml"))
    assert is_same == "True"
    assert [path.name for path in empty.iterdir()] == ["smoke.toml"]
