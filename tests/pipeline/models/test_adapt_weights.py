"""First weights from elsewhere: what fits is kept, what does not is told."""

from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.models import pretrained
from pipeline.models.adapt_weights import load_initial_weights, resample_patch_embed
from pipeline.models.normalization import MEAN, STD
from pipeline.models.pretrained import NORMALIZATIONS, Normalization
from pipeline.models.vit import VisionTransformer
from pipeline.models.weights_file import save_weights
from pipeline.runs.recipe import ModelSettings
from pipeline.runs.run_folder import FoldFolder

timm = pretrained.timm

THEIRS = {"img_size": 48, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 10}
OURS = {"image_size": 48, "patch_size": 8, "width": 24, "depth": 2, "num_heads": 3}


def make_theirs(**changes) -> nn.Module:
    torch.manual_seed(0)
    model = pretrained.TimmTransformer(**THEIRS | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def make_ours(**changes) -> VisionTransformer:
    torch.manual_seed(1)
    return VisionTransformer(ModelSettings(**OURS | changes)).eval()


def save(tmp_path: Path, tensors: dict[str, Tensor]) -> str:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(tensors, path)
    return str(path)


def load(model: VisionTransformer, tmp_path: Path, theirs: nn.Module, normalization="half") -> pd.DataFrame:
    return load_initial_weights(model, save(tmp_path, theirs.state_dict()), normalization)


def normalize(pixels_BCHW: Tensor, normalization: Normalization) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in normalization)
    return (pixels_BCHW - mean) / std


def as_we_show_them(pixels_BCHW: Tensor) -> Tensor:
    return (pixels_BCHW - MEAN) / STD


@torch.inference_mode()
def assert_same_tokens(ours: nn.Module, theirs: nn.Module, grey_B1HW: Tensor, normalization: str) -> None:
    """To 1e-5 of the largest value, after the patches and after the last layer."""
    expected_in = normalize(grey_B1HW.expand(-1, 3, -1, -1), NORMALIZATIONS[normalization])
    ours_in = as_we_show_them(grey_B1HW)
    patches, _ = ours.patch_embed(ours_in)
    pairs = [
        (patches, theirs.patch_embed(expected_in)),
        (ours.forward_features(ours_in), theirs.forward_features(expected_in)),
    ]
    for actual, expected in pairs:
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("normalization", ["half", "imagenet"])
def test_a_grey_image_gives_the_tokens_of_its_colour_copy(tmp_path: Path, normalization: str) -> None:
    ours, theirs = make_ours(), make_theirs()
    load(ours, tmp_path, theirs, normalization)
    assert_same_tokens(ours, theirs, torch.rand(2, 1, 48, 48), normalization)


def test_the_wrong_normalisation_gives_other_tokens(tmp_path: Path) -> None:
    ours, theirs = make_ours(), make_theirs()
    load(ours, tmp_path, theirs, "half")
    with pytest.raises(AssertionError):
        assert_same_tokens(ours, theirs, torch.rand(2, 1, 48, 48), "imagenet")


def test_a_colour_image_gives_the_tokens_that_it_gave(tmp_path: Path) -> None:
    ours, theirs = make_ours(in_channels=3), make_theirs()
    load(ours, tmp_path, theirs, "imagenet")
    pixels_BCHW = torch.rand(2, 3, 48, 48)
    with torch.inference_mode():
        expected = theirs.forward_features(normalize(pixels_BCHW, NORMALIZATIONS["imagenet"]))
        actual = ours.forward_features(as_we_show_them(pixels_BCHW))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_resampled_kernel_gives_an_enlarged_image_the_same_tokens(tmp_path: Path) -> None:
    """FlexiViT's definition of resampling (Beyer et al. 2023, section 3.4) for a single patch."""
    ours, theirs = make_ours(image_size=16, patch_size=16), make_theirs(img_size=14, patch_size=14)
    load(ours, tmp_path, theirs)
    pixels_B1HW = torch.rand(4, 1, 14, 14)
    enlarged_B1HW = F.interpolate(pixels_B1HW, size=(16, 16), mode="bicubic", antialias=True)
    with torch.inference_mode():
        expected = theirs.patch_embed(normalize(pixels_B1HW.expand(-1, 3, -1, -1), NORMALIZATIONS["half"]))
        actual, _ = ours.patch_embed(as_we_show_them(enlarged_B1HW))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_a_resampled_kernel_is_timms(tmp_path: Path) -> None:
    ours, theirs = make_ours(in_channels=3), make_theirs(img_size=42, patch_size=7)
    rows = load(ours, tmp_path, theirs)
    kernel = resample_patch_embed(theirs.patch_embed.proj.weight, [8, 8])
    torch.testing.assert_close(ours.patch_embed.proj.weight, kernel * STD / 0.5)
    (row,) = rows[rows["tensor"] == "patch_embed.proj.weight"].itertuples()
    assert (row.outcome, row.detail.startswith("[24, 3, 7, 7] to [24, 3, 8, 8]")) == ("converted", True)


