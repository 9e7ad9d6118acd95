"""The Vision Transformer: the paper's equations, timm's weights, and every setting."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import erf, softmax
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from pipeline.models.patches import choose_patches, cut_into_patches
from pipeline.models.vit import DropPath, VisionTransformer, make_sincos2d, make_variant
from pipeline.runs.recipe import ModelSettings
from pipeline.runtime.torchvision_compat import allow_torchvision_import

allow_torchvision_import()

import timm  # noqa: E402
from timm.models.vision_transformer import VisionTransformer as TimmTransformer  # noqa: E402

SMALL = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 3, "num_heads": 3}
SHAPES = {
    "small": SMALL,
    "one patch": {"image_size": 16, "patch_size": 16, "width": 8, "depth": 1, "num_heads": 1},
    "narrow mlp": SMALL | {"mlp_ratio": 2.5},
    "colour, 5 classes": SMALL | {"in_channels": 3, "num_classes": 5},
    "no qkv bias": SMALL | {"qkv_bias": False},
    "mean of patches": SMALL | {"pool": "gap"},
    "layer scale": SMALL | {"layer_scale": 0.1},
    "registers": SMALL | {"register_tokens": 2},
    "registers, mean of patches": SMALL | {"register_tokens": 4, "pool": "gap"},
    "qk norm": SMALL | {"qk_norm": True},
    "explicit": SMALL | {"attention": "explicit"},
    "checkpointed": SMALL | {"gradient_checkpointing": True},
    "dropout": SMALL | {"dropout": 0.2, "drop_path": 0.3},
    "all": SMALL
    | {
        "pool": "gap",
        "qkv_bias": False,
        "layer_scale": 0.1,
        "register_tokens": 3,
        "qk_norm": True,
        "dropout": 0.2,
        "drop_path": 0.3,
        "num_classes": 3,
    },
    "512 px": {"image_size": 512, "patch_size": 16, "width": 48, "depth": 2, "num_heads": 3},
}
CHANGES = {
    "qkv_bias": False,
    "attention": "explicit",
    "pool": "gap",
    "head": "mlp",
    "pos_embed": "sincos2d",
    "dropout": 0.1,
    "drop_path": 0.3,
    "layer_scale": 0.1,
    "gradient_checkpointing": True,
    "num_classes": 3,
    "kept_patches": 3,
    "register_tokens": 2,
    "qk_norm": True,
}
KINDS_OF_TIMMS = [("cls", True), ("cls", False), ("gap", True)]
"""Of pooling, and of biases in the attention."""
TIMM_NAMES = {
    "Ti/16": "vit_tiny_patch16_224",
    "S/16": "vit_small_patch16_224",
    "B/16": "vit_base_patch16_224",
}


def make(**settings) -> VisionTransformer:
    return VisionTransformer(ModelSettings(**settings))


def make_theirs(settings: ModelSettings) -> TimmTransformer:
    """timm's model of the same settings."""
    return TimmTransformer(
        img_size=settings.image_size,
        patch_size=settings.patch_size,
        in_chans=settings.in_channels,
        num_classes=settings.num_classes,
        global_pool="avg" if settings.pool == "gap" else "token",
        embed_dim=settings.width,
        depth=settings.depth,
        num_heads=settings.num_heads,
        mlp_ratio=settings.mlp_ratio,
        qkv_bias=settings.qkv_bias,
        init_values=settings.layer_scale or None,
        qk_norm=settings.qk_norm,
        reg_tokens=settings.register_tokens,
        pos_drop_rate=settings.dropout,
        proj_drop_rate=settings.dropout,
        drop_path_rate=settings.drop_path,
    )


