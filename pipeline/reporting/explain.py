"""One mammogram: what each fold of a run says of it and where it looked, also as a picture.

Nothing here comes from an element of the file that identifies a patient; its name stands above the picture.
"""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.special import expit
from torch import Tensor, nn

from data_prep.imageio.downsample import shrink
from data_prep.imageio.frame import Box, Display
from data_prep.preprocessing.inspection import BOX_COLOUR
from data_prep.preprocessing.placement import Placement, find_level
from data_prep.preprocessing.preprocess import open_image, preprocess, read_level, read_search_frame
from data_prep.preprocessing.windowing import to_display
from data_prep.storage.places import ImagePath
from pipeline.data.loader import Inputs
from pipeline.evaluation.age.age_regression import AGE, fit_folds
from pipeline.evaluation.formulas import to_logits
from pipeline.evaluation.oof import collect_oof
from pipeline.inference.ensemble import predict_batch
from pipeline.models.attention import Array, find_maps
from pipeline.models.breast_attention import find_breast_attention
from pipeline.models.breast_transformer import BreastInputs, BreastTransformer, pick_encoder
from pipeline.models.weights_file import load_weights
from pipeline.reporting.breast_views import Companion, gather_inputs, name_companion
from pipeline.reporting.heatmap import find_top, make_overlay_colours, relative_to_box, to_full_matrix
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import Run
from pipeline.runtime.precision import ComputeSettings

MAP_TITLES = {
    "last_layer": "last layer's attention",
    "rollout": "attention rollout",
    "gradient_rollout": "gradient-weighted rollout",
}
BREAST_MAP = "breast"
ALL_TITLES = MAP_TITLES | {BREAST_MAP: "what the breast attends to"}
LEAST_SEEN, EVEN = 1.05, "\n(even: no patch stands out)"
CAUTION = (
    "A square is a patch. Its colour shows its weight as a multiple of the mean over the breast's box, "
    "averaged over all folds; patches at the mean or below have no colour, and each overlay has its own "
    "scale. Attention shows where the models looked and does not prove why they answer as they do. Research "
    "software. Not a medical device: nothing here may be used to diagnose, treat or screen anyone."
)
BOX_SIDE_PX = 900  # the box's longer side in the picture, where the file has as many pixels
MAMMOGRAM_SIDE_PX = 2400  # the mammogram's longer side in memory, at most
BOX_MARGIN = 0.03  # of the box's longer side, shown around it
PANEL_INCHES, TEXT_INCHES, MARGIN_INCHES, DOTS_PER_INCH = 3.4, 1.7, 0.1, 120
LONGEST_NAME = 80


@dataclass(frozen=True)
class Explanation:
    """What is known of one mammogram.

    Attributes:
        name: of the file.
        mammogram: display values of the whole frame as it lies in the file.
        pixel_aspect: height over width of the file's pixels.
        box: of the breast, in the mammogram's pixels.
        probabilities: of cancer, by fold; of pixels and age where the run takes age.
        maps: by the names of `ALL_TITLES`, at the mammogram's pixels: the mean of the folds' maps, where 1 is
            the mean of the box; NaN beyond the box.
        shares: by view and name of the file, how much each image counts for the breast, the mean of the
            folds; of a run that judges whole breasts.
    """

    name: str
    mammogram: Display
    pixel_aspect: float
    box: Box
    probabilities: dict[int, float]
    maps: dict[str, Array]
    shares: list[tuple[str, float]] = field(default_factory=list)

    @property
    def probability(self) -> float:
        """The mean of the folds, as `mammo predict` gives it."""
        return float(np.mean(list(self.probabilities.values())))


