"""Recipes: strict, all problems at once, and the shipped files are valid and say what they cost."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.settings import StrictSettings, dump_settings
from pipeline.models.vit import VisionTransformer
from pipeline.runs.image_size import link_sizes
from pipeline.runs.other_names import AUGMENT, MODEL, TRAIN
from pipeline.runs.recipe import (
    AugmentSettings,
    ModelSettings,
    Recipe,
    TrainSettings,
    load_prepare_settings,
    load_recipe,
)

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.toml"))
OF_IMAGE_FOLDERS = [path for path in CONFIGS if path.stem == "pets"]
OF_MAMMOGRAMS = [path for path in CONFIGS if path not in OF_IMAGE_FOLDERS]


def test_defaults_are_vit_s16_at_512_px() -> None:
    model = load_recipe(None).model
    assert (model.image_size, model.patch_size, model.width, model.depth, model.num_heads) == (
        512,
        16,
        384,
        12,
        6,
    )
    assert load_recipe(None).prepare.side == model.image_size


@pytest.mark.parametrize("path", OF_MAMMOGRAMS, ids=lambda path: path.stem)
def test_a_shipped_recipe_for_mammograms_has_a_known_number_of_tokens_one_channel_and_one_logit(
    path: Path,
) -> None:
    recipe = load_recipe(path)
    model = recipe.model
    side = 1024 if "1024" in path.stem else 512
    assert (model.image_size, model.patch_size, model.in_channels, model.num_classes) == (side, 16, 1, 1)
    assert recipe.prepare.side == side
    if path.stem.endswith(("_kept", "_breast")):
        assert model.num_tokens % 128 == 0
    else:
        assert model.num_tokens == 1025
    assert recipe.augment.horizontal_flip == 0  # the chest wall stays at the left


@pytest.mark.parametrize("path", OF_IMAGE_FOLDERS, ids=lambda path: path.stem)
def test_a_shipped_recipe_for_image_folders_is_in_colour(path: Path) -> None:
    """Oxford-IIIT Pet's 37 breeds; animals stand upright and look to either side."""
    recipe = load_recipe(path)
    assert (recipe.model.in_channels, recipe.model.num_classes) == (3, 37)
    assert (recipe.augment.horizontal_flip, recipe.augment.vertical_flip) == (0.5, 0)
    assert recipe.train.learning_rate == 1e-3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_recipe_makes_a_model_and_says_what_it_costs(path: Path) -> None:
    VisionTransformer(load_recipe(path).model.model_copy(update={"depth": 1}))
    head = path.read_text().split("\n[")[0]
    command = "pretrain" if path.stem.startswith("mae") else "train"
    for needed in (f"mammo {command} configs/{path.name}", "Expected time:", "Expected result:"):
        assert needed in head


def test_the_baseline_spells_the_defaults_out() -> None:
    (path,) = [path for path in CONFIGS if path.stem == "vit_s16_512"]
    assert load_recipe(path) == Recipe()
    spelt, all_of_them = (tomllib.loads(text) for text in (path.read_text(), dump_settings(Recipe())))
    for table, settings in all_of_them.items():
        assert spelt[table].keys() == settings.keys()


def test_a_recipe_comes_back_from_its_text(tmp_path: Path) -> None:
    recipe = load_recipe(
        None, ["train.seed=7", "train.learning_rate=1e-5", "augment.tone=0", "model.width=48"]
    )
    path = tmp_path / "settings.toml"
    path.write_text(dump_settings(recipe))
    assert load_recipe(path) == recipe


def test_overrides_change_one_setting_each_and_the_last_one_counts() -> None:
    recipe = load_recipe(None, ["train.epochs=3", "train.precision=fp16", "train.epochs=4"])
    expected = Recipe().train.model_copy(update={"epochs": 4, "precision": "fp16"})
    assert recipe.train == expected
    assert recipe.model == Recipe().model


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().train.epochs = 3


