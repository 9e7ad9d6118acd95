"""`model.safetensors`: the weights that predict, with the shift that undoes the sampler's prior."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from data_prep.errors import UserError
from data_prep.storage.atomic import write_bytes
from data_prep.storage.files import parse_json, require_input, require_own
from pipeline.models.breast_transformer import WITHIN, BreastTransformer, make_model
from pipeline.models.vit import VisionTransformer
from pipeline.runs.recipe import ModelSettings
from pipeline.runs.run_folder import TrainingFolder

WEIGHTS_ENTRY = "mammo"
"""Of a weights file's metadata: a JSON object with `logit_shift` and `num_heads`."""


HEAD_ENTRY = "has_head"
"""In that object: false where nothing was learned with labels."""


def save_weights(
    folder: TrainingFolder,
    model: VisionTransformer | BreastTransformer,
    *,
    logit_shift: float,
    num_classes: int,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes the model that predicts, with the shift that undoes the sampler's prior.

    Only the first `num_classes` outputs are kept: the others helped to learn and predict nothing. `about` is
    what the file says of the weights besides.
    """
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    within = WITHIN if isinstance(model, BreastTransformer) else ""
    for name in (f"{within}head.weight", f"{within}head.bias"):
        weights[name] = weights[name][:num_classes].contiguous()
    about = {"logit_shift": logit_shift, "num_heads": model.settings.num_heads, **about}
    # One entry alone: several come in another order each time, and equal weights would be unequal bytes.
    write_bytes(folder.weights, safetensors.torch.save(weights, {WEIGHTS_ENTRY: json.dumps(about)}))


def read_about(path: Path) -> dict[str, Any]:
    """Returns what a file of mammo's own weights says of them; empty for any other file."""
    try:
        with safe_open(require_input(path), framework="pt") as file:
            return dict(parse_json((file.metadata() or {})[WEIGHTS_ENTRY].encode()))
    except (OSError, SafetensorError, UserError, KeyError, TypeError, ValueError):
        return {}


def read_seen(path: Path) -> dict[str, list[str]]:
    """Returns hashes of `patients` and `pictures` that an encoder was pretrained on; empty if it was not."""
    seen = read_about(path).get("seen")
    if not isinstance(seen, dict) or not all(isinstance(hashes, list) for hashes in seen.values()):
        return {}
    return {str(kind): [str(each) for each in hashes] for kind, hashes in seen.items()}


def inherit_seen(path: Path) -> dict[str, Any]:
    """Returns what weights that start from a file must say of it: whom an encoder before has seen."""
    seen = read_seen(path)
    return {"seen": seen} if seen else {}


def has_head(path: Path) -> bool:
    """Whether the head in a file of weights has learned anything; one that had no labels has not."""
    return read_about(path).get(HEAD_ENTRY) is not False


def make_without_values(
    settings: ModelSettings, shapes: Mapping[str, Sequence[int]]
) -> VisionTransformer | BreastTransformer:
    """Returns a model that takes no memory and draws no weights, once a file is known to hold its tensors.

    Raises:
        ValueError: if the file's tensors have other names or shapes.
    """
    with torch.device("meta"):
        model = make_model(settings)
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if expected != {name: list(shape) for name, shape in shapes.items()}:
        raise ValueError("its tensors are not those of the settings' model")
    return model


def load_weights(
    folder: TrainingFolder, settings: ModelSettings
) -> tuple[VisionTransformer | BreastTransformer, float]:
    """Returns a fold's model in evaluation mode, and its logit shift.

    Raises:
        UserError: if the file is missing, damaged, or of another model.
    """
    try:
        with safe_open(require_own(folder.weights), framework="pt") as file:
            names = list(file.keys())
            model = make_without_values(settings, {name: file.get_slice(name).get_shape() for name in names})
            weights = {name: file.get_tensor(name).to(torch.float32, copy=True) for name in names}
            shift = float(parse_json(file.metadata()[WEIGHTS_ENTRY].encode())["logit_shift"])
        model.load_state_dict(weights, assign=True)
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder.weights} does not hold this run's model ({type(error).__name__}): train the fold again"
        ) from error
    return model.eval(), shift
