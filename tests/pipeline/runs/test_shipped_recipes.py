"""The recipes that come with mammo: found by name from anywhere, listed in one line each, copied once."""

from pathlib import Path

import pytest

from data_prep.errors import UserError
from pipeline.runs.recipe import load_recipe
from pipeline.runs.shipped_recipes import copy_recipe, describe_recipe, find_recipe, list_recipes

CONFIGS = Path(__file__).parents[3] / "configs"


def test_all_recipes_are_listed() -> None:
    assert list_recipes() == {path.stem: path for path in sorted(CONFIGS.glob("*.toml"))}


@pytest.mark.parametrize("name", ["smoke", "smoke.toml", "configs/smoke.toml"])
def test_a_recipe_is_found_by_its_name_in_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(Path(name)) == CONFIGS / "smoke.toml"
    (tmp_path / "smoke").mkdir()  # such as a run's
    assert load_recipe(Path(name)) == load_recipe(CONFIGS / "smoke.toml")


@pytest.mark.parametrize("name", ["smoke", "smoke.toml", "configs/smoke.toml", "other/smoke.toml"])
def test_a_file_of_ones_own_goes_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("[train]\nepochs = 7\n")
    assert find_recipe(path) == path
    assert load_recipe(path).train.epochs == 7


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smok", "did you mean smoke?"),
        ("other/smoke.toml", "did you mean smoke?"),
        ("x.txt", "`mammo recipes`"),
    ],
)
def test_what_is_neither_file_nor_recipe_is_refused(name: str, hint: str) -> None:
    with pytest.raises(UserError, match="does not exist: ") as error:
        find_recipe(Path(name))
    assert hint in str(error.value)
    assert "`mammo recipes` lists those" in str(error.value)


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_is_described_in_one_line(name: str) -> None:
    told = describe_recipe(list_recipes()[name])
    assert 20 < len(told) < 160
    assert "\n" not in told
    assert "#" not in told


def test_a_copy_is_the_recipe_and_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert copy_recipe("smoke") == Path("smoke.toml")
    assert Path("smoke.toml").read_bytes() == (CONFIGS / "smoke.toml").read_bytes()
    assert copy_recipe("smoke", Path("a/b.toml")).read_bytes() == Path("smoke.toml").read_bytes()
    Path("smoke.toml").write_text("mine")
    for out in (None, Path("smoke.toml"), Path("a")):
        with pytest.raises(UserError, match="is there already and would be overwritten: name another"):
            copy_recipe("smoke", out)
    assert Path("smoke.toml").read_text() == "mine"
