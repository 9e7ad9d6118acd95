"""First weights of the layers over a breast's images: those of an earlier run that judges breasts, or new."""

from torch import nn

from pipeline.models.breast_transformer import FUSION
from pipeline.models.pretrained import PretrainedWeights, TensorOutcome

HEAD = f"{FUSION}head."
BIAS = f"{HEAD}bias"
DETAIL = "layers over a breast's images"


def start_fusion(
    fusion: nn.Module | None, source: PretrainedWeights, logit_shift: float | None
) -> list[TensorOutcome]:
    """Loads a source's layers over a breast's images, where it has some and the model wants them.

    Args:
        fusion: these layers; None for a model that judges single images.
        source: whose encoder fits the model's, so that these layers do.
        logit_shift: as `load_initial_weights` takes it.
    """
    found = {name: tensor for name, tensor in source.tensors.items() if name.startswith(FUSION)}
    if fusion is None:
        return [TensorOutcome(name, "left out", DETAIL) for name in found]
    moved = None if logit_shift is None or source.logit_shift is None else source.logit_shift - logit_shift
    rows = []
    for name, place in fusion.state_dict(prefix=FUSION).items():  # shares its memory with the model
        is_kept = name in found and (moved is not None or not name.startswith(HEAD))
        if is_kept:
            place.copy_(found[name] + moved if moved is not None and name == BIAS else found[name])
        rows.append(TensorOutcome(name, "loaded" if is_kept else "new", DETAIL))
    return rows