def test_position_embeddings_are_resized_and_the_class_tokens_kept(tmp_path: Path) -> None:
    ours, theirs = make_ours(image_size=96), make_theirs()
    rows = load(ours, tmp_path, theirs)
    grid_1DHW = theirs.pos_embed[:, 1:].detach().transpose(1, 2).reshape(1, 24, 6, 6)
    expected = F.interpolate(grid_1DHW, size=(12, 12), mode="bicubic", antialias=True)
    torch.testing.assert_close(ours.pos_embed[0, 1:].T.reshape(1, 24, 12, 12), expected)
    assert torch.equal(ours.pos_embed[0, 0], theirs.pos_embed[0, 0])
    assert torch.equal(ours.cls_token, theirs.cls_token)
    assert rows.set_index("tensor")["outcome"]["pos_embed"] == "resized"


def test_position_embeddings_of_equal_size_are_kept_as_they_are(tmp_path: Path) -> None:
    ours, theirs = make_ours(), make_theirs()
    load(ours, tmp_path, theirs)
    assert torch.equal(ours.pos_embed, theirs.pos_embed)


@pytest.mark.slow
def test_vit_s16_of_224_px_starts_one_of_512_px(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = timm.create_model("vit_small_patch16_224")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: theirs)
    ours = VisionTransformer(ModelSettings())
    rows = load_initial_weights(ours, "timm:vit_small_patch16_224.augreg_in21k", "imagenet")
    counts = rows["outcome"].value_counts().to_dict()
    assert counts == {"loaded": 147, "converted": 2, "resized": 1, "left out": 2, "new": 2}
    enlarged = theirs.eval()
    enlarged.set_input_size((512, 512))  # timm resizes its own positions
    assert_same_tokens(ours.eval(), enlarged, torch.rand(1, 1, 512, 512), "half")


def test_the_head_is_new_and_every_tensor_has_a_row(tmp_path: Path) -> None:
    ours, theirs = make_ours(head="mlp"), make_theirs()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    rows = load(ours, tmp_path, theirs)
    assert set(rows["tensor"][rows["outcome"] == "left out"]) == {"head.weight", "head.bias"}
    new = set(rows["tensor"][rows["outcome"] == "new"])
    assert new == {"head.weight", "head.bias", "pre_logits.fc.weight", "pre_logits.fc.bias"}
    after = ours.state_dict()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == (name in new), name
    assert set(rows["tensor"]) == set(after) | set(theirs.state_dict())


@pytest.mark.parametrize(("ours", "theirs"), [("gap", "token"), ("cls", "avg")])
def test_the_last_norm_moves_to_where_the_pooling_wants_it(tmp_path: Path, ours: str, theirs: str) -> None:
    model, source = make_ours(pool=ours), make_theirs(global_pool=theirs)
    rows = load(model, tmp_path, source)
    old, new = (source.norm, model.fc_norm) if ours == "gap" else (source.fc_norm, model.norm)
    assert torch.equal(new.weight, old.weight)
    assert torch.equal(new.bias, old.bias)
    assert rows["detail"].str.contains("model.pool").sum() == 2


