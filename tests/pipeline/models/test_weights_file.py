"""The weights that predict: kept exactly, in equal bytes, and refused where they are another model's."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from data_prep.errors import UserError
from pipeline.models.vit import VisionTransformer
from pipeline.models.weights_file import load_weights, save_weights
from pipeline.runs.run_folder import FoldFolder
from tests.pipeline.tiny import MODEL


@pytest.fixture
def folder(tmp_path: Path) -> FoldFolder:
    return FoldFolder(tmp_path)


def test_weights_and_logit_shift_come_back_exactly(folder: FoldFolder) -> None:
    model = VisionTransformer(MODEL)
    save_weights(folder, model, logit_shift=-1 / 3, num_classes=1)
    loaded, shift = load_weights(folder, MODEL)
    folder.weights.write_bytes(
        b"\0" * folder.weights.stat().st_size
    )  # in place: nothing is a view of the file
    assert shift == -1 / 3
    assert not loaded.training
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_a_loaded_model_computes_what_the_saved_one_does_with_fixed_positions_too(folder: FoldFolder) -> None:
    settings = MODEL.model_copy(update={"pos_embed": "sincos2d"})
    model = VisionTransformer(settings).eval()
    torch.nn.init.normal_(model.head.weight)
    save_weights(folder, model, logit_shift=0.0, num_classes=1)
    loaded, _ = load_weights(folder, settings)
    images = torch.rand(2, settings.in_channels, settings.image_size, settings.image_size)
    assert torch.equal(loaded(images), model(images))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_loading_draws_no_random_numbers(folder: FoldFolder) -> None:
    """To draw weights that are then replaced took most of the time of a short prediction."""
    save_weights(folder, VisionTransformer(MODEL), logit_shift=0.0, num_classes=1)
    before = torch.get_rng_state()
    load_weights(folder, MODEL)
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_weights_are_equal_bytes(folder: FoldFolder) -> None:
    model = VisionTransformer(MODEL)
    save_weights(folder, model, logit_shift=0.5, num_classes=1)
    first = folder.weights.read_bytes()
    save_weights(folder, model, logit_shift=0.5, num_classes=1)
    assert folder.weights.read_bytes() == first


def foreign(weights: dict[str, torch.Tensor], about: str | None) -> bytes:
    return safetensors.torch.save(weights, None if about is None else {"mammo": about})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no safetensors",
        foreign({"weight": torch.ones(2)}, '{"logit_shift": 0.0}'),
        foreign(VisionTransformer(MODEL).state_dict(), None),
        foreign(VisionTransformer(MODEL).state_dict(), '{"logit_shift": "high"}'),
        foreign(
            VisionTransformer(MODEL.model_copy(update={"width": 32})).state_dict(), '{"logit_shift": 0.0}'
        ),
    ],
    ids=["empty", "other format", "other names", "no shift", "bad shift", "other width"],
)
def test_foreign_weights_are_a_user_error(folder: FoldFolder, content: bytes) -> None:
    folder.weights.write_bytes(content)
    with pytest.raises(UserError, match=r"does not hold this run's model \(\w+\): train the fold again"):
        load_weights(folder, MODEL)


def test_settings_of_a_giant_take_no_memory(folder: FoldFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(folder, VisionTransformer(MODEL), logit_shift=0.0, num_classes=1)
    giant = MODEL.model_copy(update={"width": 8192, "depth": 128, "num_heads": 128, "drop_path": 0.1})
    with pytest.raises(UserError, match="does not hold this run's model"):
        load_weights(folder, giant)  # of 400 GB in float32


def test_missing_weights_are_a_user_error(folder: FoldFolder) -> None:
    with pytest.raises(UserError, match="does not hold this run's model"):
        load_weights(folder, MODEL)
