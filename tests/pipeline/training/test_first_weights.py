"""A run that starts from weights of elsewhere takes their structure, says so, keeps it and reports it."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.classification.class_run import ClassRun
from pipeline.classification.train_classes import train_classes
from pipeline.experiment import train_and_evaluate
from pipeline.inference.onnx_export import export_onnx
from pipeline.models.vit import VisionTransformer
from pipeline.reporting.explain import explain
from pipeline.reporting.sections.first_weights_text import describe_first_weights
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import Run
from pipeline.runtime.signals import Interrupted
from pipeline.training.cross_validate import cross_validate
from pipeline.training.dry_run import make_dry_run
from tests.pipeline.tiny import (
    MODEL,
    StopAfter,
    heard,
    make_class_recipe,
    make_exams,
    make_recipe,
    quiet,
    results,
    write_class_folder,
    write_test_data,
)

STRUCTURE = {"register_tokens": 4, "layer_scale": 1e-5, "qk_norm": True, "qkv_bias": False}
FOLLOWED = (
    "model.register_tokens = 4 and model.layer_scale = 1e-05 and model.qk_norm = true and "
    "model.qkv_bias = false follow"
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as facebookresearch/dinov2 names them, of a small encoder with all that may follow."""
    torch.manual_seed(0)
    tensors = VisionTransformer(MODEL.model_copy(update=STRUCTURE)).state_dict()
    tensors["register_tokens"] = tensors.pop("reg_token")
    positions = tensors["pos_embed"]
    tensors["pos_embed"] = torch.cat([positions[:, :1], positions[:, 5:]], dim=1)
    tensors["mask_token"] = torch.zeros(1, 16)
    path = tmp_path_factory.mktemp("encoder") / "dinov2.pth"
    torch.save(tensors, path)
    return path