def test_our_own_models_start_others_as_they_are(tmp_path: Path) -> None:
    trained, folder = make_ours(), FoldFolder(tmp_path)
    save_weights(folder, trained, logit_shift=0.5, num_classes=1)
    model = VisionTransformer(ModelSettings(**OURS))
    rows = load_initial_weights(model, str(folder.weights), "imagenet")
    assert set(rows["outcome"]) == {"loaded", "left out", "new"}
    for name, tensor in model.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, trained.state_dict()[name]), name


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: {"model": x}, lambda x: {"state_dict": x, "epoch": 3}]
)
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_pth_files_may_wrap_their_tensors(tmp_path: Path, wrap, prefix: str) -> None:
    theirs = make_theirs()
    tensors = {f"{prefix}{name}": tensor.half() for name, tensor in theirs.state_dict().items()}
    torch.save(wrap(tensors), tmp_path / "weights.pth")
    ours = make_ours()
    load_initial_weights(ours, str(tmp_path / "weights.pth"), "half")
    torch.testing.assert_close(ours.pos_embed, theirs.pos_embed, rtol=1e-3, atol=1e-3)
    assert ours.pos_embed.dtype == torch.float32


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"depth": 3}, {}, r"its depth is 2, model\.depth is 3"),
        ({"width": 48}, {}, r"its width is 24, model\.width is 48"),
        ({"mlp_ratio": 2.0}, {}, r"mlp\.fc1\.weight is \[96, 24\].*\(see model\.mlp_ratio\)"),
        ({"qkv_bias": False}, {}, r"it has blocks\.0\.attn\.qkv\.bias.*\(see model\.qkv_bias\)"),
        ({}, {"qkv_bias": False}, r"it lacks blocks\.0\.attn\.qkv\.bias.*\(see model\.qkv_bias\)"),
        ({}, {"init_values": 0.1}, r"it has blocks\.0\.ls1\.gamma.*\(see model\.layer_scale\)"),
        ({"layer_scale": 0.1}, {}, r"it lacks blocks\.0\.ls1\.gamma.*\(see model\.layer_scale\)"),
        ({"pos_embed": "sincos2d"}, {}, r"it has pos_embed.*\(see model\.pos_embed\)"),
        ({}, {"reg_tokens": 4}, r"it has reg_token, for which the model has no place"),
        (
            {},
            {"pre_norm": True},
            r"normalises the tokens before the first layer \(norm_pre\.weight, as in CLIP\)",
        ),
        ({"register_tokens": 2}, {}, r"it lacks reg_token \(see model\.register_tokens\)"),
        (
            {"register_tokens": 2},
            {"reg_tokens": 4},
            r"its reg_token is \[1, 4, 24\], the model's is \[1, 2, 24\]",
        ),
        ({"qk_norm": True}, {}, r"it lacks blocks\.0\.attn\.k_norm\.bias .*\(see model\.qk_norm\)"),
        (
            {"qk_norm": True, "num_heads": 4},
            {"qk_norm": True, "num_heads": 3},
            r"its num_heads is 3, model\.num_heads is 4",
        ),
        ({}, {"qk_norm": True, "norm_layer": nn.LayerNorm}, r"it has blocks\.0\.attn\.k_norm\.bias"),
        ({}, {"class_token": False, "global_pool": "avg"}, r"it lacks cls_token"),
        ({"in_channels": 3}, {"in_chans": 1}, r"its images have 1 channels, model\.in_channels is 3"),
        ({}, {"in_chans": 4}, r"its images have 4 channels, model\.in_channels is 1"),
    ],
    ids=str,
)
def test_whatever_would_lose_weights_is_refused(
    tmp_path: Path, ours: dict, theirs: dict, message: str
) -> None:
    model = make_ours(**ours)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load(model, tmp_path, make_theirs(**theirs))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_number_of_heads_is_seen_where_timm_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make_theirs(num_heads=4)
    theirs.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: theirs)
    with pytest.raises(UserError, match=r"its num_heads is 4, model\.num_heads is 3"):
        load_initial_weights(make_ours(), "timm:vit_tiny_patch16_224", "half")


