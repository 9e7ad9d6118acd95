"""Settings of the model that its first weights decide."""

import re
from typing import NamedTuple

from pydantic import ValidationError

from data_prep.errors import UserError
from pipeline.models.published_layouts import CLASS_TOKEN, REGISTERS, Shapes, rename, require_computable
from pipeline.runs.recipe import ModelSettings

SMALL_SCALE = 1e-5
"""The first value of a LayerScale that comes from weights, which replace it: DINOv2's."""


class Structure(NamedTuple):
    """What weights tell of their model, by the names of the settings."""

    register_tokens: int
    layer_scale: float
    qk_norm: bool
    qkv_bias: bool


def follow_weights(model: ModelSettings, shapes: Shapes, name: str) -> ModelSettings:
    """Returns the settings with those that the weights decide, where they have their defaults.

    Args:
        model: as the recipe has it.
        shapes: of the weights' tensors.
        name: what `train.init` calls the weights.

    Raises:
        UserError: if a setting that is not the default contradicts the weights, or this model cannot compute
            what theirs does.
    """
    try:
        require_computable(shapes)
    except ValueError as error:
        raise UserError(f"train.init {name} cannot start this model: {error}") from error
    structure = find_structure(shapes)
    changes = {} if structure is None else _find_changes(model, structure, name)
    try:
        return ModelSettings(**model.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"train.init {name} cannot start this model: model.{'.'.join(map(str, first['loc']))} would be "
            f"{first['input']}, which it cannot be ({first['msg']})"
        ) from error


def find_structure(shapes: Shapes) -> Structure | None:
    """Reads the names of a Vision Transformer's tensors; None where there are no layers among them."""
    ours = {rename(each): shape for each, shape in shapes.items()}
    if not _has(ours, r"attn\.qkv\.weight"):
        return None
    registers = ours.get(REGISTERS, ())
    num_registers = registers[1] if len(registers) == 3 else 0
    return Structure(
        register_tokens=max(0, num_registers - (CLASS_TOKEN not in ours)),  # one stands for the class token
        layer_scale=SMALL_SCALE if _has(ours, r"ls1\.gamma") else 0.0,
        qk_norm=_has(ours, r"attn\.q_norm\.weight"),
        qkv_bias=_has(ours, r"attn\.qkv\.bias"),
    )


def follow_settings(model: ModelSettings, known: ModelSettings) -> ModelSettings:
    """Returns the settings as `follow_weights` did for a run that is known; other differences stay."""
    defaults = {name: ModelSettings.model_fields[name].default for name in Structure._fields}
    untouched = [name for name, default in defaults.items() if getattr(model, name) == default]
    return model.model_copy(update={name: getattr(known, name) for name in untouched})


def describe_followed(before: ModelSettings, after: ModelSettings, init: str) -> str:
    """Says which settings follow from the weights; empty where none does."""
    followed = [
        f"model.{name} = {_show(getattr(after, name))}"
        for name in Structure._fields
        if getattr(after, name) != getattr(before, name)
    ]
    if not followed:
        return ""
    return f"{' and '.join(followed)} {'follow' if len(followed) > 1 else 'follows'} from train.init {init}"


def _find_changes(model: ModelSettings, structure: Structure, name: str) -> dict[str, int | float | bool]:
    """Returns the values of the settings that follow."""
    changes: dict[str, int | float | bool] = {}
    for setting, theirs in structure._asdict().items():
        ours, default = getattr(model, setting), ModelSettings.model_fields[setting].default
        if ours == theirs or (setting == "layer_scale" and ours and theirs):
            continue
        if ours != default:
            raise UserError(
                f"model.{setting} is {_show(ours)}, and of the weights in train.init {name} it is "
                f"{_show(theirs)}: leave model.{setting} out, or take other weights"
            )
        changes[setting] = theirs
    return changes


def _has(shapes: Shapes, ending: str) -> bool:
    return any(re.fullmatch(rf"blocks\.\d+\.{ending}", name) for name in shapes)


def _show(value: float) -> str:
    """Writes a value as TOML does."""
    return str(value).lower()