def explain(
    run: Run,
    path: ImagePath,
    *,
    age: float | None = None,
    view: str = "",
    companions: Sequence[Companion] = (),
) -> Explanation:
    """Prepares a mammogram as the run was trained and asks each fold, one model in memory at a time.

    Args:
        run: is finished.
        path: of the mammogram.
        age: the woman's, in years; None is unknown, as it always is to a run that does not take it.
        view: such as CC, for a run that judges whole breasts; empty is unknown.
        companions: what such a run sees beside the mammogram.

    Raises:
        UserError: if the run is not finished, has no folds, or has lost its weights, or does not take
            companions.
        ImageError: if the file cannot be used; the reason code says why.
    """
    folds, recipe = run.require_finished(), load_recipe(run.settings)
    compute = ComputeSettings.choose("auto", recipe.train.precision)
    stages = preprocess(path, recipe.prepare)
    placement = Placement.from_record(stages.record)
    inputs = gather_inputs(run, recipe, stages.image, view, companions).to(compute.device)
    probabilities: dict[int, float] = {}
    squares: dict[str, list[Array]] = defaultdict(list)
    shares: list[Array] = []
    for fold in folds:
        model, shift = load_weights(run.fold(fold), recipe.model)
        model.to(compute.device)
        said = predict_batch(model, inputs, logit_shift=shift, compute=compute)
        probabilities[fold] = float(said.flatten()[0])
        found = _find_squares(model, inputs)
        if isinstance(model, BreastTransformer):
            assert isinstance(inputs, BreastInputs)
            attention = find_breast_attention(model, inputs)
            found[BREAST_MAP] = attention.maps[0, 0].double().cpu().numpy()
            shares.append(attention.shares[0].double().cpu().numpy())
        for name, square_gg in found.items():
            squares[name].append(relative_to_box(square_gg, placement, recipe.prepare.side))
    if AGE in recipe.model.inputs:
        ages_1 = np.array([np.nan if age is None else age])
        for fold, (both, _) in fit_folds(collect_oof(run)).items():
            probabilities[fold] = float(expit(both(to_logits([probabilities[fold]]), ages_1)[0]))
    mammogram = read_mammogram(path, placement.box)
    size = {"side": recipe.prepare.side, "rows": stages.record["rows"], "columns": stages.record["columns"]}
    shape = mammogram.shape[0], mammogram.shape[1]
    maps = {
        name: to_full_matrix(np.mean(of_folds, axis=0), placement, shape=shape, **size)
        for name, of_folds in squares.items()
    }
    box = _reduce_box(placement.box, shape[0] / stages.record["rows"], shape[1] / stages.record["columns"])
    names = [f"{view} {path.name}".strip(), *map(name_companion, companions)]
    of_images = list(zip(names, np.mean(shares, axis=0).tolist(), strict=True)) if shares else []
    return Explanation(
        path.name, mammogram, stages.record["pixel_aspect"], box, probabilities, maps, of_images
    )


def read_mammogram(path: ImagePath, box: Box) -> Display:
    """Returns display values of the whole frame as it lies in the file, fine enough to show the box."""
    file = open_image(path)
    search = read_search_frame(file)
    level = find_level(
        box,
        side=BOX_SIDE_PX,
        oversampling=1.0,
        max_level=file.max_level,
        pixel_aspect=file.pixel_aspect,
    )
    read = read_level(file, level, search)
    frame = replace(search, pixels=read.pixels, padding=read.padding)
    return shrink(to_display(frame, blacken_padding=True), MAMMOGRAM_SIDE_PX)


def draw_explanation(explanation: Explanation) -> bytes:
    """Returns a PNG of the mammogram, and beside it the mammogram under each of the maps."""
    rows, columns = explanation.mammogram.shape
    tallest = max(rows / columns, explanation.box.height / explanation.box.width) * explanation.pixel_aspect
    size = (1.1 * (1 + len(explanation.maps)) * PANEL_INCHES, min(2.5, tallest) * PANEL_INCHES + TEXT_INCHES)
    figure = Figure(figsize=size, layout="constrained")
    plain, *others = figure.subplots(1, 1 + len(explanation.maps))
    _show(plain, explanation, "mammogram")
    plain.add_patch(_draw_box(explanation.box))
    for axes, (name, values) in zip(others, explanation.maps.items(), strict=True):
        is_even = np.nanmax(values) < LEAST_SEEN
        _show(axes, explanation, f"{ALL_TITLES[name]}{EVEN if is_even else ''}")
        _zoom(axes, explanation.box)
        _lay_over(axes, values, explanation.pixel_aspect)
    figure.suptitle(_describe(explanation), fontsize=12, parse_math=False)
    _write_below(figure, fill(CAUTION, 205))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=MARGIN_INCHES)
    return stream.getvalue()


