"""What section 4.5 of the ViT paper shows of a trained model, as pictures for a report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.errors import UserError
from pipeline.models.attention import (
    ATTENTION_COLUMNS,
    find_even_distance,
    find_patch_filters,
    find_position_similarity,
)
from pipeline.models.breast_transformer import pick_encoder
from pipeline.models.weights_file import load_weights
from pipeline.reporting.plots import vit_plots
from pipeline.reporting.rendering import Picture
from pipeline.runs.recipe import ModelSettings, load_recipe
from pipeline.runs.records import read_numbers
from pipeline.runs.run_folder import TrainingFolder


@dataclass(frozen=True)
class VitFigures:
    """The section's content.

    Attributes:
        missing: sentences about what could not be drawn.
    """

    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __add__(self, other: "VitFigures") -> "VitFigures":
        return VitFigures(self.pictures + other.pictures, self.missing + other.missing)


def draw_vit_figures(settings_path: Path, trainings: Mapping[str, TrainingFolder]) -> VitFigures:
    """Draws the weights of the first training, and the attention distance of all.

    Args:
        settings_path: the run's recipe.
        trainings: what the page calls each training, such as "fold 0", and its folder.

    Raises:
        UserError: if an `attention.csv` is damaged.
    """
    try:
        settings = load_recipe(settings_path).model
    except UserError:
        return VitFigures(missing=[f"Not drawn: the run's {settings_path.name} does not describe a model."])
    name, folder = next(iter(trainings.items()))
    return show_weights(name, folder, settings) + show_distances(trainings, settings)


def show_weights(name: str, folder: TrainingFolder, settings: ModelSettings) -> VitFigures:
    """Draws patch filters and position embeddings of one model."""
    try:
        model = pick_encoder(load_weights(folder, settings)[0])
    except UserError:
        sentence = f"No patch filters and positions: {name} has no readable {folder.weights.name}."
        return VitFigures(missing=[sentence])
    filters = Picture(
        "Patch filters",
        vit_plots.draw_patch_filters(find_patch_filters(model)),
        f"{name.capitalize()}: the principal components of the patch embedding's filters, the strongest "
        "first. The middle grey is 0, and each has its own scale. What looks like noise was not learned.",
    )
    if settings.pos_embed != "learned":
        return VitFigures([filters], ["No positions: the position embeddings are fixed waves, not learned."])
    positions = Picture(
        "Position embeddings",
        vit_plots.draw_position_similarity(find_position_similarity(model)),
        f"{name.capitalize()}: each tile stands for a patch's place and shows how much the embedding of "
        "every place resembles the one of that place. Where the layout was learned, places nearby and in the "
        "same row and column are alike; single bright points mean that it was not.",
    )
    return VitFigures([filters, positions])


def show_distances(trainings: Mapping[str, TrainingFolder], settings: ModelSettings) -> VitFigures:
    """Draws the mean attention distance of each training that has measured it."""
    paths = {name: folder.attention for name, folder in trainings.items()}
    distances = {name: read_numbers(path, ATTENTION_COLUMNS) for name, path in paths.items() if path.exists()}
    if not distances:
        return VitFigures(
            missing=[f"No attention distance: {' and '.join(trainings)} have no attention.csv."]
        )
    even_distance_px = find_even_distance(settings.grid_size, settings.patch_size)
    drawing = vit_plots.draw_attention_distance(distances, even_distance_px)
    caption = (
        "How far a patch looks: a dot for each head, the mean over patches and held-out images. Dashed: "
        "looking at all patches evenly."
    )
    return VitFigures([Picture("Attention distance", drawing, caption)])
