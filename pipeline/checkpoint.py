"""What a fold's training leaves on disk: checkpoints to go on from, and the weights that predict."""

import io
import json
import logging
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from data_prep.errors import TrainingStopped, UserError
from data_prep.files import write_bytes
from pipeline.run import WEIGHTS_ENTRY, TrainingFolder
from pipeline.settings import ModelSettings
from pipeline.vit import VisionTransformer

Checkpoint = dict[str, Any]

log = logging.getLogger(__name__)


def save_checkpoint(folder: TrainingFolder, checkpoint: Checkpoint) -> None:
    """Writes `last.pt`; what was there becomes `previous.pt`. A kill leaves at least one of them whole."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    if folder.last.exists():
        folder.last.replace(folder.previous)
    write_bytes(folder.last, buffer.getbuffer())


def load_checkpoint(folder: TrainingFolder) -> Checkpoint | None:
    """Reads the newest readable checkpoint onto the CPU; None where training has not begun.

    Raises:
        TrainingStopped: if there are checkpoints and none can be read.
    """
    candidates = [path for path in (folder.last, folder.previous) if path.exists()]
    for path in candidates:
        try:
            checkpoint: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load names no set of errors for damaged files
            log.warning("%s cannot be read (%s); trying the checkpoint before it", path, type(error).__name__)
        else:
            if path == folder.previous:
                folder.last.unlink(missing_ok=True)  # else the next save would put it in this one's place
            return checkpoint
    if candidates:
        raise TrainingStopped(
            f"no checkpoint in {folder.folder} can be read: remove that folder to train the fold anew"
        )
    return None


def save_weights(
    folder: TrainingFolder, model: VisionTransformer, *, logit_shift: float, num_classes: int
) -> None:
    """Writes the model that predicts, with the shift that undoes the sampler's prior.

    Only the first `num_classes` outputs are kept: the others helped to learn and predict nothing.
    """
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    for name in ("head.weight", "head.bias"):
        weights[name] = weights[name][:num_classes].contiguous()
    about = {"logit_shift": logit_shift, "num_heads": model.settings.num_heads}
    # One entry alone: several come in another order each time, and equal weights would be unequal bytes.
    write_bytes(folder.weights, safetensors.torch.save(weights, {WEIGHTS_ENTRY: json.dumps(about)}))


def load_weights(folder: TrainingFolder, settings: ModelSettings) -> tuple[VisionTransformer, float]:
    """Returns a fold's model in evaluation mode, and its logit shift.

    Raises:
        UserError: if the file is missing, damaged, or of another model.
    """
    try:
        with safe_open(folder.weights, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            shift = float(json.loads(file.metadata()[WEIGHTS_ENTRY])["logit_shift"])
        model = VisionTransformer(settings)
        model.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder.weights} does not hold this run's model ({type(error).__name__}): train the fold again"
        ) from error
    return model.eval(), shift