def test_another_kind_of_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (timm.create_model("resnet18"), make_theirs(act_layer="gelu_tanh")):
        monkeypatch.setattr(timm, "create_model", lambda name, pretrained, model=model: model)
        with pytest.raises(UserError, match="is not a plain Vision Transformer with GELU"):
            load_initial_weights(make_ours(), "timm:vit_tiny_patch16_224", "half")


def test_without_a_network_the_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, pretrained: bool) -> None:
        raise FileNotFoundError("cannot reach the hub")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match=r"download its model\.safetensors elsewhere and set train\.init"):
        load_initial_weights(make_ours(), "timm:vit_tiny_patch16_224.augreg_in21k", "half")


@pytest.mark.parametrize("name", ["", "resnet18", "vit_tiny_patch16_224.foo", "vit_base_patch16_18x2_224"])
def test_what_timm_has_no_weights_of_is_refused_without_asking_the_network(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delattr(timm, "create_model")
    with pytest.raises(UserError, match=f"timm has no pretrained Vision Transformer '{name}'"):
        load_initial_weights(make_ours(), f"timm:{name}", "half")


def test_a_misspelt_model_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        UserError,
        match="'vit_tinny_patch16_224'; did you mean vit_tiny_patch16_224",
    ):
        load_initial_weights(make_ours(), "timm:vit_tinny_patch16_224", "half")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("patch_embed.proj.weight", torch.ones(24, 192), r"no square kernels \[D, C, p, p\]"),
        ("patch_embed.proj.weight", torch.ones(24, 3, 16, 8), r"is \[24, 3, 16, 8\], no square kernels"),
        ("patch_embed.proj.weight", torch.tensor(1.0), r"is \[\], no square kernels"),
        (
            "blocks.0.mlp.fc1.weight",
            torch.tensor(1.0),
            r"its blocks\.0\.mlp\.fc1\.weight is \[\], the model's is",
        ),
        ("patch_embed.proj.bias", torch.ones(1), r"its width is 1, model\.width is 24"),
        ("patch_embed.proj.bias", torch.tensor(1.0), r"its width is 0, model\.width is 24"),
        ("cls_token", torch.tensor(1.0), r"its cls_token is \[\], the model's is \[1, 1, 24\]"),
        ("pos_embed", torch.ones(37), r"its pos_embed is \[37\], not \[1, T, D\]"),
        ("pos_embed", torch.ones(1, 40, 24), r"its 40 position embeddings are not a square grid and a class"),
        ("norm.weight", torch.ones(24, dtype=torch.int8), r"norm\.weight holds values that are not finite"),
        ("norm.bias", torch.full((24,), torch.nan), r"norm\.bias holds values that are not finite"),
        ("fc_norm.weight", torch.ones(24), r"it has fc_norm\.weight, for which the model has no place"),
    ],
    ids=str,
)
def test_a_tensor_that_is_not_what_it_should_be_is_refused(
    tmp_path: Path, name: str, tensor: Tensor, message: str
) -> None:
    path = save(tmp_path, make_theirs().state_dict() | {name: tensor})
    with pytest.raises(UserError, match=message):
        load_initial_weights(make_ours(), path, "half")


def test_foreign_names_are_told_as_such(tmp_path: Path) -> None:
    tensors = {f"backbone.{name}": tensor for name, tensor in make_theirs().state_dict().items()}
    with pytest.raises(
        UserError,
        match=r"do not have timm's names; the first is backbone\.blocks\.0.*: save them without backbone\.$",
    ):
        load_initial_weights(make_ours(), save(tmp_path, tensors), "half")


@pytest.mark.parametrize(
    "place", ["_orig_mod.blocks.0", "blocks._orig_mod.0", "blocks.0._orig_mod", "blocks.0.module"]
)
def test_wrappers_are_left_out_wherever_they_stand_in_a_name(tmp_path: Path, place: str) -> None:
    theirs, ours = make_theirs(), make_ours()
    tensors = {name.replace("blocks.0", place): tensor for name, tensor in theirs.state_dict().items()}
    load_initial_weights(ours, save(tmp_path, tensors), "half")
    assert torch.equal(ours.blocks[0].mlp.fc1.weight, theirs.blocks[0].mlp.fc1.weight)