def _write_below(figure: Figure, text: str) -> None:
    """Writes a caption close below the pictures, wherever these end once all else has its place."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    lowest = min(box.y0 for axes in figure.axes if (box := axes.get_tightbbox()) is not None)
    bottom = (lowest / figure.dpi - MARGIN_INCHES) / figure.get_figheight()
    figure.text(0.01, bottom, text, fontsize=9, ha="left", va="top")


def _find_squares(model: nn.Module, inputs: Inputs) -> dict[str, Array]:
    images_BCHW = inputs.images[:1] if isinstance(inputs, BreastInputs) else inputs
    maps = find_maps(pick_encoder(model), images_BCHW)
    squares: dict[str, Tensor] = {name: getattr(maps, name)[0] for name in MAP_TITLES}
    return {name: square.double().cpu().numpy() for name, square in squares.items()}


def _reduce_box(box: Box, y: float, x: float) -> Box:
    """Returns a box of the full matrix in the pixels of a picture of it."""
    return Box(round(box.left * x), round(box.top * y), round(box.right * x), round(box.bottom * y))


def _describe(explanation: Explanation) -> str:
    """Returns the title: the file's name, the probability, and that of each fold."""
    each = ", ".join(f"fold {fold}: {value:.3f}" for fold, value in explanation.probabilities.items())
    # The picture's font has no sign for control characters and for most scripts.
    name = explanation.name.encode("latin-1", "replace").decode("latin-1")
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    name = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
    return f"{name}\nprobability of cancer {explanation.probability:.3f}\n{fill(each, 150)}"


def _show(axes: Axes, explanation: Explanation, title: str) -> None:
    mammogram = explanation.mammogram
    axes.imshow(
        mammogram,
        cmap="gray",
        vmin=0.0,
        vmax=1.0,
        extent=_edges(mammogram),
        aspect=explanation.pixel_aspect,
    )
    axes.set_title(title, fontsize=11)
    axes.set_anchor("N")
    axes.set_axis_off()


def _edges(picture: Array) -> tuple[int, int, int, int]:
    """Returns left, right, bottom and top, so that pixel edges lie at whole numbers as those of boxes do."""
    return 0, picture.shape[1], picture.shape[0], 0


def _zoom(axes: Axes, box: Box) -> None:
    """Shows the box and a little around it, no more than there is of the mammogram."""
    margin = BOX_MARGIN * max(box.width, box.height)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    axes.set_xlim(max(left, box.left - margin), min(right, box.right + margin))
    axes.set_ylim(min(bottom, box.bottom + margin), max(top, box.top - margin))


def _lay_over(axes: Axes, values: Array, pixel_aspect: float) -> None:
    """Lays a map over a mammogram, with its scale beside it."""
    image = axes.imshow(
        values,
        cmap=make_overlay_colours(),
        vmin=1.0,
        vmax=find_top(values),
        interpolation="nearest",
        extent=_edges(values),
        aspect=pixel_aspect,
    )
    scale = axes.figure.colorbar(image, cax=axes.inset_axes((1.03, 0.0, 0.05, 1.0)))
    scale.ax.set_facecolor("gray")
    scale.ax.tick_params(labelsize=8)
    scale.set_label("times the mean", fontsize=8)


def _draw_box(box: Box) -> Rectangle:
    return Rectangle(
        (box.left, box.top),
        box.width,
        box.height,
        fill=False,
        edgecolor=BOX_COLOUR,
        linewidth=1.2,
        clip_on=False,
    )
