"""What the model attends to, against formulas written out in numpy, finite differences and known answers."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from pipeline.models.attention import (
    ATTENTION_COLUMNS,
    find_distances,
    find_even_distance,
    find_maps,
    find_patch_distances,
    find_patch_filters,
    find_position_similarity,
    measure_attention,
    observe_attention,
    step_rollout,
)
from pipeline.models.vit import VisionTransformer
from pipeline.runs.recipe import ModelSettings

SETTINGS = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 3, "num_heads": 2, "num_classes": 2}
GRID = 4
MAPS = ("last_layer", "rollout", "gradient_rollout")


def make_model(seed: int = 0, **changes: Any) -> VisionTransformer:
    """A model in float64 whose weights are large enough to attend to one thing more than to another."""
    torch.manual_seed(seed)
    model = VisionTransformer(ModelSettings(**(SETTINGS | changes))).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def make_images(num_images: int = 2, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_images, channels, 32, 32, generator=generator, dtype=torch.float64)


def all_distances(grid: int, patch_size: int) -> Tensor:
    """Of each two patches of a grid, in pixels."""
    settings = ModelSettings(image_size=grid * patch_size, patch_size=patch_size)
    return find_patch_distances(torch.arange(grid**2).unsqueeze(0), settings)


def observe(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    weights: list[Tensor] = []
    with observe_attention(model, weights.append), torch.no_grad():
        model(images)
    return weights


def to_map(row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return row[:, -(GRID**2) :].reshape(-1, GRID, GRID)


def seen_tokens(pool: str, num_registers: int = 0) -> np.ndarray[Any, Any]:
    seen = np.zeros(1 + num_registers + GRID**2)
    seen[0 if pool == "cls" else slice(-(GRID**2), None)] = 1 if pool == "cls" else 1 / GRID**2
    return seen


# Observing


@pytest.mark.parametrize("kind", ["sdpa", "explicit"])
def test_the_weights_are_softmax_of_queries_and_keys(kind: str) -> None:
    """Equation 6, written out for the first layer."""
    model, images = make_model(attention=kind), make_images()
    tokens, _ = model.patch_embed(images)
    x = torch.cat([model.cls_token.expand(2, -1, -1), tokens], dim=1) + model.pos_embed
    first = model.blocks[0]
    query, key, _ = np.split(first.attn.qkv(first.norm1(x)).detach().numpy(), 3, axis=2)
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        scores = query[:, :, part] @ key[:, :, part].transpose(0, 2, 1) / np.sqrt(8)
        expected = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
        np.testing.assert_allclose(observe(model, images)[0][:, head].numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_is_left_as_it_was_even_after_an_error(is_training: bool) -> None:
    model = make_model(attention="sdpa", dropout=0.5).train(is_training)
    model.blocks[1].eval()  # as somebody who freezes a layer does
    modes = [module.training for module in model.modules()]

    def fail(weights: Tensor) -> None:
        assert not any(module.training for module in model.modules())
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"), observe_attention(model, fail):
        model(make_images())
    find_maps(model, make_images())
    assert [module.training for module in model.modules()] == modes
    assert {block.attn.kind for block in model.blocks} == {"sdpa"}
    assert not any(block.attn.softmax._forward_hooks or block._forward_pre_hooks for block in model.blocks)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_settings_for_training_change_no_map() -> None:
    """Dropout, stochastic depth, recomputation and the kernel: the picture of a model is one picture."""
    plain = make_model(attention="explicit")
    changes = {"attention": "sdpa", "dropout": 0.5, "drop_path": 0.5, "gradient_checkpointing": True}
    other = make_model(**changes).train()
    other.load_state_dict(plain.state_dict())
    expected, found = find_maps(plain, make_images()), find_maps(other, make_images())
    for name in MAPS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    distances = [measure_attention(model, make_images())["distance_px"] for model in (plain, other)]
    np.testing.assert_allclose(*distances)


def test_maps_can_be_made_where_gradients_are_off() -> None:
    model = make_model().requires_grad_(requires_grad=False)
    with torch.no_grad():
        maps = find_maps(model, make_images())
    assert maps.gradient_rollout.sum() > 0
    assert not any(getattr(maps, name).requires_grad for name in MAPS)


# Maps


@pytest.mark.parametrize("pool", ["cls", "gap"])
@pytest.mark.parametrize("num_registers", [0, 3])
def test_last_layer_and_rollout_follow_their_formulas(pool: str, num_registers: int) -> None:
    """The rollout as a product of whole matrices, first layer rightmost."""
    model, images = make_model(pool=pool, register_tokens=num_registers), make_images()
    heads_mean = [weights.mean(dim=1).numpy() for weights in observe(model, images)]
    product = itself = np.eye(model.num_tokens)
    for weights in heads_mean:
        product = (0.5 * weights + 0.5 * itself) @ product
    maps, seen = find_maps(model, images), seen_tokens(pool, num_registers)
    np.testing.assert_allclose(maps.last_layer.numpy(), to_map(seen @ heads_mean[-1]))
    np.testing.assert_allclose(maps.rollout.numpy(), to_map(seen @ product))


@pytest.mark.parametrize("pool", ["cls", "gap"])
@pytest.mark.parametrize(("output", "num_registers"), [(0, 0), (1, 0), (0, 3)])
def test_the_gradient_rollout_follows_its_formula(pool: str, output: int, num_registers: int) -> None:
    """With one backward pass through the whole graph, which keeps all layers' weights."""
    model = make_model(pool=pool, head="mlp", register_tokens=num_registers, qk_norm=num_registers > 0)
    images = make_images()
    weights: list[Tensor] = []
    with observe_attention(model, weights.append):
        logits = model(images)
    gradients = torch.autograd.grad(logits[:, output].sum(), weights)
    relevance = np.eye(model.num_tokens)
    for A, dA in zip(weights, gradients, strict=True):
        relevant = (dA * A).clamp(min=0).mean(dim=1).detach().numpy()
        relevance = relevance + relevant @ relevance
    expected = to_map(seen_tokens(pool, num_registers) @ relevance)
    found = find_maps(model, images, output=output).gradient_rollout.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