@torch.no_grad()
def scatter_weights(model: torch.nn.Module) -> None:
    """Draws all weights so that no term is hidden by a zero and no softmax is saturated."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.add_(noise, alpha=0.1)
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)


def draw_images(model: VisionTransformer, count=3) -> Tensor:
    shape = (count, *model.patch_embed.image_shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def run(model: torch.nn.Module, images_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns logits and all gradients; dropout draws the same for every model."""
    torch.manual_seed(3)
    model.zero_grad()
    logits_BK = model(images_BCHW)
    logits_BK.square().sum().backward()
    return logits_BK.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(actual: Tensor, expected: Tensor, name: str = "") -> None:
    """To 1e-5 of the largest value of the tensor."""
    assert actual.shape == expected.shape, name
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def assert_same_run(ours: torch.nn.Module, theirs: torch.nn.Module, images_BCHW: Tensor) -> None:
    actual, expected = run(ours, images_BCHW), run(theirs, images_BCHW)
    assert_equal(actual[0], expected[0], "logits")
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert_equal(actual[1][name], gradient, name)
    if len(images_BCHW) > 1:
        assert expected[0].std(dim=0).min() > 1e-3  # the images do make a difference


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_and_gradients_are_timms_with_timms_weights(shape: dict) -> None:
    ours = make(**shape)
    theirs = make_theirs(ours.settings)
    scatter_weights(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_run(ours, theirs, draw_images(ours))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_features_are_timms_to_the_last_digits_in_float64(shape: dict) -> None:
    ours = make(**shape).eval().double()
    theirs = make_theirs(ours.settings).eval().double()
    scatter_weights(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images_BCHW = draw_images(ours).double()
    with torch.inference_mode():
        actual, expected = ours.forward_features(images_BCHW), theirs.forward_features(images_BCHW)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_timm_takes_the_weights_too(shape: dict) -> None:
    ours = make(**shape).eval()
    theirs = make_theirs(ours.settings).eval()
    scatter_weights(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images_BCHW = draw_images(ours)
    assert_equal(ours(images_BCHW), theirs(images_BCHW))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "image_size", "pool", "qkv_bias"),
    [("Ti/16", 512, "cls", True), ("S/16", 224, "cls", True), ("B/16", 224, "gap", False)]
    + [("Ti/16", 224, pool, qkv_bias) for pool, qkv_bias in KINDS_OF_TIMMS],
)
def test_published_sizes_are_timms(variant: str, image_size: int, pool: str, qkv_bias: bool) -> None:
    channels = 3 if image_size == 224 else 1
    ours = make_variant(
        variant, image_size=image_size, in_channels=channels, num_classes=2, pool=pool, qkv_bias=qkv_bias
    )
    theirs = timm.create_model(
        TIMM_NAMES[variant],
        img_size=image_size,
        in_chans=channels,
        num_classes=2,
        global_pool="avg" if pool == "gap" else "token",
        qkv_bias=qkv_bias,
    )
    scatter_weights(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_run(ours, theirs, draw_images(ours, count=1))


@pytest.mark.parametrize(
    ("variant", "num_parameters"),
    [
        ("Ti/16", 5_717_416),
        ("S/16", 22_050_664),
        ("B/16", 86_567_656),
        ("L/16", 304_326_632),
        ("H/14", 632_045_800),
    ],
)
def test_published_sizes_have_the_published_numbers_of_parameters(variant: str, num_parameters: int) -> None:
    with torch.device("meta"):
        model = make_variant(variant, image_size=224, in_channels=3, num_classes=1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_vit_b16_for_mammograms_has_the_known_number_of_parameters() -> None:
    with torch.device("meta"):
        model = make_variant("B/16")
    assert sum(parameter.numel() for parameter in model.parameters()) == 86_042_113


def test_512_px_in_patches_of_16_are_1025_tokens() -> None:
    with torch.device("meta"):
        model = make(depth=1)
        tokens_BTD = model.forward_features(torch.empty(2, 1, 512, 512))
    assert model.num_tokens == 1025
    assert tokens_BTD.shape == (2, 1025, 384)


@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
@pytest.mark.parametrize("pool", ["cls", "gap"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_it_computes_the_papers_equations(attention: str, pool: str, head: str) -> None:
    model = make(**SMALL, attention=attention, pool=pool, head=head, num_classes=4).double()
    scatter_weights(model)
    images_BCHW = draw_images(model).double()
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    expected = np.stack([compute_by_hand(image_HW, weights, pool) for image_HW in images_BCHW[:, 0].numpy()])
    np.testing.assert_allclose(model(images_BCHW).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def compute_by_hand(image: np.ndarray, weights: dict[str, np.ndarray], pool: str) -> np.ndarray:
    """Equations 1 to 8 for one image, patch by patch and head by head, in float64."""

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def layer_norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attend(x: np.ndarray, name: str) -> np.ndarray:
        heads = []
        for head in np.split(weights[f"{name}.qkv.weight"].reshape(3, 3, 8, 24), 3, axis=1):
            index = len(heads)
            bias = weights[f"{name}.qkv.bias"].reshape(3, 3, 8)[:, index]
            q, k, v = (x @ head[part, 0].T + bias[part] for part in range(3))  # eq. 5
            heads.append(softmax(q @ k.T / np.sqrt(8), axis=-1) @ v)  # eq. 6 and 7
        return linear(np.concatenate(heads, axis=1), f"{name}.proj")  # eq. 8

    patches = [
        image[row : row + 8, column : column + 8] for row in range(0, 32, 8) for column in range(0, 32, 8)
    ]
    kernels = weights["patch_embed.proj.weight"].reshape(24, 64)
    embedded = np.stack([kernels @ patch.ravel() for patch in patches]) + weights["patch_embed.proj.bias"]
    z = np.concatenate([weights["cls_token"][0], embedded]) + weights["pos_embed"][0]  # eq. 1
    for layer in range(3):
        name = f"blocks.{layer}"
        z = z + attend(layer_norm(z, f"{name}.norm1"), f"{name}.attn")  # eq. 2
        hidden = linear(layer_norm(z, f"{name}.norm2"), f"{name}.mlp.fc1")
        z = z + linear(hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))), f"{name}.mlp.fc2")  # eq. 3
    y = layer_norm(z[0], "norm") if pool == "cls" else layer_norm(z[1:].mean(axis=0), "fc_norm")  # eq. 4
    if "pre_logits.fc.weight" in weights:
        y = np.tanh(linear(y, "pre_logits.fc"))
    return linear(y, "head")


@pytest.mark.parametrize("shape", [SHAPES["small"], SHAPES["512 px"]], ids=["small", "512 px"])
def test_explicit_attention_equals_the_fused_kernel(shape: dict) -> None:
    fused, explicit = make(**shape), make(**shape, attention="explicit")
    scatter_weights(fused)
    explicit.load_state_dict(fused.state_dict(), strict=True)
    assert_same_run(explicit, fused, draw_images(fused))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(("dtype", "is_explicit"), [(torch.float32, False), (torch.bfloat16, True)])
def test_attention_is_explicit_by_default_where_that_is_faster(
    dtype: torch.dtype, is_explicit: bool, qk_norm: bool
) -> None:
    model, computed = make(**SHAPES["small"], qk_norm=qk_norm), []
    model.blocks[0].attn.softmax.register_forward_hook(lambda *_: computed.append(True))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(draw_images(model))
    assert bool(computed) == is_explicit


@pytest.mark.parametrize("names", list(itertools.combinations(CHANGES, 2)), ids=" and ".join)
def test_every_parameter_gets_a_gradient_in_every_pair_of_settings(names: tuple[str, str]) -> None:
    model = make(**SMALL, **{name: CHANGES[name] for name in names})
    scatter_weights(model)
    _, gradients = run(model, draw_images(model, count=8))
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name


def test_recomputing_layers_changes_neither_logits_nor_gradients() -> None:
    shape = SMALL | {"dropout": 0.2, "drop_path": 0.3}
    kept, recomputed = make(**shape), make(**shape, gradient_checkpointing=True)
    scatter_weights(kept)
    recomputed.load_state_dict(kept.state_dict(), strict=True)
    assert_same_run(recomputed, kept, draw_images(kept))


def test_nothing_is_dropped_in_evaluation() -> None:
    plain, dropping = make(**SMALL).eval(), make(**SMALL, dropout=0.5, drop_path=0.5).eval()
    scatter_weights(plain)
    dropping.load_state_dict(plain.state_dict(), strict=True)
    images_BCHW = draw_images(plain)
    assert torch.equal(plain(images_BCHW), dropping(images_BCHW))


def test_drop_path_leaves_out_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    values_BTD = DropPath(0.3)(torch.ones(20_000, 2, 3))
    assert values_BTD.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(values_BTD.amin(dim=(1, 2)), values_BTD.amax(dim=(1, 2)))
    assert values_BTD.mean() == pytest.approx(1, abs=0.02)


def test_drop_path_grows_with_depth() -> None:
    shares = [block.drop_path.share for block in make(**SMALL | {"depth": 5}, drop_path=0.4).blocks]
    assert shares == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_fixed_position_embeddings_are_waves_of_row_and_column() -> None:
    waves_PD = make_sincos2d(grid_size=5, width=24).double().numpy()
    frequencies = 1 / 10_000 ** (np.arange(6) / 5)
    for row, column in np.ndindex(5, 5):
        x, y = column * frequencies, row * frequencies
        expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)])
        np.testing.assert_allclose(waves_PD[5 * row + column], expected, atol=1e-6)


