"""Pictures of chosen breasts, with the attention of the model that held them out, or of all together.

The pictures come from the run's cache, or from where an external set lies. What cannot be shown is said in a
sentence, and nothing fails.
"""

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from data_prep.preprocessing.placement import Placement
from data_prep.settings import differences
from pipeline.models.breast_transformer import pick_encoder
from pipeline.models.weights_file import load_weights
from pipeline.reporting.cases.case_images import CachedCaseImages, CaseImages, CaseModel
from pipeline.reporting.cases.case_selection import Case, CaseSelection, CaseView
from pipeline.reporting.heatmap import colour, relative_to_box
from pipeline.runs.recipe import Recipe, load_recipe
from pipeline.runs.records import find_cache
from pipeline.runs.run_folder import Run
from pipeline.runtime.precision import choose_device
from pipeline.runtime.progress import Reporter

SIDES_PX = (384, 320, 256, 192, 128)
"""What the longer side of an image may be, in pixels, the largest first."""
MOST_CHARACTERS = 1_100_000
"""Of all pictures together, so that the page stays small."""


@dataclass(frozen=True)
class Tile:
    """A picture as the page takes it.

    Attributes:
        mammogram: a data address.
        overlay: the same, or empty.
    """

    mammogram: str
    overlay: str
    width: int
    height: int


@dataclass(frozen=True)
class Crop:
    """An image of the cache without its padding, cut between patches.

    Attributes:
        pixels: 0..255.
        overlay: the colours of each patch; None without a model.
        side: of the whole image, in pixels.
    """

    pixels: NDArray[np.uint8]
    overlay: NDArray[np.uint8] | None
    side: int

    def encode(self, side: int) -> Tile:
        """Returns the pictures for a whole image of at most `side` pixels."""
        scale = min(1.0, side / self.side)
        height, width = (max(1, round(length * scale)) for length in self.pixels.shape)
        resized = cv2.resize(self.pixels, (width, height), interpolation=cv2.INTER_AREA)
        overlay = "" if self.overlay is None else to_address(self.overlay, "png")
        return Tile(to_address(np.asarray(resized, np.uint8), "jpeg"), overlay, width, height)


@dataclass(frozen=True)
class Gallery:
    """The pictures that there are.

    Attributes:
        tiles: by image_id.
        reasons: by image_id, why an image is not shown.
        missing: sentences about what is not shown of all images, or of a fold's.
        lacks_cache: whether all are missing because the run's cache is.
    """

    tiles: dict[str, Tile] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    lacks_cache: bool = False


def show_cases(
    run: Run, selection: CaseSelection, *, reporter: Reporter, cache: Cache | None = None
) -> Gallery:
    """Returns a picture of every image of the chosen breasts, or says why there is none.

    They come from the run's cache, which is where the run says unless it is given.
    """
    if not selection.groups:
        return Gallery()
    try:
        recipe = _load_recipe(run)
    except UserError as error:
        return Gallery(missing=[f"The cases have no pictures: {error}."])
    try:
        images = CachedCaseImages.of_cache(open_cache(run, recipe, cache))
    except UserError as error:
        return Gallery(missing=[f"The cases have no pictures: {error}."], lacks_cache=True)
    by_fold: dict[int, list[tuple[Case, CaseView]]] = defaultdict(list)
    for case, view in _list_views(selection):
        by_fold[case.fold].append((case, view))
    crops: dict[str, Crop] = {}
    reasons: dict[str, str] = {}
    missing = []
    with reporter.track("pictures of cases", sum(map(len, by_fold.values()))) as advance:
        for fold, views in sorted(by_fold.items()):
            model = load_case_model(run, recipe, [fold])
            if model is None:
                missing.append(f"No attention: fold {fold} has no readable {run.fold(fold).weights.name}.")
            for case, view in views:
                _add_crop(crops, reasons, images, case, view, model, recipe)
                advance()
    return Gallery(encode_within(crops, MOST_CHARACTERS), reasons, missing)