def test_the_gradient_is_how_the_logit_changes_with_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences: one weight of one layer is nudged, and the model asked again."""
    model, images = make_model().eval(), make_images(1)
    steps: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(
        "pipeline.models.attention.step_gradient_rollout", lambda row, A, dA: (steps.append((A, dA)), row)[1]
    )
    find_maps(model, images)
    for block in model.blocks:
        block.attn.kind = "explicit"
    for layer, (_, dA) in enumerate(reversed(steps)):
        for place_of_weight in ((0, 0, 0, 5), (0, 1, 3, 0), (0, 0, 16, 16)):
            logits = []
            for nudge in (1e-5, -1e-5):
                shift = torch.zeros_like(dA)
                shift[place_of_weight] = nudge
                handle = model.blocks[layer].attn.softmax.register_forward_hook(
                    lambda _module, _inputs, A, shift=shift: A + shift
                )
                logits.append(float(model(images)[0, 0].detach()))
                handle.remove()
            assert (logits[0] - logits[1]) / 2e-5 == pytest.approx(float(dA[place_of_weight]), rel=1e-5)


def test_attention_to_everything_alike_gives_even_maps() -> None:
    model = make_model()
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight[:32])  # queries and keys
        torch.nn.init.zeros_(block.attn.qkv.bias[:32])
    maps, num_tokens = find_maps(model, make_images()), GRID**2 + 1
    torch.testing.assert_close(maps.last_layer, torch.full_like(maps.last_layer, 1 / num_tokens))
    even = (1 - 0.5**3) / num_tokens  # after three layers an eighth has never left the class token
    torch.testing.assert_close(maps.rollout, torch.full_like(maps.rollout, even))


def test_attention_of_each_token_to_itself_moves_nothing() -> None:
    row = torch.rand(2, 17, dtype=torch.float64)
    itself = torch.eye(17, dtype=torch.float64).expand(2, 3, -1, -1)
    torch.testing.assert_close(step_rollout(row, itself), row)


def test_an_image_has_the_same_maps_alone_and_in_a_batch() -> None:
    model, images = make_model(), make_images(3)
    together, alone = find_maps(model, images), find_maps(model, images[1:2])
    for name in MAPS:
        torch.testing.assert_close(getattr(together, name)[1:2], getattr(alone, name))


@pytest.mark.parametrize("pool", ["cls", "gap"])
@pytest.mark.parametrize("num_registers", [0, 4])
def test_patches_that_are_not_kept_weigh_nothing_and_the_others_lie_in_their_places(
    pool: str, num_registers: int
) -> None:
    model = make_model(kept_patches=5, pool=pool, register_tokens=num_registers)
    images = make_images() * 0.01
    for place in range(5):  # along a diagonal of the first image, backwards in the second
        row, column = divmod(3 * place + 1, 4)
        images[0, :, 8 * row, 8 * column] = 3.0 + place
        images[1, :, 8 * (3 - row), 8 * (3 - column)] = 3.0 + place
    expected = torch.zeros(2, 16, dtype=torch.bool)
    expected[0, [1, 4, 7, 10, 13]] = True
    expected[1, [14, 11, 8, 5, 2]] = True
    maps = find_maps(model, images)
    for name in ("last_layer", "rollout"):
        assert torch.equal(getattr(maps, name).flatten(1) > 0, expected), name
    torch.testing.assert_close(maps.logits, model(images))


def test_distances_of_kept_patches_are_those_of_their_places() -> None:
    places = torch.tensor([[0, 3, 12], [5, 6, 15]])
    distance = find_patch_distances(places, ModelSettings(image_size=32, patch_size=8))
    expected = 8 * np.array([[0, 3, 3], [3, 0, np.hypot(3, 3)], [3, np.hypot(3, 3), 0]])
    np.testing.assert_allclose(distance[0].numpy(), expected)
    assert distance[1, 0, 2].item() == pytest.approx(8 * np.hypot(2, 2))


# Distance, positions, filters


def test_a_head_that_looks_everywhere_has_the_mean_distance_of_two_patches() -> None:
    """By two loops over the patches."""
    places = [(row, column) for row in range(5) for column in range(5)]
    mean = np.mean([np.hypot(a - c, b - d) for a, b in places for c, d in places])
    even = torch.full((2, 3, 26, 26), 1 / 26, dtype=torch.float64)
    expected = torch.full((3,), 16 * mean, dtype=torch.float64)
    torch.testing.assert_close(find_distances(even, all_distances(5, 16)), expected)
    assert find_even_distance(5, 16) == pytest.approx(16 * mean)


def test_the_distance_is_counted_in_pixels_among_patches_only() -> None:
    """Half of the attention goes to the class token, the rest to the right-hand neighbour in a ring of 4."""
    ring = torch.zeros(1, 1, 17, 17, dtype=torch.float64)
    ring[0, 0, :, 0] = 0.5
    for patch in range(16):
        neighbour = patch - 3 if patch % 4 == 3 else patch + 1
        ring[0, 0, 1 + patch, 1 + neighbour] = 0.5
    ring[0, 0, 0, 1:] = 0.5 / 16
    assert find_distances(ring, all_distances(4, 8)).item() == pytest.approx(8 * (1 + 1 + 1 + 3) / 4)
    itself = torch.eye(17, dtype=torch.float64).expand(1, 1, -1, -1)
    assert find_distances(itself, all_distances(4, 8)).item() == 0.0


def test_what_registers_see_and_are_seen_by_is_no_distance() -> None:
    """Half of each patch's attention goes to four registers, which look at one far patch."""
    patches = torch.rand(1, 2, 16, 16, dtype=torch.float64)
    with_registers = torch.zeros(1, 2, 21, 21, dtype=torch.float64)
    with_registers[..., 5:, 5:], with_registers[..., 5:, 1:5] = patches, 1.0
    with_registers[..., :5, 20] = 1.0
    with_class_token = torch.nn.functional.pad(patches, (1, 0, 1, 0))
    expected = find_distances(with_class_token, all_distances(4, 8))
    torch.testing.assert_close(find_distances(with_registers, all_distances(4, 8)), expected)


