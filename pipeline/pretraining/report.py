"""The page that people read of a pretraining: `pretrain.html`."""

from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.storage.atomic import write_text
from pipeline.models.normalization import MEAN, STD, to_tensor
from pipeline.pretraining.masked_autoencoder import VARIANCE_EPS, MaskedAutoencoder, Patches
from pipeline.pretraining.plots import Histories, draw_pretrain_losses, draw_probe
from pipeline.pretraining.pretrain import Plan
from pipeline.reporting.cases.gallery import to_address
from pipeline.reporting.rendering import Picture, render_page
from pipeline.reporting.vit_figures import draw_vit_figures
from pipeline.runs.pretrain_run import PretrainRun
from pipeline.runs.records import read_numbers
from pipeline.training.checkpoint import load_checkpoint

NUM_SHOWN = 6
LARGEST_SIDE_PX = 256
HIDDEN_GREY = 0.0  # of normalised pixels: the middle of black and white


class Reconstruction(NamedTuple):
    """One held-out image as data addresses, and its loss."""

    name: str
    original: str
    visible: str
    predicted: str
    loss: float


def write_pretrain_report(plan: Plan) -> list[int]:
    """Writes the page once all encoders are trained; returns the folds of those that are not.

    Raises:
        UserError: if a file that the page shows is damaged.
    """
    trainings = plan.run.list_trainings()
    missing = [fold or 0 for fold, training in trainings.items() if not training.is_finished]
    if missing:
        return missing
    histories = _read(plan.run)
    seen = plan.run.read_seen()
    page = render_page(
        "pretrain.html.j2",
        plan.run,
        package="pipeline.pretraining",
        filters={},
        num_images=len(seen),
        num_patients=seen["patient_id"].nunique(),
        folds=[fold for fold in trainings if fold is not None],
        losses={fold: float(history["val_loss"].iloc[-1]) for fold, history in histories.items()},
        visible=plan.recipe.pretrain.visible,
        learning_curves=make_curves(histories),
        reconstructions=reconstruct_held_out(plan, next(iter(trainings))),
        vit_figures=draw_vit_figures(
            plan.run.settings, {_name(fold): training for fold, training in trainings.items()}
        ),
    )
    write_text(plan.run.report, page)
    return []


def _name(fold: int | None) -> str:
    return "the encoder" if fold is None else f"fold {fold}"


def _read(run: PretrainRun) -> dict[int | None, pd.DataFrame]:
    """Reads the history of each training that has one."""
    columns = ["epoch", "train_loss", "val_loss"]
    return {
        fold: read_numbers(training.history, columns, newer=["probe_auc"])
        for fold, training in run.list_trainings().items()
        if training.history.exists()
    }


def make_curves(histories: Histories) -> list[Picture]:
    """Draws losses, and the linear probe if there was one; none without a history."""
    if not histories:
        return []
    caption = "Mean squared error of hidden patches, each with deviation 1: guessing its mean gives 1."
    pictures = [Picture("Loss", draw_pretrain_losses(histories), f"{caption} Dashed: held-out images.")]
    if any(history["probe_auc"].notna().any() for history in histories.values()):
        caption = (
            "How well a logistic regression tells images with cancer by the mean of the encoder's tokens: of "
            "training images alone, cross-validated by patient. Dashed: guessing. Nothing was chosen by it."
        )
        pictures.append(Picture("Linear probe", draw_probe(histories), caption))
    return pictures


# Reconstructions


def reconstruct_held_out(plan: Plan, fold: int | None) -> list[Reconstruction]:
    """Returns some of an encoder's held-out images, as it saw and as it predicts them.

    None where the last checkpoint, which alone has the decoder, is gone.
    """
    checkpoint = load_checkpoint(plan.run.training(fold))
    if checkpoint is None:
        return []
    model = MaskedAutoencoder(plan.recipe.model, plan.recipe.pretrain).eval()
    model.load_state_dict(checkpoint["average"])
    judged = plan.split(fold).judged
    rows = np.unique(np.linspace(0, len(judged) - 1, NUM_SHOWN).astype(int))
    images = plan.sources.pick(judged)
    return [
        _reconstruct(model, to_tensor(images[int(row)])[None], str(judged["image_id"].iloc[row]))
        for row in rows
    ]


@torch.inference_mode()
def _reconstruct(model: MaskedAutoencoder, image_1CHW: Tensor, name: str) -> Reconstruction:
    patches = model.choose(image_1CHW)
    predicted_1kn = model.decoder(model.encode(patches, model.num_visible), patches)
    hidden_1kn = torch.full_like(predicted_1kn, HIDDEN_GREY)
    return Reconstruction(
        name,
        _to_picture(image_1CHW[0]),
        _to_picture(replace_hidden(image_1CHW, patches, hidden_1kn)[0]),
        _to_picture(replace_hidden(image_1CHW, patches, give_contrast(predicted_1kn, patches.pixels))[0]),
        float(model(image_1CHW)[0, 0]),
    )


def give_contrast(predicted_Bkn: Tensor, pixels_Bkn: Tensor) -> Tensor:
    """Returns predictions of mean 0 and deviation 1 with the mean and deviation of the true pixels."""
    centred_Bkn = pixels_Bkn - pixels_Bkn.mean(dim=-1, keepdim=True)
    deviation_Bk1 = (centred_Bkn.square().mean(dim=-1, keepdim=True) + VARIANCE_EPS).sqrt()
    return predicted_Bkn * deviation_Bk1 + pixels_Bkn.mean(dim=-1, keepdim=True)


def replace_hidden(images_BCHW: Tensor, patches: Patches, pixels_Bkn: Tensor) -> Tensor:
    """Returns images with other pixels in their hidden patches."""
    B, C, H, W = images_BCHW.shape
    side = int((pixels_Bkn.shape[2] // C) ** 0.5)
    shape = (B, H // side, W // side, C, side, side)
    tiles = images_BCHW.reshape(B, C, H // side, side, W // side, side).permute(0, 2, 4, 1, 3, 5)
    tiles_BPn = tiles.reshape(B, -1, pixels_Bkn.shape[2]).clone()
    batch, slots = patches.is_hidden.nonzero(as_tuple=True)
    tiles_BPn[batch, patches.places[batch, slots]] = pixels_Bkn[batch, slots]
    return tiles_BPn.reshape(shape).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)


def _to_picture(image_CHW: Tensor) -> str:
    """Returns the data address of a small JPEG."""
    grey = ((image_CHW * STD + MEAN) * 255).round().clamp(0, 255).to(torch.uint8)
    pixels: NDArray[np.uint8] = grey.permute(1, 2, 0).squeeze(-1).numpy()
    side = min(LARGEST_SIDE_PX, len(pixels))
    small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    return to_address(np.asarray(small, np.uint8), "jpeg")