def test_fixed_position_embeddings_are_no_weights_and_spare_the_class_token() -> None:
    model = make(**SMALL, pos_embed="sincos2d")
    assert "pos_embed" not in model.state_dict()
    assert torch.equal(model.pos_embed[0, 0], torch.zeros(24))
    assert model.num_tokens == 17


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_every_image_starts_with_the_logit_of_the_heads_bias(head: str) -> None:
    model = make(**SMALL, head=head)
    torch.nn.init.constant_(model.head.bias, -1.5)
    assert torch.equal(model(draw_images(model)), torch.full((3, 1), -1.5))


def test_each_image_of_a_batch_is_judged_by_itself() -> None:
    model = make(**SMALL)
    scatter_weights(model)
    images_BCHW = draw_images(model)
    alone = torch.cat([model(image_1CHW) for image_1CHW in images_BCHW.split(1)])
    assert torch.allclose(model(images_BCHW), alone, atol=1e-5)


@pytest.mark.parametrize("change", [{}, {"pos_embed": "sincos2d"}, {"pool": "gap"}], ids=str)
def test_the_position_of_a_patch_matters(change: dict) -> None:
    model = make(**SMALL, **change)
    scatter_weights(model)
    images_BCHW = draw_images(model)
    assert not torch.allclose(model(images_BCHW), model(images_BCHW.roll(8, dims=2)), atol=1e-3)


