"""Which images a breast's token attends to: shares that add up, and nothing that is not there."""

import torch

from pipeline.models.breast_attention import find_breast_attention
from pipeline.models.breast_transformer import BreastInputs
from tests.pipeline.models.test_breast_transformer import draw_images, make, make_places


def test_shares_and_maps_add_up_and_empty_slots_have_none() -> None:
    model, images = make(fusion="exam"), draw_images(3)
    places = make_places([(0, 0, 0), (1, 1, 0), (2, 0, 1)], [(1, 1, 0)])
    found = find_breast_attention(model, BreastInputs(images, places))
    torch.testing.assert_close(found.shares.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(found.maps.sum(dim=(2, 3)), found.shares)
    assert found.shares[1, 1:].tolist() == [0, 0]
    assert (found.shares[0] > 0).all()
    assert [block.attn.kind for block in model.fusion.blocks] == ["auto", "auto"]


def test_an_image_that_the_token_looks_at_has_the_larger_share() -> None:
    """Keys that grow with a view's embedding: what is seen as CC outweighs what is seen as MLO."""
    model, images = make(), draw_images(1).expand(2, -1, -1, -1)
    with torch.no_grad():
        model.fusion.view_embed[0] = 0.0
        model.fusion.view_embed[1] = 0.0
        model.fusion.view_embed[0, 0] = 30.0
        for block in model.fusion.blocks:
            width = model.settings.width
            block.attn.qkv.weight.zero_()
            block.attn.qkv.weight[width, 0] = 3.0  # the first key is the first channel
            block.attn.qkv.bias[0] = 3.0  # and every query asks for it
    inputs = BreastInputs(images, make_places([(0, 0, 0), (1, 1, 0)]))
    shares = find_breast_attention(model, inputs).shares[0]
    assert shares[0] > 0.7