def test_two_tensors_of_one_name_without_wrappers_are_refused(tmp_path: Path) -> None:
    tensors = make_theirs().state_dict()
    path = save(tmp_path, tensors | {"module.norm.bias": tensors["norm.bias"] + 1})
    with pytest.raises(UserError, match="two of its tensors have one name without module"):
        load_initial_weights(make_ours(), path, "half")


def test_other_names_are_told_by_the_first_that_is_not_timms(tmp_path: Path) -> None:
    tensors = {name.replace("blocks.", "layers."): each for name, each in make_theirs().state_dict().items()}
    with pytest.raises(UserError, match=r"the first that timm does not know is layers\.0\.attn\.proj\.bias"):
        load_initial_weights(make_ours(), save(tmp_path, tensors), "half")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([1, 2], "it holds a list, not tensors by name"),
        (torch.zeros(3), "it holds a Tensor, not tensors by name"),
        ({"teacher": {}, "student": {}}, "its entry teacher is no tensor; tensors are looked for at the top"),
        ({"model": "vit", "weights": {}}, "its entry model is no tensor"),
        ({3: {}}, "its entry 3 is no tensor"),
        ({}, "it holds no tensors of layers, which timm names blocks"),
    ],
    ids=str,
)
def test_a_file_of_something_else_is_told_what_it_holds(tmp_path: Path, content: object, what: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=what):
        load_initial_weights(make_ours(), str(tmp_path / "weights.pth"), "half")


def test_a_file_that_was_cut_off_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(make_theirs().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"not, or not whole, what torch\.save writes"):
        load_initial_weights(make_ours(), str(path), "half")


def test_grey_weights_have_one_mean(tmp_path: Path) -> None:
    theirs = make_theirs(in_chans=1)
    with pytest.raises(UserError, match='"imagenet" is not theirs'):
        load(make_ours(), tmp_path, theirs, "imagenet")
    ours, pixels_B1HW = make_ours(), torch.rand(2, 1, 48, 48)
    load(ours, tmp_path, theirs, "mammo")
    assert torch.equal(ours.patch_embed.proj.weight, theirs.patch_embed.proj.weight)
    load(ours, tmp_path, theirs, "half")
    torch.testing.assert_close(
        ours.patch_embed(as_we_show_them(pixels_B1HW))[0], theirs.patch_embed((pixels_B1HW - 0.5) / 0.5)
    )


def test_our_own_files_know_their_number_of_heads(tmp_path: Path) -> None:
    folder = FoldFolder(tmp_path)
    save_weights(folder, make_ours(), logit_shift=0.0, num_classes=1)
    with pytest.raises(UserError, match=r"its num_heads is 3, model\.num_heads is 4"):
        load_initial_weights(make_ours(num_heads=4), str(folder.weights), "half")


def test_a_checkpoint_is_refused_with_the_file_to_take(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    torch.save({"model": {}, "average": {}}, path)
    with pytest.raises(UserError, match=r"checkpoint of mammo's: name the model\.safetensors beside it"):
        load_initial_weights(make_ours(), str(path), "half")
    with pytest.raises(UserError, match=r"name a \.safetensors or \.pth file, or timm:<model>"):
        load_initial_weights(make_ours(), str(path.rename(tmp_path / "last.pt")), "half")


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", ["missing", "damaged", "pickle", "numbers"])
def test_a_file_without_weights_is_refused(tmp_path: Path, capsys, name: str, content: str) -> None:
    path = tmp_path / name
    if content == "damaged":
        path.write_bytes(b"not weights" * 100)
    elif content == "pickle":
        torch.save({"model": Payload()}, path)
    elif content == "numbers":
        torch.save({"epoch": 3}, path)
    expected = "is not a file of weights" if content == "missing" else "holds no weights that can be read"
    with pytest.raises(UserError, match=expected):
        load_initial_weights(make_ours(), str(path), "half")
    assert "executed" not in capsys.readouterr().out
