"""The images of a woman that a run judges together, as the user names them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from data_prep.errors import ImageError, UserError
from data_prep.imageio.frame import Image
from data_prep.preprocessing.preprocess import preprocess
from data_prep.storage.places import ImagePath
from pipeline.data.breasts import classify_view, make_places
from pipeline.data.loader import Inputs
from pipeline.models.breast_transformer import OTHER_BREAST, OWN, BreastInputs
from pipeline.models.normalization import to_tensor
from pipeline.runs.recipe import Recipe
from pipeline.runs.run_folder import Run


class Companion(NamedTuple):
    """Another image of the same woman.

    Attributes:
        view: such as CC.
        is_of_other_breast: whether it shows the other breast.
    """

    path: ImagePath
    view: str
    is_of_other_breast: bool


def name_companion(companion: Companion) -> str:
    """Returns what a table calls it."""
    side = "other breast's " if companion.is_of_other_breast else ""
    return f"{side}{companion.view} {companion.path.name}"


def gather_inputs(
    run: Run, recipe: Recipe, image: Image, view: str, companions: Sequence[Companion]
) -> Inputs:
    """Returns what the run's models take: the image, and for whole breasts those beside it.

    Raises:
        UserError: if the run does not see them together, or one of those beside it cannot be used.
    """
    images_BCHW = to_tensor(image).unsqueeze(0)
    if recipe.model.fusion == "none":
        if companions or view:
            raise UserError(
                f"{run.folder} judges each image by itself: leave the other images and --view out"
            )
        return images_BCHW
    if recipe.model.views_per_breast and companions:
        raise UserError(f"{run.folder} sees one image of a breast at a time: leave the other images out")
    if recipe.model.fusion != "exam" and any(each.is_of_other_breast for each in companions):
        raise UserError(f"{run.folder} does not see the other breast: leave --other out")
    others = [to_tensor(_prepare(each, recipe)) for each in companions]
    slots = [(0, classify_view(view), OWN)]
    for number, each in enumerate(companions, start=1):
        slots.append((number, classify_view(each.view), OTHER_BREAST if each.is_of_other_breast else OWN))
    return BreastInputs(torch.stack([images_BCHW[0], *others]), make_places([slots]))


def _prepare(companion: Companion, recipe: Recipe) -> Image:
    try:
        return preprocess(companion.path, recipe.prepare).image
    except ImageError as error:
        raise UserError(f"{companion.path}: {error.reason}: {error}; leave it out") from error
