"""A run's models as ONNX files, which need neither torch nor mammo.

A file takes grey images as `mammo prepare` makes them, and holds all that `mammo predict` does with them:
brightness to the model's range, the model, and the shift that undoes the sampler's prior. Of a run that takes
age it takes `age` too, in years, NaN where unknown. Of a run that judges whole breasts it takes a fixed
number of slots for a breast's images, and which of them hold one.
"""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from data_prep.storage.atomic import make_folder, write_bytes
from pipeline.evaluation.age.age_regression import AGE, DECADE, MIDDLE, AgeRegression, fit_folds
from pipeline.evaluation.oof import collect_oof
from pipeline.models.breast_transformer import (
    EMPTY,
    NUM_VIEWS,
    OTHER_BREAST,
    OWN,
    BreastInputs,
    Places,
)
from pipeline.models.normalization import MEAN, STD
from pipeline.models.weights_file import load_weights
from pipeline.runs.recipe import ModelSettings, load_recipe
from pipeline.runs.run_folder import Run

OUTPUTS = ["probability", "pixel_probability"]
"""Of a run that takes age both; of others the first one alone."""
SLOTS = {"views": 4, "exam": 8}
"""How many images of a breast, or of both, a file takes, by `model.fusion`."""
TOLERANCE = 1e-4
LARGEST_BYTES = 2**31 - 1  # of a protobuf message
SMALLEST_BATCH = 2  # of the example: torch takes a dimension of 1 for a constant
NOISE_SEED = 0


@dataclass(frozen=True)
class Exported:
    """An ONNX file.

    Attributes:
        difference: the largest between its probabilities and those of torch, on images of noise.
    """

    path: Path
    difference: float


class PortableModel(nn.Module):
    """What an ONNX file computes: pixels, and with a `regression` ages, to probabilities."""

    beside: tuple[str, ...] = ()
    """What it takes besides images and ages."""

    def __init__(
        self,
        model: nn.Module,
        *,
        logit_shift: float,
        brightest: float,
        regression: AgeRegression | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.logit_shift = logit_shift
        self.brightest = brightest
        self.regression = regression

    @property
    def inputs(self) -> list[str]:
        """Names of what it takes, in order."""
        return ["images", *self.beside, *([] if self.regression is None else ["age"])]

    @property
    def outputs(self) -> list[str]:
        """Names of what it returns, in order."""
        return OUTPUTS[: 1 if self.regression is None else 2]

    @property
    def steepness(self) -> float:
        """By how much age's part may let a difference of the pixels' log-odds grow."""
        if self.regression is None or not self.regression.slope:
            return 1.0
        return self.regression.scores.steepness * self.regression.scores_of_both.steepness

    def to_probabilities(self, log_odds_B: Tensor, ages_B: Tensor | None) -> tuple[Tensor, ...]:
        """Returns probability_B, and with ages also that by pixels."""
        if self.regression is None or ages_B is None:
            return (torch.sigmoid(log_odds_B),)
        both_B = _count_age(self.regression, log_odds_B.double(), ages_B.double())
        return both_B.float(), torch.sigmoid(log_odds_B)


class Portable(PortableModel):
    """That of a model that judges each image by itself."""

    def forward(self, images_B1HW: Tensor, ages_B: Tensor | None = None) -> tuple[Tensor, ...]:
        """Returns probability_B of images from 0 to `brightest`; with ages in years also that by pixels."""
        logits_BK = self.model((images_B1HW / self.brightest - MEAN) / STD)
        return self.to_probabilities(logits_BK[:, 0] + self.logit_shift, ages_B)


class PortableBreast(PortableModel):
    """That of a model of whole breasts: a breast's images in V slots, of which some are empty."""

    beside = ("present", "view_class", "other_breast")

    def forward(
        self,
        images_BV1HW: Tensor,
        present_BV: Tensor,
        views_BV: Tensor,
        others_BV: Tensor,
        ages_B: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Returns probability_B; it means nothing where no slot holds an image of the breast itself.

        Args:
            images_BV1HW: from 0 to `brightest`; of empty slots any finite number.
            present_BV: 1 where a slot holds an image, else 0.
            views_BV: 0 CC-like, 1 MLO-like, 2 other.
            others_BV: 1 where a slot's image is of the other breast, else 0.
            ages_B: in years.
        """
        B, V = images_BV1HW.shape[:2]
        numbers_BV = torch.arange(B * V, device=images_BV1HW.device).view(B, V)
        slots_BV = torch.where(present_BV > 0, numbers_BV, EMPTY)
        sides_BV = torch.where(others_BV > 0, OTHER_BREAST, OWN)
        images_NCHW = (images_BV1HW.flatten(0, 1) / self.brightest - MEAN) / STD
        logits = self.model(BreastInputs(images_NCHW, Places(slots_BV, views_BV, sides_BV)))
        return self.to_probabilities(logits.breasts + self.logit_shift, ages_B)


def _count_age(learned: AgeRegression, log_odds_B: Tensor, ages_B: Tensor) -> Tensor:
    """Returns probability_B by both, as `AgeRegression` does; a breast is its image here."""
    is_unknown_B = torch.isnan(ages_B)
    decades_B = torch.where(is_unknown_B, torch.zeros_like(ages_B), (ages_B - MIDDLE) / DECADE)
    by_age_B = learned.per_decade * decades_B + learned.unknown * is_unknown_B.to(ages_B.dtype)
    by_pixels, of_both = learned.scores, learned.scores_of_both
    scores_B = _interpolate(log_odds_B, by_pixels.log_odds, by_pixels.scores)
    both_B = learned.slope * scores_B + by_age_B
    if not of_both.log_odds:
        return torch.sigmoid(learned.intercept + both_B)
    ranked_B = _interpolate(both_B, of_both.log_odds, of_both.scores)
    return torch.sigmoid(_interpolate(ranked_B, by_pixels.scores, by_pixels.log_odds))


def _interpolate(values_B: Tensor, known: tuple[float, ...], theirs: tuple[float, ...]) -> Tensor:
    """Does what `NormalScores` does, by bends at the known values."""
    if not known:
        return values_B
    knots, heights = np.array(known), np.array(theirs)
    slopes = np.concatenate([[1.0], np.diff(heights) / np.diff(knots), [1.0]])
    bends_BK = torch.relu(values_B[:, None] - torch.from_numpy(knots))
    return heights[0] + values_B - knots[0] + bends_BK @ torch.from_numpy(np.diff(slopes))


def export_onnx(run: Run, folder: Path) -> list[Exported]:
    """Writes `fold_<k>.onnx` for each fold, once onnxruntime has computed what torch does.

    Raises:
        UserError: if the run is not finished, a fold's weights cannot be read, or a package is not installed.
    """
    folds, recipe = run.require_finished(), load_recipe(run.settings)
    runtime = _import_runtime()
    # All, before any is written.
    models = {fold: load_weights(run.fold(fold), recipe.model) for fold in folds}
    learned = fit_folds(collect_oof(run)) if AGE in recipe.model.inputs else {}
    make_folder(folder)
    exported = []
    for fold, (model, shift) in models.items():
        brightest = float(2**recipe.prepare.bit_depth - 1)
        regression = learned[fold].both if fold in learned else None
        kind = Portable if recipe.model.fusion == "none" else PortableBreast
        portable = kind(model, logit_shift=shift, brightest=brightest, regression=regression).eval()
        examples = _make_examples(recipe.model, brightest, with_ages=regression is not None)
        content = to_onnx(portable, examples)
        difference = measure_difference(runtime, content, portable, examples)
        if difference > TOLERANCE:
            raise UserError(
                f"fold {fold} as ONNX differs from torch by {difference:.2g}, more than {TOLERANCE:g}: "
                "install the versions of constraints.txt and export again"
            )
        path = folder / f"fold_{fold}.onnx"
        write_bytes(path, content)
        exported.append(Exported(path, difference))
    return exported


def to_onnx(portable: PortableModel, examples: tuple[Tensor, ...]) -> bytes:
    """Returns the model as the content of an ONNX file that takes batches of any size.

    Raises:
        UserError: if the model is too large for one file.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in portable.state_dict().values())
    if size > LARGEST_BYTES:
        raise UserError(f"a model of {size / 1e9:.1f} GB does not fit into an ONNX file, which ends at 2 GB")
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own use of its deprecated names
            program = torch.onnx.export(
                portable,
                examples,
                dynamo=True,
                dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in examples),
                input_names=portable.inputs,
                output_names=portable.outputs,
                verbose=False,
            )
    finally:
        exporter.setLevel(level)
    assert program is not None, "torch returns a program where dynamo is asked for"
    content: bytes = program.model_proto.SerializeToString()
    return content