@pytest.mark.parametrize("num_registers", [0, 2])
def test_the_table_of_distances_has_a_row_per_head_and_the_mean_of_the_images(num_registers: int) -> None:
    model, images = make_model(register_tokens=num_registers), make_images(3)
    table = measure_attention(model, images)
    assert list(table) == ATTENTION_COLUMNS
    assert list(zip(table["layer"], table["head"], strict=True)) == [
        (layer, head) for layer in (1, 2, 3) for head in (1, 2)
    ]
    expected = torch.cat([find_distances(weights, all_distances(4, 8)) for weights in observe(model, images)])
    np.testing.assert_allclose(table["distance_px"], expected.numpy(), atol=6e-4)
    assert table["distance_px"].nunique() == 6


@pytest.mark.parametrize("num_registers", [0, 3])
def test_position_similarity_is_the_cosine_of_two_embeddings(num_registers: int) -> None:
    model = make_model(register_tokens=num_registers)
    similarity = find_position_similarity(model)
    assert similarity.shape == (GRID, GRID, GRID, GRID)
    embeddings = model.pos_embed.detach().numpy()[0, 1 + num_registers :].reshape(GRID, GRID, -1)
    a, b = embeddings[1, 2], embeddings[3, 0]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert similarity[1, 2, 3, 0] == pytest.approx(cosine)
    np.testing.assert_allclose(np.einsum("ijij->ij", similarity), 1.0)


def test_fixed_waves_are_most_like_their_neighbours() -> None:
    similarity = find_position_similarity(make_plain(pos_embed="sincos2d"))
    assert similarity[1, 1, 1, 2] > similarity[1, 1, 1, 3]
    assert similarity[1, 1, 2, 2] > similarity[1, 1, 3, 3]


def make_plain(**changes: Any) -> VisionTransformer:
    return VisionTransformer(ModelSettings(**(SETTINGS | changes)))


@pytest.mark.parametrize("channels", [1, 3])
def test_patch_filters_are_the_principal_components(channels: int) -> None:
    """scikit-learn's, up to the sign."""
    model = make_model(in_channels=channels, width=64)
    filters = find_patch_filters(model)
    assert filters.shape == (28, channels, 8, 8)
    flat = filters.reshape(28, -1)
    weights = model.patch_embed.proj.weight.detach().numpy().reshape(64, -1)
    expected = PCA(28, svd_solver="full").fit(weights).components_
    np.testing.assert_allclose(np.abs((flat * expected).sum(axis=1)), 1.0)
    assert (flat.max(axis=1) == np.abs(flat).max(axis=1)).all()


def test_a_narrow_model_has_as_many_filters_as_it_can_tell_apart() -> None:
    filters = find_patch_filters(make_model(width=8)).reshape(7, -1)
    np.testing.assert_allclose(filters @ filters.T, np.eye(7), atol=1e-12)


# Back to the file's pixels


# Phantoms
