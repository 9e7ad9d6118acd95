"""The recipes that come with mammo: in the folder `configs` of a checkout, in the package once installed."""

import difflib
import re
from pathlib import Path

from data_prep.errors import UserError
from data_prep.storage.atomic import require_writable, write_bytes
from data_prep.storage.files import read_input

SUFFIX = ".toml"


def list_recipes() -> dict[str, Path]:
    """Returns the file of each recipe by its name, sorted."""
    installed = Path(__file__).parents[1] / "recipes"  # pyproject.toml puts them there
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "configs"
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def find_recipe(name: Path) -> Path:
    """Returns the file of a recipe, given its path, or its name as in `smoke` or `configs/smoke.toml`.

    Raises:
        UserError: if there is no such file, and no recipe of that name.
    """
    is_name = name.suffix in ("", SUFFIX) and str(name.parent) in (".", "configs")
    shipped = list_recipes()
    if is_name and name.stem in shipped and not name.is_file():
        return shipped[name.stem]
    if name.exists() or name.is_symlink():  # a folder or a pipe: who reads it says so
        return name
    near = difflib.get_close_matches(name.stem, shipped, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"{name} does not exist: {hint}`mammo recipes` lists those that come with mammo")


def describe_recipe(path: Path) -> str:
    """Returns the first sentence of a recipe's header."""
    header = read_input(path).decode("utf-8").split("\n#\n")[0]
    text = " ".join(line.removeprefix("#").strip() for line in header.splitlines())
    return re.split(r"[.;](?: |$)", text)[0]


def copy_recipe(name: str, out: Path | None = None) -> Path:
    """Copies a recipe to a file to edit, by default of the same name in the working folder.

    Raises:
        UserError: if there is no such recipe, or the file is there already.
    """
    source, target = find_recipe(Path(name)), out or Path(f"{Path(name).stem}{SUFFIX}")
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} is there already and would be overwritten: name another file with --out")
    require_writable(target)
    write_bytes(target, read_input(source))
    return target
