"""What section 4.5 of the ViT paper shows of a trained model, as pictures for a report. Writes no file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.errors import UserError
from pipeline import weight_pictures
from pipeline.attention import (
    ATTENTION_COLUMNS,
    find_even_distance,
    find_patch_filters,
    find_position_similarity,
)
from pipeline.checkpoint import load_weights
from pipeline.page import Picture
from pipeline.records import read_numbers
from pipeline.run import TrainingFolder
from pipeline.settings import ModelSettings, load_recipe


@dataclass(frozen=True)
class Inside:
    """The section's content.

    Attributes:
        missing: sentences about what could not be drawn.
    """

    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __add__(self, other: "Inside") -> "Inside":
        return Inside(self.pictures + other.pictures, self.missing + other.missing)


def look_inside(settings_path: Path, trainings: Mapping[str, TrainingFolder]) -> Inside:
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
        return Inside(missing=[f"Not drawn: the run's {settings_path.name} does not describe a model."])
    name, folder = next(iter(trainings.items()))
    return draw_weights(name, folder, settings) + draw_distances(trainings, settings)


def draw_weights(name: str, folder: TrainingFolder, settings: ModelSettings) -> Inside:
    """Draws patch filters and position embeddings of one model."""
    try:
        model, _ = load_weights(folder, settings)
    except UserError:
        sentence = f"No patch filters and positions: {name} has no readable {folder.weights.name}."
        return Inside(missing=[sentence])
    filters = Picture(
        "Patch filters",
        weight_pictures.draw_patch_filters(find_patch_filters(model)),
        f"{name.capitalize()}: the principal components of the patch embedding's filters, the strongest "
        "first. The middle grey is 0, and each has its own scale. What looks like noise was not learned.",
    )
    if settings.pos_embed != "learned":
        return Inside([filters], ["No positions: the position embeddings are fixed waves, not learned."])
    positions = Picture(
        "Position embeddings",
        weight_pictures.draw_position_similarity(find_position_similarity(model)),
        f"{name.capitalize()}: each tile stands for a patch's place and shows how much the embedding of "
        "every place resembles the one of that place. Where the layout was learned, places nearby and in the "
        "same row and column are alike; single bright points mean that it was not.",
    )
    return Inside([filters, positions])


def draw_distances(trainings: Mapping[str, TrainingFolder], settings: ModelSettings) -> Inside:
    """Draws the mean attention distance of each training that has measured it."""
    paths = {name: folder.attention for name, folder in trainings.items()}
    distances = {name: read_numbers(path, ATTENTION_COLUMNS) for name, path in paths.items() if path.exists()}
    if not distances:
        return Inside(missing=[f"No attention distance: {' and '.join(trainings)} have no attention.csv."])
    even_distance_px = find_even_distance(settings.grid_size, settings.patch_size)
    drawing = weight_pictures.draw_attention_distance(distances, even_distance_px)
    caption = (
        "How far a patch looks: a dot for each head, the mean over patches and held-out images. Dashed: "
        "looking at all patches evenly."
    )
    return Inside([Picture("Attention distance", drawing, caption)])
