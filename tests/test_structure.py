"""The tree stays one to live in: small modules and folders, no circles, tests that mirror it."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_prep", "pipeline")
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES})
MOST_LINES, MOST_MODULES, MOST_LINES_OF_A_COMMAND = 320, 16, 30


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports_of(path: Path) -> Iterator[str]:
    """The modules of ours that a module names in its imports, at the top or within."""
    names = {name_of(module) for module in MODULES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
            yield from found & names


def commands() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in sorted((ROOT / "pipeline/cli").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield path.name, node


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short_and_says_in_a_sentence_what_it_holds(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MOST_LINES
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert docstring.splitlines()[0].endswith(".")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_holds_few_modules(folder: Path) -> None:
    assert 1 < len(list(folder.glob("*.py"))) <= MOST_MODULES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_function_does_not_repeat_its_modules_docstring(path: Path) -> None:
    module = ast.parse(path.read_text())
    parts = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert ast.get_docstring(module) not in map(ast.get_docstring, parts)


def test_no_modules_import_each_other_in_a_circle() -> None:
    remaining = {name_of(path): set(imports_of(path)) - {name_of(path)} for path in MODULES}
    assert sum(map(len, remaining.values())) > 300
    while free := [name for name, needed in remaining.items() if not needed & remaining.keys()]:
        for name in free:
            del remaining[name]
    assert not remaining


def test_commands_are_short() -> None:
    """They parse, call and print; what they do is a function that knows no terminal."""
    lengths = {}
    for file, command in commands():
        first = command.body[1] if len(command.body) > 1 else command.body[0]
        last = command.body[-1].end_lineno
        assert last is not None
        lengths[f"{file}: {command.name}"] = last - first.lineno + 1
    assert len(lengths) > 15
    assert {name: length for name, length in lengths.items() if length >= MOST_LINES_OF_A_COMMAND} == {}


def test_tests_mirror_the_tree() -> None:
    ours = {path.relative_to(ROOT) for path in FOLDERS}
    tested = {path.parent.relative_to(ROOT / "tests") for name in PACKAGES for path in _tests_of(name)}
    assert tested <= ours
    assert ours - tested <= {Path("pipeline/reporting/plots")}  # its drawings are tested with the report


def _tests_of(package: str) -> Iterator[Path]:
    return (ROOT / "tests" / package).rglob("test_*.py")


IMPORT_ANEW = """
import importlib, sys
from pathlib import Path
folder, *rest = sys.argv[1:]
for name in [name for name in sys.modules if name.partition(".")[0] in {"data_prep", "pipeline"}]:
    del sys.modules[name]
sys.path.insert(0, folder)
places = [Path(importlib.import_module(name).__file__) for name in rest]
assert all(place.is_relative_to(folder) for place in places)
"""


@pytest.mark.parametrize("deleted", [("classification", "classes.py"), ("pretraining",)])
def test_what_can_be_deleted_leaves_a_rest_that_loads(tmp_path: Path, deleted: tuple[str, ...]) -> None:
    """In a process that has imported the packages that these are built upon."""
    for name in PACKAGES:
        ignored = shutil.ignore_patterns(*deleted, "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    rest = [name_of(path) for path in MODULES if not {*deleted} & {*path.parts}]
    ended = forked.run("-c", IMPORT_ANEW, str(tmp_path), *rest)
    assert ended.returncode == 0, ended.stderr
