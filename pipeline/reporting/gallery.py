"""Pictures of chosen breasts, with the attention of the model that held them out.

The pictures come from the run's cache. What cannot be shown is said in a sentence, and nothing fails.
"""

import base64
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow

from data_prep.cache.folder import Cache
from data_prep.cache.images import read_image
from data_prep.cache.tables import damaged
from data_prep.errors import UserError
from data_prep.imageio.frame import Image
from data_prep.preprocessing.placement import Placement
from data_prep.settings import differences
from pipeline.models.attention import Array, find_maps
from pipeline.models.normalization import to_tensor
from pipeline.models.vit import VisionTransformer
from pipeline.models.weights_file import load_weights
from pipeline.reporting.case_selection import Case, CaseSelection, CaseView
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
LARGEST_DIFFERENCE = 0.05
"""Between a probability and what the same model says now; other arithmetic stays far below."""


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
        overlay = "" if self.overlay is None else _to_address(self.overlay, "png")
        return Tile(_to_address(np.asarray(resized, np.uint8), "jpeg"), overlay, width, height)


@dataclass(frozen=True)
class FoldModel:
    """The model of a fold, which never saw the fold's patients."""

    model: VisionTransformer
    logit_shift: float

    def look(self, image: Image, view: CaseView) -> Array:
        """Returns how much each patch speaks for cancer.

        Raises:
            UserError: if the model no longer says of this image what it said in training.
        """
        maps = find_maps(self.model, to_tensor(image).unsqueeze(0).to(self.model.head.weight.device))
        probability = float(torch.sigmoid(maps.logits[0, 0].double() + self.logit_shift))
        if abs(probability - view.probability) > LARGEST_DIFFERENCE:
            raise UserError(
                f"of image {view.image_id} in the run's cache the model now says {probability:.3f}, but in "
                f"training it said {view.probability:.3f}, so it is another image"
            )
        return maps.gradient_rollout[0].double().cpu().numpy()


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
        recipe = load_recipe(run.settings)
    except UserError:  # the page shows the settings as they are
        sentence = f"The cases have no pictures: the run's {run.settings.name} does not describe a model."
        return Gallery(missing=[sentence])
    try:
        cache = open_cache(run, recipe, cache)
        records = {record["image_id"]: record for record in cache.read_manifest().to_dict("records")}
    except UserError as error:
        return Gallery(missing=[f"The cases have no pictures: {error}."], lacks_cache=True)
    by_fold: dict[int, list[tuple[Case, CaseView]]] = defaultdict(list)
    for case in (case for group in selection.groups for case in group.cases):
        by_fold[case.fold] += [(case, view) for view in case.views]
    crops: dict[str, Crop] = {}
    reasons: dict[str, str] = {}
    missing = []
    with reporter.track("pictures of cases", sum(map(len, by_fold.values()))) as advance:
        for fold, views in sorted(by_fold.items()):
            fold_model = load_fold_model(run, recipe, fold)
            if fold_model is None:
                missing.append(f"No attention: fold {fold} has no readable {run.fold(fold).weights.name}.")
            for case, view in views:
                try:
                    crops[view.image_id] = load_crop(cache, records, case, view, fold_model, recipe)
                except UserError as error:
                    reasons[view.image_id] = str(error)
                advance()
    return Gallery(encode_within(crops, MOST_CHARACTERS), reasons, missing)


def load_fold_model(run: Run, recipe: Recipe, fold: int) -> FoldModel | None:
    """Returns a fold's model, or None without its weights."""
    try:
        model, logit_shift = load_weights(run.fold(fold), recipe.model)
    except UserError:
        return None
    return FoldModel(model.to(choose_device("auto")), logit_shift)


def load_crop(
    cache: Cache,
    records: Mapping[str, Mapping[Any, Any]],
    case: Case,
    view: CaseView,
    fold_model: FoldModel | None,
    recipe: Recipe,
) -> Crop:
    """Returns one image as the model sees it.

    Raises:
        UserError: if the cache does not have it, or has another one.
    """
    if view.image_id not in records:
        raise UserError(f"the run's cache {cache.folder} does not have image {view.image_id}")
    image = read_image(cache.image_path(case.patient_id, view.image_id))
    try:
        placement = Placement.from_record(dict(records[view.image_id]))
    except (ValueError, TypeError):  # a cell is not what `prepare` writes, or empty
        raise damaged(cache.manifest_path) from None
    rows, columns = find_cut(placement, recipe.model.patch_size)
    overlay = None
    if fold_model is not None:
        square_gg = relative_to_box(fold_model.look(image, view), placement, recipe.prepare.side)
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


def _to_address(pixels: NDArray[np.uint8], kind: Literal["jpeg", "png"]) -> str:
    """Returns a data address: a grey JPEG, or a PNG with opacity."""
    stream = io.BytesIO()
    Pillow.fromarray(pixels).save(stream, format=kind, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