@pytest.fixture(scope="module")
def started(cache: Cache, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished and evaluated run that has started from them; no test changes it."""
    run, reporter = Run(tmp_path_factory.mktemp("started") / "run"), quiet()
    train_and_evaluate(make_recipe(init=str(encoder), epochs=1), cache, run, reporter=reporter)
    (run.folder / "said.txt").write_text(heard(reporter))
    return run


def test_the_run_takes_the_structure_says_so_once_and_keeps_it(started: Run, encoder: Path) -> None:
    said = (started.folder / "said.txt").read_text()
    assert said.count(f"{FOLLOWED} from train.init {encoder}") == 1
    model = load_recipe(started.settings).model
    assert model == MODEL.model_copy(update=STRUCTURE)
    names = safetensors.torch.load_file(started.fold(0).weights)
    assert names["reg_token"].shape == (1, 4, 16)


def test_report_and_card_tell_how_it_was_started(started: Run, encoder: Path) -> None:
    sentence = describe_first_weights(started)
    for part in (
        f"Training started from {encoder}, with 4 register tokens, LayerScale, normalised queries and keys",
        " and no biases of queries, keys and values.",
        "1 left out (stands for hidden patches, of which there are none here)",
        "2 left out (head)",
        "The head was new.",
    ):
        assert part in sentence
    for path in (started.report, started.report_text, started.model_card):
        assert "with 4 register tokens, LayerScale, normalised queries" in path.read_text()


def test_explanations_and_the_figures_of_the_model_leave_registers_out(started: Run, tmp_path: Path) -> None:
    folder = write_test_data(tmp_path / "data", make_exams(1, split="test"))
    path = next((folder / "test_images").rglob("*.png"))
    maps = explain(started, path).maps
    assert {values.ndim for values in maps.values()} == {2}
    page = started.report.read_text()
    assert "Position embeddings" in page
    assert "Attention distance" in page


@pytest.mark.slow
def test_it_can_be_exported(started: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert max(one.difference for one in export_onnx(started, tmp_path / "onnx")) < 1e-5


def test_it_goes_on_where_it_was_stopped_without_the_weights(
    cache: Cache, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start.pth"
    start.write_bytes(encoder.read_bytes())
    recipe, whole, run = make_recipe(init=str(start)), Run(tmp_path / "whole"), Run(tmp_path / "run")
    cross_validate(recipe, cache, whole, reporter=quiet(), folds=[0])
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.cross_validate.StopRequest", lambda: StopAfter(5))
        with pytest.raises(Interrupted):
            cross_validate(recipe, cache, run, reporter=quiet(), folds=[0])
    start.unlink()
    reporter = quiet()
    cross_validate(recipe, cache, run, reporter=reporter, folds=[0])
    assert "goes on after" in heard(reporter)
    assert results(run) == results(whole)
    cross_validate(
        load_recipe(run.settings), cache, run, reporter=quiet(), folds=[0]
    )  # as a recipe of its own


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("", r"model\.register_tokens is 2, and .* it is 4"),
        ("timm:vit_small_patch16_dinov3", "rotary positions"),
        ("timm:absent", "timm has no pretrained Vision Transformer 'absent'"),
    ],
)
def test_what_cannot_be_is_an_error_before_a_run_is_begun(
    cache: Cache, encoder: Path, tmp_path: Path, init: str, message: str
) -> None:
    recipe = make_recipe(init=init or str(encoder))
    model = recipe.model.model_copy(update={"register_tokens": 2})
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        cross_validate(recipe.model_copy(update={"model": model}), cache, run, reporter=quiet())
    assert not run.folder.exists()


def test_more_registers_than_a_model_has_are_refused_before_a_run_is_begun(
    cache: Cache, encoder: Path, tmp_path: Path
) -> None:
    many = torch.load(encoder) | {"register_tokens": torch.zeros(1, 100, 16)}
    torch.save(many, tmp_path / "many.pth")
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match=r"model\.register_tokens would be 100, which it cannot be"):
        cross_validate(make_recipe(init=str(tmp_path / "many.pth")), cache, run, reporter=quiet())
    assert not run.folder.exists()


def test_a_probe_goes_before_all_layers_learn(cache: Cache, encoder: Path, tmp_path: Path) -> None:
    """The two steps of the recipe for DINOv2: the second starts where the first has ended."""
    probe, run, reporter = Run(tmp_path / "probe"), Run(tmp_path / "run"), quiet()
    cross_validate(make_recipe(init=str(encoder), linear_probe=True), cache, probe, reporter=quiet())
    recipe = make_recipe(init=str(probe.folder), keep_head=True, layer_decay=0.7, epochs=1)
    cross_validate(recipe, cache, run, reporter=reporter)
    assert f"{FOLLOWED} from train.init {probe.folder}" in heard(reporter)
    assert "The head was new and alone was trained." in describe_first_weights(probe)
    assert "The head was taken over." in describe_first_weights(run)
    first, second = (safetensors.torch.load_file(each.fold(0).weights) for each in (probe, run))
    assert torch.equal(first["reg_token"], torch.load(encoder)["register_tokens"])  # the probe left it
    assert not torch.equal(second["reg_token"], first["reg_token"])


def test_a_plan_and_a_folder_of_classes_follow_too(cache: Cache, encoder: Path, tmp_path: Path) -> None:
    reporter = quiet()
    plan = make_dry_run(make_recipe(init=str(encoder), epochs=1), cache, reporter=reporter)
    assert plan.num_tokens == 1 + 4 + 16
    assert FOLLOWED in heard(reporter)
    recipe, reporter = make_class_recipe(in_channels=1, init=str(encoder), epochs=1), quiet()
    run = ClassRun(tmp_path / "run")
    train_classes(recipe, write_class_folder(tmp_path / "data"), run, reporter=reporter)
    assert FOLLOWED in heard(reporter)
    assert "with 4 register tokens" in describe_first_weights(run)


def test_nothing_is_told_of_weights_that_were_drawn_or_of_settings_that_cannot_be_read(
    unbroken: Run, tmp_path: Path
) -> None:
    assert describe_first_weights(unbroken) == ""
    assert describe_first_weights(Run(tmp_path)) == ""