def show_external_cases(
    run: Run, selection: CaseSelection, images: CaseImages, *, reporter: Reporter
) -> Gallery:
    """Does the same for breasts of an external set, with what all folds' models saw together."""
    recipe = _load_recipe(run)
    views = _list_views(selection)
    crops: dict[str, Crop] = {}
    reasons: dict[str, str] = {}
    model = load_case_model(run, recipe, run.list_folds())
    with reporter.track("pictures of cases", len(views)) as advance:
        for case, view in views:
            _add_crop(crops, reasons, images, case, view, model, recipe)
            advance()
    missing = [] if model else ["No attention: a fold has no readable weights."]
    return Gallery(encode_within(crops, MOST_CHARACTERS), reasons, missing)


def _list_views(selection: CaseSelection) -> list[tuple[Case, CaseView]]:
    cases = (case for group in selection.groups for case in group.cases)
    return [(case, view) for case in cases for view in case.views]


def _load_recipe(run: Run) -> Recipe:
    try:
        return load_recipe(run.settings)
    except UserError:  # the page shows the settings as they are
        raise UserError(f"the run's {run.settings.name} does not describe a model") from None


def load_case_model(run: Run, recipe: Recipe, folds: Sequence[int]) -> CaseModel | None:
    """Returns the models of these folds, or None without the weights of one."""
    try:
        models = [load_weights(run.fold(fold), recipe.model) for fold in folds]
    except UserError:
        return None
    device = choose_device("auto")
    return CaseModel([(pick_encoder(model).to(device), shift) for model, shift in models])


def _add_crop(
    crops: dict[str, Crop],
    reasons: dict[str, str],
    images: CaseImages,
    case: Case,
    view: CaseView,
    model: CaseModel | None,
    recipe: Recipe,
) -> None:
    try:
        crops[view.image_id] = load_crop(images, case, view, model, recipe)
    except UserError as error:
        reasons[view.image_id] = str(error)


def load_crop(
    images: CaseImages, case: Case, view: CaseView, model: CaseModel | None, recipe: Recipe
) -> Crop:
    """Returns one image as the model sees it.

    Raises:
        UserError: if it is not there, or another one.
    """
    image, placement = images.load(case, view)
    rows, columns = find_cut(placement, recipe.model.patch_size)
    overlay = None
    if model is not None:
        square_gg = relative_to_box(model.look(image, view), placement, recipe.prepare.side)
        overlay = colour(square_gg[rows, columns])
    rows, columns = (_times(cut, recipe.model.patch_size) for cut in (rows, columns))
    brightest = np.iinfo(image.dtype).max
    pixels = np.rint(image[rows, columns] * (255.0 / brightest)).astype(np.uint8)
    return Crop(pixels, overlay, recipe.prepare.side)


def find_cut(placement: Placement, patch_size: int) -> tuple[slice, slice]:
    """Returns the rows and columns of patches that show some of the breast's box."""
    first, last = placement.top // patch_size, -(-(placement.top + placement.height) // patch_size)
    return slice(first, last), slice(0, -(-placement.width // patch_size))


def open_cache(run: Run, recipe: Recipe, cache: Cache | None = None) -> Cache:
    """Returns the cache that the run was trained on; `cache` is the one that is said to be it.

    Raises:
        UserError: if it is gone, or was made anew with other settings.
    """
    cache = cache or find_cache(run)
    changed = differences(cache.settings().prepare, recipe.prepare)
    if changed:
        raise UserError(
            f"the run's cache {cache.folder} was made anew with other settings ({'; '.join(changed)})"
        )
    return cache


def encode_within(crops: dict[str, Crop], most_characters: int) -> dict[str, Tile]:
    """Returns the largest pictures that are not longer than so many characters together."""
    tiles: dict[str, Tile] = {}
    for side in SIDES_PX:
        tiles = {image_id: crop.encode(side) for image_id, crop in crops.items()}
        if sum(len(tile.mammogram) + len(tile.overlay) for tile in tiles.values()) <= most_characters:
            break
    return tiles


def _times(cut: slice, factor: int) -> slice:
    return slice(cut.start * factor, cut.stop * factor)


def to_address(pixels: NDArray[np.uint8], kind: Literal["jpeg", "png"]) -> str:
    """Returns a data address: a grey JPEG, or a PNG with opacity."""
    stream = io.BytesIO()
    Pillow.fromarray(pixels).save(stream, format=kind, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