@pytest.mark.parametrize("size", [(1, 32, 40), (1, 64, 64), (3, 32, 32)], ids=str)
def test_images_of_another_size_or_number_of_channels_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"images are \(.*\), the model takes \(1, 32, 32\)"):
        make(**SMALL)(torch.zeros(2, *size))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 100}, "image_size 100 must be a multiple of model.patch_size 16"),
        ({"width": 64}, "width 64 must be a multiple of model.num_heads 6"),
        ({"width": 6, "pos_embed": "sincos2d"}, "width 6 must be a multiple of 4"),
        ({"in_channels": 2}, "Input should be 1 or 3"),
        ({"pool": "max"}, "Input should be 'cls' or 'gap'"),
        ({"attention": "flash"}, "Input should be 'auto', 'sdpa' or 'explicit'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="variant 'G/14' must be one of Ti/16, S/16, B/16, L/16, H/14"):
        make_variant("G/14")


def test_logits_keep_all_their_bits_whatever_the_layers_compute_in() -> None:
    """Images that differ little tie in bf16, and ties cost AUC."""
    torch.manual_seed(0)
    model = VisionTransformer(
        ModelSettings(image_size=32, patch_size=8, width=32, depth=2, num_heads=2)
    ).eval()
    torch.nn.init.normal_(model.head.weight)
    model.head.bias.data.fill_(-4.0)
    images_BCHW = torch.rand(200, 1, 32, 32)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BK = model(images_BCHW)
    assert logits_BK.dtype == torch.float32
    assert len(logits_BK.unique()) > 190
    assert len(logits_BK.bfloat16().unique()) < 150


# Kept patches


def draw_sparse_images(count=3) -> Tensor:
    """Noise in the upper left, different in each image, and below it a faint band; the rest is black."""
    images_BCHW = 0.02 * torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(4)).double()
    images_BCHW[:, :, 24:] = -2.0
    for number, image_CHW in enumerate(images_BCHW):
        image_CHW[:, : 8 * (number + 1), :20] *= 50
    return images_BCHW


@pytest.mark.parametrize("num_kept", [1, 2, 5, 11, 15])
def test_the_patches_of_largest_contrast_are_kept_in_reading_order_and_of_equal_ones_the_first(
    num_kept: int,
) -> None:
    """By a stable sort of numpy's; contrasts are small integers, many of them equal."""
    contrast_BP = np.random.default_rng(0).integers(0, 5, (6, 16))
    pixels_BPn = np.random.default_rng(1).integers(-3, 3, (6, 16, 1)) + np.zeros((1, 1, 7))
    pixels_BPn[:, :, 4] += contrast_BP
    expected = np.sort(np.argsort(-contrast_BP, axis=1, kind="stable")[:, :num_kept], axis=1)
    assert choose_patches(torch.from_numpy(pixels_BPn), num_kept).tolist() == expected.tolist()


