"""The masked autoencoder against numpy, and what it must not see."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from pipeline.models.vit import Block, VisionTransformer
from pipeline.pretraining.masked_autoencoder import MaskedAutoencoder, count_visible
from pipeline.runs.pretrain_settings import PretrainSettings
from tests.pipeline.tiny import MODEL

SETTINGS = PretrainSettings(decoder_width=32, decoder_depth=1)
P, GRID = MODEL.patch_size, MODEL.grid_size


def make_model(*, seed=0, settings=SETTINGS, **changes) -> MaskedAutoencoder:
    """A model in float64 and evaluation mode, whose every tensor is random."""
    torch.manual_seed(seed)
    model = MaskedAutoencoder(MODEL.model_copy(update=changes), settings).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def make_images(num_shown: list[int], *, seed=0) -> torch.Tensor:
    """Images of which so many patches, at random places, are noise and the others flat."""
    generator = np.random.default_rng(seed)
    images = np.full((len(num_shown), GRID, P, GRID, P), -2.0)
    for image, count in zip(images, num_shown, strict=True):
        for place in generator.permutation(GRID**2)[:count]:
            image[place // GRID, :, place % GRID] = generator.normal(size=(P, P))
    return torch.from_numpy(images.reshape(len(num_shown), 1, GRID * P, GRID * P))


# The loss by the paper, in numpy


def to_numpy(model: MaskedAutoencoder) -> dict[str, np.ndarray]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"].reshape(len(w[f"{name}.weight"]), -1).T + w[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * np.vectorize(lambda v: 0.5 * (1 + torch.erf(torch.tensor(v / np.sqrt(2))).item()))(x)


def run_block(x_TD: np.ndarray, w: dict[str, np.ndarray], name: str, num_heads: int) -> np.ndarray:
    T, D = x_TD.shape
    q, k, v = (
        linear(norm(x_TD, w, f"{name}.norm1"), w, f"{name}.attn.qkv")
        .reshape(T, 3, num_heads, -1)
        .swapaxes(0, 1)
    )
    heads = []
    for head in range(num_heads):
        scores = q[:, head] @ k[:, head].T / np.sqrt(D // num_heads)
        A = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(A / A.sum(-1, keepdims=True) @ v[:, head])
    x_TD = x_TD + linear(np.concatenate(heads, -1), w, f"{name}.attn.proj")
    hidden = gelu(linear(norm(x_TD, w, f"{name}.norm2"), w, f"{name}.mlp.fc1"))
    return x_TD + linear(hidden, w, f"{name}.mlp.fc2")


def reference_loss(model: MaskedAutoencoder, image_HW: np.ndarray) -> float:
    """One image, no slots and no masks: what is not there is left out."""
    w = to_numpy(model)
    pixels = {
        place: image_HW[place // GRID * P :, place % GRID * P :][:P, :P].ravel() for place in range(GRID**2)
    }
    shown = [place for place in pixels if np.ptp(pixels[place]) > 2**-11]
    shown.sort(key=lambda place: w["fixed_noise"][place])
    num_visible = min(max(1, round(model.visible * len(shown))), len(shown) - 1)
    visible, hidden = shown[:num_visible], shown[num_visible:]
    num_prefix = model.encoder.settings.num_prefix_tokens
    prefix = [w["encoder.cls_token"][0], *([w["encoder.reg_token"][0]] if num_prefix > 1 else [])]
    tokens = [*(np.concatenate(prefix) + w["encoder.pos_embed"][0, :num_prefix])]
    tokens += [
        linear(pixels[place], w, "encoder.patch_embed.proj") + w["encoder.pos_embed"][0, place + num_prefix]
        for place in visible
    ]
    x = np.stack(tokens)
    for layer in range(MODEL.depth):
        x = run_block(x, w, f"encoder.blocks.{layer}", MODEL.num_heads)
    x = np.delete(x, range(1, num_prefix), axis=0)  # registers
    y = linear(norm(x, w, "encoder.norm"), w, "decoder.embed")
    y = np.concatenate([y, np.tile(w["decoder.mask_token"], (len(hidden), 1))])
    y = run_block(y + w["decoder.positions"][[0, *(place + 1 for place in shown)]], w, "decoder.blocks.0", 1)
    predicted = linear(norm(y, w, "decoder.norm"), w, "decoder.pred")[1 + num_visible :]
    targets = np.stack([pixels[place] for place in hidden])
    targets = (targets - targets.mean(1, keepdims=True)) / np.sqrt(targets.var(1, keepdims=True) + 1e-6)
    return float(((predicted - targets) ** 2).mean(1).mean())


@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
@pytest.mark.parametrize(("kept_patches", "num_registers"), [(0, 0), (12, 0), (12, 3)])
def test_the_loss_is_that_of_an_independent_implementation(
    attention: str, kept_patches: int, num_registers: int
) -> None:
    model = make_model(attention=attention, kept_patches=kept_patches, register_tokens=num_registers)
    images = make_images([12, 7, 5, 2])
    expected = [reference_loss(model, image[0].numpy()) for image in images]
    assert model(images).detach().numpy()[:, 0] == pytest.approx(expected, rel=1e-10)


def test_an_image_of_nothing_has_no_loss_and_one_of_a_single_patch_has_it_hidden() -> None:
    model, images = make_model(), make_images([0, 1])
    assert model(images)[0] == 0
    assert model(images)[1] > 0
    assert model.choose(images).is_visible.sum() == 0
    assert model.choose(images).is_hidden.sum(dim=1).tolist() == [0, 1]
    assert model.describe(images)[0].tolist() == [0.0] * MODEL.width


# What is shown


@given(num_shown=st.integers(0, 4096), visible=st.floats(0.01, 0.99))
def test_a_share_is_visible_and_something_is_left_to_predict(num_shown: int, visible: float) -> None:
    count = int(count_visible(torch.tensor(num_shown), visible))
    assert 0 <= count <= max(0, num_shown - 1)
    assert abs(count - visible * num_shown) <= 1.0 or num_shown < 2
    assert count <= int(count_visible(torch.tensor(num_shown + 1), visible))


def test_the_encoder_sees_neither_background_nor_hidden_patches() -> None:
    model, images = make_model(), make_images([10, 6])
    patches = model.choose(images)
    tokens = model.encode(patches, model.num_visible)
    seen = torch.nn.functional.pad(patches.is_visible[:, : model.num_visible], (1, 0), value=True)
    changed = images.clone()
    for row in range(len(images)):
        for place in range(GRID**2):
            y, x = place // GRID * P, place % GRID * P
            slot = patches.places[row].tolist().index(place)
            if patches.is_hidden[row, slot]:
                changed[row, 0, y : y + P, x : x + P] *= 3.0
            elif not patches.is_visible[row, slot]:
                changed[row, 0, y : y + P, x : x + P] = 1.5  # flat, and so still background
    again = model.choose(changed)
    assert torch.equal(again.places * again.is_visible, patches.places * patches.is_visible)
    assert torch.equal(model.encode(again, model.num_visible)[seen], tokens[seen])
    assert not torch.equal(model(changed), model(images))


def test_background_is_not_scored() -> None:
    model, images = make_model(), make_images([10, 6])
    other = torch.where(images == -2.0, 1.0, images)
    assert torch.equal(model(other), model(images))


def test_masks_are_drawn_anew_in_training_and_stay_in_evaluation() -> None:
    model, images = make_model(), make_images([10, 6])
    assert torch.equal(model(images), model(images))
    assert torch.equal(model(images.flip(0)).flip(0), model(images))
    model.train()
    torch.manual_seed(1)
    first, second = model(images), model(images)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(model(images), first)


@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
def test_a_token_that_is_no_key_is_as_good_as_absent(attention: str) -> None:
    torch.manual_seed(0)
    block = Block(MODEL.model_copy(update={"attention": attention}), drop_path=0.0).double().eval()
    x_BTD = torch.randn(2, 9, MODEL.width, dtype=torch.float64)
    is_key_BT = torch.ones(2, 9, dtype=torch.bool)
    is_key_BT[:, [3, 8]] = False
    kept = [0, 1, 2, 4, 5, 6, 7]
    torch.testing.assert_close(block(x_BTD, is_key_BT)[:, kept], block(x_BTD[:, kept]), rtol=0, atol=1e-13)
    torch.testing.assert_close(block(x_BTD, torch.ones_like(is_key_BT)), block(x_BTD), rtol=0, atol=1e-13)


def test_the_encoder_is_the_transformer_itself() -> None:
    """With nothing hidden its tokens are those that a classifier with the same weights pools."""
    model, images = make_model(kept_patches=10), make_images([10, 10])
    classifier = VisionTransformer(model.encoder.settings).double().eval()
    classifier.load_state_dict(model.encoder.state_dict())
    patches = model.choose(images, all_visible=True)
    cls = model.encode(patches, model.num_slots)[:, 0]
    torch.testing.assert_close(cls, classifier.pool(classifier.forward_features(images)))
    expected = classifier.forward_features(images)[:, 1:].mean(dim=1)
    torch.testing.assert_close(model.describe(images), expected)


def test_it_learns_what_hidden_patches_hold() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(MODEL, SETTINGS)
    waves = torch.arange(GRID * P).float()
    images = torch.stack(
        [torch.outer(torch.ones(GRID * P), (waves * 0.4 + phase).sin())[None] for phase in torch.rand(16) * 6]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model.eval()(images).mean().item()
    model.train()
    for _ in range(120):
        optimizer.zero_grad()
        model(images).mean().backward()
        optimizer.step()
    assert model.eval()(images).mean().item() < 0.5 * first


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for again in (False, True):
        model = make_model(gradient_checkpointing=again).train()
        torch.manual_seed(1)
        model(make_images([10, 6])).mean().backward()
        gradients.append(
            {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-12)
    assert {name for name, _ in model.named_parameters()} - gradients[0].keys() == {
        "encoder.head.weight",
        "encoder.head.bias",
    }


def test_it_compiles_to_one_graph() -> None:
    """However many patches show something."""
    counter = CompileCounter()
    model = make_model()
    compiled = torch.compile(model, backend=counter, dynamic=False, fullgraph=True)
    for num_shown in ([10, 6], [16, 0]):
        images = make_images(num_shown)
        torch.testing.assert_close(compiled(images), model(images))
    assert counter.frame_count == 1
