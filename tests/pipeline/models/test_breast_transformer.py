"""A breast's logit: whatever the order of its images, the slots that are empty, and the other breasts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.breast_transformer import (
    EMPTY,
    OTHER_BREAST,
    BreastInputs,
    BreastTransformer,
    Places,
    make_model,
)
from pipeline.models.patches import choose_patches, cut_into_patches
from pipeline.models.vit import VisionTransformer
from pipeline.runs.recipe import ModelSettings

TOLERANCE = 1e-6
SETTINGS = {
    "image_size": 32,
    "patch_size": 8,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "fusion": "views",
    "fusion_patches": 4,
}


def make(**changes) -> BreastTransformer:
    """A model whose heads say something."""
    torch.manual_seed(0)
    model = make_model(ModelSettings(**SETTINGS | changes))
    assert isinstance(model, BreastTransformer)
    for head in (model.encoder.head, model.fusion.head):
        torch.nn.init.normal_(head.weight, std=0.1)
    return model.eval()


def draw_images(count: int, seed=0) -> torch.Tensor:
    return torch.randn((count, 1, 32, 32), generator=torch.Generator().manual_seed(seed))


def make_places(*breasts: list[tuple[int, int, int]], num_slots: int | None = None) -> Places:
    """Of each breast's (image, view, side)."""
    num_slots = num_slots or max(map(len, breasts))
    rows = [[*slots, *(num_slots - len(slots)) * [(EMPTY, 0, 0)]] for slots in breasts]
    return Places(*torch.tensor(rows).permute(2, 0, 1))


@torch.no_grad()
def ask(model: BreastTransformer, images: torch.Tensor, places: Places) -> torch.Tensor:
    return model(BreastInputs(images, places)).breasts


slots = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=5)


@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
@pytest.mark.parametrize("changes", [{}, {"kept_patches": 6}, {"pool": "gap", "fusion": "exam"}])
@given(views=slots, data=st.data())
def test_neither_the_order_of_images_nor_that_of_slots_nor_empty_slots_change_a_breast(
    attention: str, changes: dict, views: list[tuple[int, int]], data: st.DataObject
) -> None:
    model = make(attention=attention, **changes)
    views[0] = (views[0][0], 0)  # one is the breast's own
    images = draw_images(len(views) + 1)
    plain = ask(model, images, make_places([(n, *view) for n, view in enumerate(views)]))
    order = data.draw(st.permutations(range(len(images))))
    moved = [(order.index(n), *view) for n, view in enumerate(views)]
    moved = data.draw(st.permutations(moved))
    with_empty = [*moved, (EMPTY, 0, 0), (EMPTY, 0, 0)]
    places = make_places(data.draw(st.permutations(with_empty)), [(0, 0, 0)])
    torch.testing.assert_close(ask(model, images[order], places)[:1], plain, atol=TOLERANCE, rtol=0)


def test_an_image_that_a_breast_does_not_have_changes_nothing_and_one_that_it_has_does() -> None:
    model, images = make(), draw_images(3)
    others = torch.cat([images[:2], draw_images(1, seed=9)])
    both = make_places([(0, 0, 0), (1, 1, 0)], [(2, 0, 0)])
    ours, theirs = ask(model, images, both), ask(model, others, both)
    torch.testing.assert_close(ours[0], theirs[0], atol=TOLERANCE, rtol=0)
    assert abs(ours[1] - theirs[1]) > 1e-3


@pytest.mark.parametrize("changed", [(0, 2, 0), (0, 0, OTHER_BREAST)])
def test_view_and_side_of_an_image_count(changed: tuple[int, int, int]) -> None:
    model, images = make(fusion="exam"), draw_images(2)
    before, after = (make_places([slot, (1, 1, 0)]) for slot in ((0, 0, 0), changed))
    assert abs(ask(model, images, before) - ask(model, images, after)) > 1e-5


def test_images_by_themselves_are_what_the_encoder_says() -> None:
    model, images = make(fusion="exam"), draw_images(4)
    places = make_places([(0, 0, 0), (1, 1, 0), (2, 0, 1)], [(3, 0, 0)])
    with torch.no_grad():
        alone = model.encoder(images)[:, 0]
        torch.testing.assert_close(model(BreastInputs(images, places)).images[:, 0], alone)


@pytest.mark.parametrize("kept", [0, 6])
@pytest.mark.parametrize("registers", [0, 2])
def test_the_chosen_tokens_are_those_of_the_patches_of_largest_contrast(kept: int, registers: int) -> None:
    """The patches' own positions tell them apart: a model of no layers leaves each token as it was."""
    model, images = make(kept_patches=kept, register_tokens=registers), draw_images(2)
    pixels = cut_into_patches(images, 8)
    expected = choose_patches(pixels, 4)
    patches, places = model.encoder.patch_embed(images)
    chosen = model.choose_tokens(images)
    found = chosen if places is None else places.gather(1, chosen)
    assert found.equal(expected)
    x_NTD = torch.cat([torch.zeros(2, 1 + registers, 16), patches], dim=1)
    picked = model.pick_tokens(images, x_NTD, x_NTD[:, 0])[:, 1:]
    assert picked.equal(patches.gather(1, chosen[..., None].expand(-1, -1, 16)))


def test_gradients_reach_every_parameter_and_are_finite() -> None:
    model, images = make(fusion="exam").train(), draw_images(4)
    places = make_places([(0, 0, 0), (1, 1, 0), (2, 0, 1)], [(3, 2, 0)])
    logits = model(BreastInputs(images, places))
    (logits.breasts.sum() + logits.images.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or "qkv.bias" in name, name


def test_each_image_gets_the_value_of_the_breast_that_owns_it() -> None:
    places = make_places([(2, 0, 0), (0, 1, 0), (1, 0, 1)], [(1, 0, 0), (0, 0, 1)])
    assert places.spread(torch.tensor([5.0, 7.0]), 3).tolist() == [5, 7, 5]


def test_without_fusion_it_is_the_vision_transformer() -> None:
    assert type(make_model(ModelSettings(**SETTINGS | {"fusion": "none"}))) is VisionTransformer