def test_patches_are_cut_in_reading_order() -> None:
    images_BCHW = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    pixels_BPn = cut_into_patches(images_BCHW, 4)
    assert pixels_BPn.shape == (2, 6, 48)
    for place, (row, column) in enumerate(itertools.product(range(0, 8, 4), range(0, 12, 4))):
        expected = images_BCHW[:, :, row : row + 4, column : column + 4].flatten(1)
        assert torch.equal(pixels_BPn[:, place], expected)


def test_tone_changes_that_keep_the_order_of_contrasts_keep_the_patches() -> None:
    pixels_BPn = cut_into_patches(draw_sparse_images(), 8)
    assert torch.equal(choose_patches(pixels_BPn, 6), choose_patches(1.5 * pixels_BPn + 0.7, 6))


def test_keeping_all_patches_is_the_model_without_the_setting_bit_for_bit() -> None:
    shape = SMALL | {"dropout": 0.2, "drop_path": 0.3}
    plain, keeping = make(**shape), make(**shape, kept_patches=make(**shape).num_tokens - 1)
    scatter_weights(plain)
    keeping.load_state_dict(plain.state_dict(), strict=True)
    images_BCHW = draw_images(plain)
    (actual, gradients), (expected, others) = run(keeping, images_BCHW), run(plain, images_BCHW)
    assert torch.equal(actual, expected)
    for name, gradient in others.items():
        assert torch.equal(gradients[name], gradient), name


@pytest.mark.parametrize("num_kept", [1, 6, 15])
@pytest.mark.parametrize("pool", ["cls", "gap"])
@pytest.mark.parametrize("num_registers", [0, 3])
@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
def test_kept_patches_equal_the_full_model_with_the_other_tokens_masked_as_keys(
    monkeypatch: pytest.MonkeyPatch, attention: str, num_registers: int, pool: str, num_kept: int
) -> None:
    shape = SMALL | {"pool": pool, "register_tokens": num_registers}
    full, keeping = make(**shape).double(), make(**shape, attention=attention, kept_patches=num_kept).double()
    scatter_weights(full)
    assert keeping.load_state_dict(full.state_dict(), strict=True)
    images_BCHW = draw_sparse_images()
    actual, gradients = run(keeping, images_BCHW)
    places_Bk = choose_patches(cut_into_patches(images_BCHW, 8), num_kept)
    num_prefix = 1 + num_registers
    seen_BP = torch.zeros(3, 16, dtype=torch.bool).scatter(1, places_Bk, True)
    seen_BT = F.pad(seen_BP, (num_prefix, 0), value=True)

    def pool_kept(x_BTD: Tensor) -> Tensor:
        if pool == "cls":
            return x_BTD[:, 0]
        return full.fc_norm((x_BTD[:, num_prefix:] * seen_BP[..., None]).sum(dim=1) / num_kept)

    attend = F.scaled_dot_product_attention
    mask_B11T = seen_BT[:, None, None, :]
    monkeypatch.setattr(full, "pool", pool_kept)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: attend(q, k, v, mask_B11T))
    expected, others = run(full, images_BCHW)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    for name, gradient in others.items():
        scale = gradient.abs().max().clamp(min=1.0)
        torch.testing.assert_close(gradients[name] / scale, gradient / scale, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kept_patches": 5},
        {"kept_patches": 5, "gradient_checkpointing": True},
        {"kept_patches": 5, "register_tokens": 2, "qk_norm": True},
    ],
)
def test_it_compiles_to_one_graph_for_each_of_training_and_evaluation(changes: dict) -> None:
    counter = CompileCounter()
    torch.compiler.reset()
    model = make(**SMALL, drop_path=0.1, **changes)
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    for _ in range(2):
        compiled(draw_images(model)).sum().backward()
    assert counter.frame_count == 1
    model.eval()
    with torch.inference_mode():
        compiled(draw_images(model))
    assert counter.frame_count == 2


def test_more_patches_than_an_image_has_cannot_be_kept() -> None:
    with pytest.raises(
        ValueError, match="kept_patches 17 must be 0 or at most the 16 patches of an image of 32"
    ):
        make(image_size=32, patch_size=8, kept_patches=17)
