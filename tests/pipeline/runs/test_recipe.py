"""Recipes: strict, all problems at once, and the shipped files are valid and say what they cost."""

import tomllib
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.settings import dump_settings
from pipeline.models.vit import VisionTransformer
from pipeline.runs.recipe import Recipe, load_recipe

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
    if path.stem.endswith("_kept"):
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
    for needed in (f"mammo train configs/{path.name}", "Expected time:", "Expected result:"):
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
        (["train.epoch=3"], ["unknown setting train.epoch: did you mean epochs?"]),
        (["trian.epochs=3"], ["unknown setting trian: did you mean train?"]),
        (["train.epochs=0"], ["train.epochs = 0: Input should be greater than or equal to 1"]),
        (["train.epochs=many"], ["train.epochs = 'many': Input should be a valid integer"]),
        (["train.learning_rate=nan"], ["train.learning_rate = nan: Input should be a finite number"]),
        (["train.positive_share=1"], ["train.positive_share = 1"]),
        (["train.precision=int8"], ["train.precision = 'int8'", "'float32', 'bf16' or 'fp16'"]),
        (["train.batch_size=1"], ["train.batch_size = 1: Input should be greater than or equal to 2"]),
        (["model.image_size=500"], ["model.image_size 500 must be a multiple of model.patch_size 16"]),
        (["model.num_heads=5"], ["model.width 384 must be a multiple of model.num_heads 5"]),
        (["train.num_folds=1", "augment.tone=2"], ["train.num_folds = 1", "augment.tone = 2"]),
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
    assert str(caught.value) == f"--set: {rule}; train.epochs = 0: Input should be greater than or equal to 1"
