"""Published kinds of Vision Transformers start ours: timm's models with the same weights are the oracle."""

import argparse
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.models import pretrained
from pipeline.models.adapt_weights import load_initial_weights
from pipeline.models.follow_weights import describe_followed, find_structure, follow_weights
from pipeline.models.normalization import MEAN, STD
from pipeline.models.pretrained import read_shapes
from pipeline.models.vit import VisionTransformer
from pipeline.models.weights_file import save_weights
from pipeline.runs.recipe import ModelSettings
from pipeline.runs.run_folder import FoldFolder

timm = pretrained.timm

from timm.models.vision_transformer import checkpoint_filter_fn  # noqa: E402  after torchvision was let in

SIZES = {"img_size": 70, "patch_size": 14, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
OURS = {"image_size": 70, "patch_size": 14, "width": 24, "depth": 2, "num_heads": 3, "in_channels": 3}
FAMILIES = {
    "DINOv2": {"init_values": 1e-5},
    "DINOv2 with registers": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
    "MAE": {},
    "supervised, registers with positions": {"reg_tokens": 3},
    "supervised, registers instead of a class token": {
        "class_token": False,
        "no_embed_class": True,
        "reg_tokens": 4,
        "init_values": 1e-5,
        "global_pool": "avg",
    },
    "supervised, one register instead of a class token": {
        "class_token": False,
        "no_embed_class": True,
        "reg_tokens": 1,
        "qkv_bias": False,
        "global_pool": "avg",
    },
    "supervised, no position for the class token": {"no_embed_class": True},
    "supervised, normalised queries and keys": {"qk_norm": True, "qkv_bias": False},
    "supervised, mean of patches": {"global_pool": "avg"},
}


def scatter(model: nn.Module) -> nn.Module:
    """Draws weights of which each makes a difference."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def make_theirs(**changes) -> nn.Module:
    return scatter(pretrained.TimmTransformer(**SIZES | changes))


def save(tmp_path: Path, tensors: dict[str, Tensor]) -> str:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return str(path)


def start(init: str, **changes) -> tuple[VisionTransformer, set[str]]:
    """Makes our model by what the weights say; returns the words of `initial_weights.csv` too.

    "mammo" leaves pixels as they are, so that the models see the same numbers.
    """
    settings = follow_weights(ModelSettings(**OURS | changes), read_shapes(init), init)
    model = VisionTransformer(settings).eval()
    rows = load_initial_weights(model, init, "mammo")
    assert set(model.state_dict()) <= set(rows["tensor"])
    return model, set(" ".join([*rows["tensor"], *rows["detail"]]).split())


@torch.inference_mode()
def assert_same_features(ours: VisionTransformer, theirs: nn.Module) -> None:
    """To 1e-5 of the largest value in float32, to 1e-10 in float64."""
    images_BCHW = torch.randn(2, *ours.patch_embed.image_shape, generator=torch.Generator().manual_seed(1))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        actual = ours.to(dtype).forward_features(images_BCHW.to(dtype))
        expected = theirs.to(dtype).forward_features(images_BCHW.to(dtype))
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()
        pooled, their_pooled = ours.pool(actual), theirs.forward_head(expected, pre_logits=True)
        assert (pooled - their_pooled).abs().max() <= tolerance * their_pooled.abs().max()


def pool_of(changes: dict) -> str:
    return "gap" if changes.get("global_pool") == "avg" else "cls"


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_timms_model_gives_its_features_and_every_tensor_has_a_row(tmp_path: Path, changes: dict) -> None:
    theirs = make_theirs(**changes)
    init = save(tmp_path, theirs.state_dict())
    ours, words = start(init, pool=pool_of(changes))
    assert set(theirs.state_dict()) <= words
    assert_same_features(ours, theirs)


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_timms_model_gives_its_features_at_512_px_and_with_other_kernels(
    tmp_path: Path, changes: dict
) -> None:
    """timm resamples its own positions and kernels."""
    theirs = make_theirs(**changes)
    init = save(tmp_path, theirs.state_dict())
    ours, _ = start(init, pool=pool_of(changes), image_size=512, patch_size=16)
    theirs.set_input_size((512, 512), patch_size=(16, 16))
    assert_same_features(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_registers", "pool"),
    [
        ("vit_small_patch14_dinov2.lvd142m", 0, "cls"),
        ("vit_small_patch14_reg4_dinov2.lvd142m", 4, "cls"),
        ("vit_base_patch16_224.mae", 0, "cls"),
        ("vit_mediumd_patch16_reg4_gap_256.sbb_in12k", 3, "gap"),
    ],
)
def test_published_sizes_give_timms_features_at_512_px(
    monkeypatch: pytest.MonkeyPatch, name: str, num_registers: int, pool: str
) -> None:
    """By their names, of which timm tells heads and normalisation, without their trained weights."""
    torch.manual_seed(0)
    theirs = timm.create_model(name.partition(".")[0]).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # a LayerScale of 1e-5 would hide the layers
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.ndim == 1 else 0.0)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: theirs)
    heads = theirs.blocks[0].attn.num_heads
    shape = {"width": theirs.embed_dim, "depth": len(theirs.blocks), "num_heads": heads, "pool": pool}
    asked = ModelSettings(**shape, in_channels=3)
    ours = VisionTransformer(follow_weights(asked, read_shapes(f"timm:{name}"), name)).eval()
    load_initial_weights(ours, f"timm:{name}", "half")
    assert ours.settings.register_tokens == num_registers
    theirs.set_input_size((512, 512), patch_size=(16, 16))
    pixels_B3HW = torch.rand(1, 3, 512, 512)
    mean, std = (torch.tensor(theirs.pretrained_cfg[each])[:, None, None] for each in ("mean", "std"))
    with torch.inference_mode():
        actual = ours.forward_features((pixels_B3HW - MEAN) / STD)
        expected = theirs.forward_features((pixels_B3HW - mean) / std)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def make_dinov2(*, num_registers: int) -> dict[str, Tensor]:
    """What facebookresearch/dinov2 publishes: all positions, a mask token, registers by another name.

    timm adds the class token and its position up, here without rounding.
    """
    tensors = make_theirs(init_values=1e-5).state_dict() | {"mask_token": torch.randn(1, 24)}
    tensors |= {name: tensors[name].mul(256).round() / 256 for name in ("cls_token", "pos_embed")}
    if num_registers:
        tensors["register_tokens"] = torch.randn(1, num_registers, 24)
    return tensors


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("num_registers", [0, 4])
def test_dinov2s_own_file_gives_the_features_that_timm_makes_of_it(
    tmp_path: Path, num_registers: int, is_chunked: bool
) -> None:
    original = make_dinov2(num_registers=num_registers)
    theirs = make_theirs(
        init_values=1e-5, reg_tokens=num_registers, no_embed_class=num_registers > 0
    )  # as timm's vit_*_reg4_dinov2
    theirs.load_state_dict(checkpoint_filter_fn(dict(original), theirs), strict=True)
    if is_chunked:  # the second layer is in a chunk of its own
        chunks = {f"blocks.{layer}.": f"blocks.{layer}.{layer}." for layer in range(2)}
        original = {chunks.get(name[:9], name[:9]) + name[9:]: tensor for name, tensor in original.items()}
    path = tmp_path / "dinov2_vits14_reg4_pretrain.pth"
    torch.save(original, path)
    ours, words = start(str(path))
    assert set(original) <= words
    assert (ours.settings.register_tokens, ours.settings.layer_scale) == (num_registers, 1e-5)
    assert_same_features(ours, theirs)


def test_maes_own_checkpoint_gives_timms_features_and_its_decoder_is_left_out_by_name(
    tmp_path: Path,
) -> None:
    """As its trainer saves it: beside options, optimizer and scaler."""
    theirs = make_theirs()
    decoder = {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_pos_embed": torch.zeros(1, 26, 16),
        "decoder_embed.weight": torch.zeros(16, 24),
        "decoder_blocks.0.attn.qkv.weight": torch.zeros(48, 16),
        "decoder_norm.bias": torch.zeros(16),
        "decoder_pred.weight": torch.zeros(588, 16),
    }
    content = {"model": theirs.state_dict() | decoder, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}
    torch.save(content, tmp_path / "checkpoint-799.pth")
    ours, _ = start(str(tmp_path / "checkpoint-799.pth"))
    assert_same_features(ours, theirs)
    rows = load_initial_weights(ours.float(), str(tmp_path / "checkpoint-799.pth"), "mammo")
    left_out = rows[rows["outcome"] == "left out"].set_index("tensor")["detail"]
    assert set(left_out.index) == set(decoder)
    assert left_out["decoder_norm.bias"] == "the decoder of a masked autoencoder"


def test_what_mammo_writes_itself_is_followed_too(tmp_path: Path) -> None:
    changes = {"register_tokens": 2, "layer_scale": 0.1, "qk_norm": True, "qkv_bias": False}
    trained, folder = VisionTransformer(ModelSettings(**OURS | changes)), FoldFolder(tmp_path)
    scatter(trained)
    save_weights(folder, trained, logit_shift=0.5, num_classes=1)
    ours, _ = start(str(folder.weights))
    for name, tensor in ours.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, trained.state_dict()[name]), name


@pytest.mark.parametrize("name", ["storage_tokens", "blocks.0.attn.gate.weight", "teacher_temperature"])
def test_no_tensor_without_a_place_is_left_out_silently(tmp_path: Path, name: str) -> None:
    init = save(tmp_path, make_theirs().state_dict() | {name: torch.zeros(1, 2, 24)})
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        start(init)


def test_all_tensors_without_a_place_are_named_and_those_of_equal_place_once(tmp_path: Path) -> None:
    strange = {f"blocks.{layer}.attn.{name}": torch.zeros(24) for layer in range(2) for name in "ab"}
    init = save(tmp_path, make_theirs().state_dict() | strange | {"other": torch.zeros(1)})
    expected = (
        r"it has blocks\.0\.attn\.a \(in 2 layers\), blocks\.0\.attn\.b \(in 2 layers\), other, for which"
    )
    with pytest.raises(UserError, match=expected):
        start(init)


# What is refused


def make_dinov3() -> dict[str, Tensor]:
    changes = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
    return timm.create_model("vit_small_patch16_dinov3", **changes).state_dict()


def make_dinov3s_own() -> dict[str, Tensor]:
    tensors = dict(make_theirs(init_values=1e-5).state_dict())
    del tensors["pos_embed"]
    return tensors | {"storage_tokens": torch.zeros(1, 4, 24), "rope_embed.periods": torch.zeros(2)}


def make_giant() -> dict[str, Tensor]:
    return timm.create_model("vit_giant_patch14_reg4_dinov2", **SIZES).state_dict()


def make_giants_own() -> dict[str, Tensor]:
    names = {"fc1": "w12", "fc2": "w3"}
    tensors = make_giant()
    for old, new in names.items():
        tensors = {name.replace(f".{old}.", f".{new}."): tensor for name, tensor in tensors.items()}
    return tensors


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_dinov3, r"rotary positions \(RoPE, as DINOv3; blocks\.0\.gamma_1 tells\)"),
        (
            make_dinov3s_own,
            r"rotary positions \(RoPE, as DINOv3; (storage_tokens|rope_embed\.periods) tells\)",
        ),
        (make_giant, r"gated \(SwiGLU, as in DINOv2's giant; blocks\.0\.mlp\.fc1\.weight tells\)"),
        (
            make_giants_own,
            r"gated \(SwiGLU, as in DINOv2's giant; blocks\.0\.mlp\.w12\.(bias|weight) tells\)",
        ),
        (lambda: make_theirs(pre_norm=True).state_dict(), r"norm_pre\.weight, as in CLIP"),
        (
            lambda: (
                make_theirs().state_dict() | {"blocks.0.attn.relative_position_bias_table": torch.ones(9, 2)}
            ),
            r"relative positions \(as BEiT's; ",
        ),
    ],
)
@pytest.mark.parametrize("is_planned", [True, False])
def test_what_the_model_does_not_compute_is_refused_in_a_sentence_with_a_way_out(
    tmp_path: Path, make, reason: str, is_planned: bool
) -> None:
    """Before a run has begun, and for a model that is made already."""
    init = save(tmp_path, make())
    settings = ModelSettings(**OURS)
    with pytest.raises(UserError, match=rf"cannot start this model: .*{reason}.*: start from ") as error:
        start(init) if is_planned else load_initial_weights(VisionTransformer(settings), init, "half")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_dinov3.lvd1689m", "vit_base_patch16_rope_mixed_224.naver_in1k"]
)
def test_timms_rotary_models_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(
        UserError, match=r"by rotary positions \(RoPE\).*: choose DINOv2, MAE or a supervised"
    ):
        read_shapes(f"timm:{name}")


def test_hugging_faces_names_are_told_as_such(tmp_path: Path) -> None:
    name = "encoder.layer.0.attention.attention.query.weight"
    init = save(tmp_path, {name: torch.zeros(24, 24), "embeddings.cls_token": torch.zeros(1, 1, 24)})
    with pytest.raises(UserError, match=rf"Hugging Face's names, such as {name}: take timm's file"):
        start(init)


def test_registers_without_a_class_token_have_no_vector_for_the_head_but_the_mean(tmp_path: Path) -> None:
    changes = FAMILIES["supervised, registers instead of a class token"]
    init = save(tmp_path, make_theirs(**changes).state_dict())
    with pytest.raises(UserError, match=r'trained without a class token: set model\.pool to "gap"'):
        start(init)


@pytest.mark.parametrize("kind", ["parallel", "eps"])
def test_timms_models_that_compute_something_else_with_equal_names_are_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    vision_transformer = timm.models.vision_transformer
    changes = {
        "parallel": {"block_fn": vision_transformer.ResPostBlock},
        "eps": {"norm_layer": lambda width, **options: nn.LayerNorm(width, eps=1e-5, **options)},
    }
    theirs = make_theirs(**changes[kind])
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: theirs)
    with pytest.raises(UserError, match="is not a plain Vision Transformer with GELU"):
        load_initial_weights(VisionTransformer(ModelSettings(**OURS)), "timm:vit_tiny_patch16_224", "half")


# What follows


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_small_patch14_reg4_dinov2.lvd142m", (4, 1e-5, False, True)),
        ("vit_small_patch14_dinov2", (0, 1e-5, False, True)),
        ("vit_base_patch16_224.mae", (0, 0.0, False, True)),
        ("vit_mediumd_patch16_reg4_gap_256.sbb_in12k", (3, 1e-5, False, True)),
        ("vit_medium_patch16_gap_240.sw_in12k", (0, 1e-5, False, False)),
        ("vit_small_patch16_224", (0, 0.0, False, True)),
    ],
)
def test_the_structure_of_timms_models_is_known_without_their_weights(name: str, expected: tuple) -> None:
    assert find_structure(read_shapes(f"timm:{name}")) == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"register_tokens": 2}, {"reg_tokens": 4}, r"model\.register_tokens is 2, and .* it is 4: leave"),
        ({"register_tokens": 2}, {}, r"model\.register_tokens is 2, and .* it is 0: leave"),
        ({"layer_scale": 0.1}, {}, r"model\.layer_scale is 0\.1, and .* it is 0\.0: leave"),
        ({"qk_norm": True}, {}, r"model\.qk_norm is true, and .* it is false: leave"),
        ({"qkv_bias": False}, {}, r"model\.qkv_bias is false, and .* it is true: leave"),
    ],
    ids=str,
)
def test_a_setting_that_contradicts_the_weights_is_one_error(
    tmp_path: Path, ours: dict, theirs: dict, message: str
) -> None:
    init = save(tmp_path, make_theirs(**theirs).state_dict())
    with pytest.raises(UserError, match=message) as error:
        start(init, **ours)
    assert init in str(error.value)


def test_settings_that_agree_are_left_as_they_are(tmp_path: Path) -> None:
    init = save(tmp_path, make_theirs(init_values=1e-5, reg_tokens=4).state_dict())
    settings = ModelSettings(**OURS, register_tokens=4, layer_scale=0.1)
    assert follow_weights(settings, read_shapes(init), init) == settings
    assert describe_followed(settings, settings, init) == ""


def test_files_without_layers_decide_nothing(tmp_path: Path) -> None:
    for shapes in ({}, read_shapes(str(tmp_path / "missing.pth")), {"fc.weight": (2, 3)}):
        assert follow_weights(ModelSettings(), shapes, "x") == ModelSettings()
