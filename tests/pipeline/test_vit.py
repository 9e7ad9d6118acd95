"""The Vision Transformer: timm's has the same weights and gives the same logits."""

import pytest
import torch

from pipeline.torchvision_compat import allow_torchvision_import
from pipeline.vit import VisionTransformer

allow_torchvision_import()

from timm.models.vision_transformer import VisionTransformer as TimmTransformer  # noqa: E402

SHAPES = {
    "small": {"image_size": 32, "patch_size": 8, "width": 24, "depth": 3, "num_heads": 3},
    "one patch": {"image_size": 16, "patch_size": 16, "width": 8, "depth": 1, "num_heads": 1},
    "narrow mlp": {
        "image_size": 24,
        "patch_size": 8,
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.5,
    },
    "512 px": {"image_size": 512, "patch_size": 16, "width": 48, "depth": 2, "num_heads": 3},
}


def make_pair(**shape) -> tuple[VisionTransformer, TimmTransformer]:
    """Our model and timm's, neither with weights of the other."""
    torch.manual_seed(0)
    theirs = TimmTransformer(
        img_size=shape["image_size"],
        patch_size=shape["patch_size"],
        in_chans=shape.get("in_channels", 1),
        num_classes=shape.get("num_classes", 1),
        embed_dim=shape["width"],
        depth=shape["depth"],
        num_heads=shape["num_heads"],
        mlp_ratio=shape.get("mlp_ratio", 4.0),
    )
    return VisionTransformer(ModelSettings(**shape)).eval(), theirs.eval()


def scatter_weights(model: torch.nn.Module) -> None:
    """Draws all weights far from their first values, so that no term is hidden by a zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


@torch.inference_mode()
def assert_same_logits(ours: VisionTransformer, theirs: TimmTransformer, *, channels=1) -> None:
    """To 1e-5 of the largest logit."""
    size = ours.patch_embed.image_size
    images_BCHW = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(2))
    expected, actual = theirs(images_BCHW), ours(images_BCHW)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert expected.std() > 1e-3  # the images do make a difference


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_with_timms_weights_it_gives_timms_logits(shape: dict) -> None:
    ours, theirs = make_pair(**shape)
    scatter_weights(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_logits(ours, theirs)


def test_timm_takes_its_weights_too() -> None:
    ours, theirs = make_pair(**SHAPES["small"])
    scatter_weights(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_same_logits(ours, theirs)


def test_other_numbers_of_channels_and_classes_agree_with_timm() -> None:
    ours, theirs = make_pair(**SHAPES["small"], in_channels=3, num_classes=5)
    scatter_weights(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_logits(ours, theirs, channels=3)


def test_gradients_are_timms() -> None:
    ours, theirs = make_pair(**SHAPES["small"])
    scatter_weights(theirs)
    ours.load_state_dict(theirs.state_dict())
    images_BCHW = torch.randn(2, 1, 32, 32)
    for model in (ours, theirs):
        model(images_BCHW).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = expected[name].grad.abs().max()
        assert torch.allclose(parameter.grad, expected[name].grad, rtol=0, atol=1e-4 * scale), name


def test_512_px_in_patches_of_16_are_1025_tokens() -> None:
    with torch.device("meta"):
        model = VisionTransformer(image_size=512, patch_size=16, depth=1)
        tokens_BTD = model.forward_features(torch.empty(2, 1, 512, 512))
    assert model.num_tokens == 1025
    assert tokens_BTD.shape == (2, 1025, 384)


def test_vit_b16_at_512_px_has_the_known_number_of_parameters() -> None:
    with torch.device("meta"):
        model = VisionTransformer(image_size=512, patch_size=16, width=768, depth=12, num_heads=12)
    assert sum(parameter.numel() for parameter in model.parameters()) == 86_042_113


def test_every_image_starts_with_the_logit_of_the_heads_bias() -> None:
    model = VisionTransformer(**SHAPES["small"])
    torch.nn.init.constant_(model.head.bias, -1.5)
    assert torch.equal(model(torch.randn(4, 1, 32, 32)), torch.full((4, 1), -1.5))


def test_each_image_of_a_batch_is_judged_by_itself() -> None:
    model, _ = make_pair(**SHAPES["small"])
    scatter_weights(model)
    images_BCHW = torch.randn(4, 1, 32, 32)
    together = model(images_BCHW)
    alone = torch.cat([model(image_1CHW) for image_1CHW in images_BCHW.split(1)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_position_of_a_patch_matters() -> None:
    model, _ = make_pair(**SHAPES["small"])
    scatter_weights(model)
    images_BCHW = torch.randn(1, 1, 32, 32)
    assert not torch.allclose(model(images_BCHW), model(images_BCHW.roll(8, dims=2)), atol=1e-3)


@pytest.mark.parametrize("size", [(1, 32, 40), (1, 64, 64), (3, 32, 32)], ids=str)
def test_images_of_another_size_or_number_of_channels_are_refused(size: tuple[int, int, int]) -> None:
    model = VisionTransformer(**SHAPES["small"])
    with pytest.raises(ValueError, match=r"images are \(.*\), the model takes \(1, 32, 32\)"):
        model(torch.zeros(2, *size))


def test_patches_must_fill_the_image_and_heads_the_width() -> None:
    with pytest.raises(ValueError, match="image_size 100 must be a multiple of patch_size 16"):
        VisionTransformer(image_size=100, patch_size=16)
    with pytest.raises(ValueError, match="width 64 must be a multiple of num_heads 6"):
        VisionTransformer(width=64, num_heads=6)