@pytest.mark.parametrize(
    ("overrides", "sentences"),
    [
        (["train.epoch=3"], ["--set train.epoch=3: unknown setting train.epoch: did you mean train.epochs?"]),
        (["trian.epochs=3"], ["unknown table trian: did you mean train?"]),
        (["lr=3"], ["unknown setting lr: did you mean train.learning_rate?"]),
        (["model.wd=3"], ["unknown setting model.wd: did you mean train.weight_decay?"]),
        (["train.bs=3"], ["unknown setting train.bs: did you mean train.batch_size?"]),
        (["augment.epochs=3"], ["unknown setting augment.epochs: did you mean train.epochs?"]),
        (["train.resolution=3"], ["did you mean prepare.side or model.image_size?"]),
        (["train.epochs=0"], ["train.epochs takes a whole number (at least 1, at most 10000), not 0: for"]),
        (["train.epochs=many"], ['not "many": for example train.epochs=20']),
        (["train.auxiliaries=age"], ["train.auxiliaries takes a list of", 'train.auxiliaries=["age"]']),
        (["train.learning_rate=nan"], ["train.learning_rate takes a number (above 0, at most 1), not nan"]),
        (["train.positive_share=1"], ["train.positive_share takes a number (above 0, below 1), not 1"]),
        (["train.precision=int8"], ['takes "float32", "bf16" or "fp16", not "int8"']),
        (
            ["train.batch_size=1"],
            ["train.batch_size takes a whole number (at least 2, at most 65536), not 1"],
        ),
        (["model.image_size=500"], ["model.image_size 500 must be a multiple of model.patch_size 16"]),
        (["model.num_heads=5"], ["model.width 384 must be a multiple of model.num_heads 5"]),
        (["train.num_folds=1", "augment.tone=2"], ["train.num_folds takes", "augment.tone takes"]),
        (["train"], ["--set train: write it as name.name=value"]),
        (["=3"], ["--set =3: write it as name.name=value"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else None,
)
def test_every_problem_is_named_with_its_dotted_path(overrides: list[str], sentences: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(None, overrides)
    for sentence in sentences:
        assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_fit_together_are_one_rule_without_their_table() -> None:
    """Beside the problems of other settings, all of them at once."""
    with pytest.raises(UserError) as caught:
        load_recipe(None, ["model.image_size=65", "train.epochs=0"])
    rule = "model.image_size 65 must be a multiple of model.patch_size 16"
    assert str(caught.value).startswith(
        f"--set model.image_size=65: {rule}; --set train.epochs=0: train.epochs "
    )


@given(
    st.lists(st.sampled_from(["prepare.side", "model.image_size"]), max_size=2, unique=True), st.booleans()
)
def test_one_of_the_two_names_of_the_images_size_sets_both(names: list[str], in_file: bool) -> None:
    """Of two, the one in `--set` does; a file with both is left as it is."""
    values: dict[str, dict[str, int]] = {}
    for name in ["prepare.side", "model.image_size"] if in_file else []:
        table, _, key = name.partition(".")
        values[table] = {key: 64}
    changed = {}
    for number, name in enumerate(names):
        table, _, key = name.partition(".")
        values.setdefault(table, {})[key] = 128 + 16 * number
        changed[name] = f"{name}={128 + 16 * number}"
    link_sizes(values, changed)
    recipe = Recipe.model_validate(values)
    found = (recipe.prepare.side, recipe.model.image_size)
    if len(names) == 2:
        assert sorted(found) == [128, 144]
    else:
        assert found == (2 * (128 if names else 64 if in_file else 512,))


@pytest.mark.parametrize("name", ["prepare.side", "model.image_size"])
def test_a_recipe_needs_one_size(name: str, tmp_path: Path) -> None:
    table, _, key = name.partition(".")
    path = tmp_path / "recipe.toml"
    path.write_text(f"[{table}]\n{key} = 64\n")
    for recipe in (
        load_recipe(path),
        load_recipe(None, [f"{name}=64"]),
        load_recipe(Path("smoke"), [f"{name}=64"]),
    ):
        assert (recipe.prepare.side, recipe.model.image_size) == (64, 64)
    assert load_prepare_settings(path).side == 64


def test_images_can_be_prepared_in_sizes_that_suit_no_model() -> None:
    assert load_prepare_settings(None, ["prepare.side=500"]).side == 500
    with pytest.raises(UserError, match=r"--set prepare.side=500: model.image_size 500 must be a multiple"):
        load_recipe(None, ["prepare.side=500"])


@pytest.mark.parametrize(
    ("kind", "names"), [(ModelSettings, MODEL), (AugmentSettings, AUGMENT), (TrainSettings, TRAIN)]
)
def test_other_names_are_of_settings_and_are_none_themselves(kind: type[StrictSettings], names: dict) -> None:
    assert kind.other_names is names
    assert names.keys() <= kind.model_fields.keys()
    others = " ".join(names.values()).split()
    assert len(set(others)) == len(others)
    assert not {*others} & kind.model_fields.keys()