def measure_difference(
    runtime: ModuleType, content: bytes, portable: PortableModel, examples: tuple[Tensor, ...]
) -> float:
    """Returns the largest difference between onnxruntime's probabilities and torch's.

    What age adds may make more of a difference of the pixels, and is measured in proportion.
    """
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    asked = {name: example.numpy() for name, example in zip(portable.inputs, examples, strict=True)}
    theirs = session.run(portable.outputs, asked)
    with torch.inference_mode():
        ours = portable(*examples)
    by_both, *by_pixels = (
        float(np.abs(there_B - here_B.numpy()).max()) for there_B, here_B in zip(theirs, ours, strict=True)
    )
    return max([by_both / portable.steepness, *by_pixels])


def _make_examples(model: ModelSettings, brightest: float, *, with_ages: bool) -> tuple[Tensor, ...]:
    """Returns noise, and of whole breasts a full one and one with an empty slot."""
    num_slots = 1 if model.views_per_breast else SLOTS.get(model.fusion, 1)
    slots = () if model.fusion == "none" else (num_slots,)
    shape = (SMALLEST_BATCH, *slots, 1, model.image_size, model.image_size)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(NOISE_SEED))
    ages = (torch.tensor([MIDDLE + DECADE, torch.nan]),) if with_ages else ()
    if model.fusion == "none":
        return (noise * brightest).round(), *ages
    present_BV = torch.ones(SMALLEST_BATCH, num_slots, dtype=torch.int64)
    present_BV[1, 1:2] = 0
    views_BV = torch.arange(num_slots).expand(SMALLEST_BATCH, -1) % NUM_VIEWS
    others_BV = (torch.arange(num_slots) >= SLOTS["views"]).long().expand(SMALLEST_BATCH, -1)
    return (noise * brightest).round(), present_BV, views_BV.contiguous(), others_BV.contiguous(), *ages


def _import_runtime() -> ModuleType:
    try:
        import onnx  # noqa: F401, PLC0415  an optional extra
        import onnxruntime  # noqa: PLC0415  an optional extra
        import onnxscript  # noqa: F401, PLC0415  an optional extra
    except ImportError as error:
        raise UserError(
            f"ONNX needs {error.name}, which is not installed: pip install onnx onnxruntime onnxscript (or, "
            "in mammo's folder, pip install -c constraints.txt '.[onnx]')"
        ) from error
    runtime: ModuleType = onnxruntime
    return runtime
