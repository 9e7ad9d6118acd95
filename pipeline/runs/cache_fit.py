"""Whether a cache holds the images that a recipe asks for."""

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from data_prep.settings import differences, write_overrides
from pipeline.runs.recipe import Recipe


def require_same_images(recipe: Recipe, cache: Cache, command: str = "train") -> None:
    """Makes sure that a cache holds the images that a recipe asks for, and that its model is one for them.

    The command is that which is to be typed again.

    Raises:
        UserError: with two commands of which one helps.
    """
    made, asked = cache.settings().prepare, recipe.prepare
    if changed := differences(made, asked):
        raise UserError(
            f"{cache.folder} was made with other settings than the recipe's (prepare: {'; '.join(changed)}): "
            + _name_ways_out(
                command,
                cache,
                write_overrides(made, asked, table="prepare"),
                write_overrides(asked, made, table="prepare"),
            )
        )
    _require_mammogram_model(recipe, cache, command)


def _require_mammogram_model(recipe: Recipe, cache: Cache, command: str) -> None:
    model, side = recipe.model, recipe.prepare.side
    if model.image_size != side:
        raise UserError(
            f"model.image_size {model.image_size} and prepare.side {side} must be equal, and one sets both: "
            + _name_ways_out(
                command, cache, f"--set prepare.side={side}", f"--set prepare.side={model.image_size}"
            )
        )
    for name, value in {"in_channels": model.in_channels, "num_classes": model.num_classes}.items():
        if value != 1:
            raise UserError(
                f"model.{name} is {value} and must be 1 for mammograms, which are grey and have one logit: "
                f"add --set model.{name}=1, or give a folder of classes with --data instead of the cache"
            )


def _name_ways_out(command: str, cache: Cache, as_cache: str, as_recipe: str) -> str:
    """Returns the two commands of which one helps, each with its options."""
    return (
        f"`mammo {command} CONFIG --cache {cache.folder} {as_cache}` takes the cache's, "
        f"`mammo prepare DATA --cache ANOTHER {as_recipe}` makes one that fits"
    )
