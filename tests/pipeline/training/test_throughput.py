"""Operations per image, waiting for images, and the columns of throughput.csv."""

import math
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data_prep.cache.folder import Cache
from pipeline.models.breast_transformer import BreastInputs, BreastTransformer, Places
from pipeline.models.vit import VARIANTS, VisionTransformer
from pipeline.runs.recipe import ModelSettings
from pipeline.runs.run_folder import Run
from pipeline.training import cross_validate, dry_run, throughput
from pipeline.training.throughput import (
    Meter,
    count_flops,
    count_fusion_flops,
    find_peak_flops,
    say_if_peak_unknown,
)
from tests.pipeline.tiny import heard, make_recipe, quiet


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"in_channels": 3},
        {"mlp_ratio": 2.5},
        {"attention": "explicit"},
        {"patch_size": 8},
        {"register_tokens": 4},
    ],
    ids=str,
)
def test_operations_are_those_that_torch_counts_in_a_forward_pass(change: dict) -> None:
    model = ModelSettings(**{"image_size": 64, "width": 48, "depth": 3, "num_heads": 3, **change})
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        VisionTransformer(model).forward_features(torch.empty(1, model.in_channels, 64, 64))
    assert count_flops(model) == 3 * counter.get_total_flops()


@pytest.mark.parametrize(("variant", "gflop"), [("Ti/16", 62.0), ("S/16", 189.3), ("B/16", 639.7)])
def test_published_sizes_at_512_px(variant: str, gflop: float) -> None:
    assert count_flops(ModelSettings(**VARIANTS[variant])) / 1e9 == pytest.approx(gflop, abs=0.06)


def test_waiting_is_told_from_working() -> None:
    def load():
        for number in range(3):
            time.sleep(0.02)
            yield number

    meter = Meter()
    seen = []
    for number in meter.watch(load()):
        time.sleep(0.03)
        seen.append(number)
    meter.num_rows = 6
    row = meter.summarise(ModelSettings(), "float32", "cpu")
    assert seen == [0, 1, 2]
    assert 0.06 <= meter.waited <= row["seconds"] - 0.09 + 1e-3
    assert row["loader_wait_share"] == meter.waited / row["seconds"]
    assert row["images_per_second"] == 6 / row["seconds"]
    assert row["peak_memory_mb"] > 50
    assert math.isnan(row["mfu"])


def test_utilisation_is_measured_by_the_gpus_own_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "Tesla T4")
    assert find_peak_flops("fp16", "cuda") == 65e12
    assert find_peak_flops("bf16", "cuda") is None  # it has none
    assert find_peak_flops("float32", "cuda") is None
    assert find_peak_flops("fp16", "cpu") is None
    pretend(monkeypatch, "NVIDIA L4")
    assert find_peak_flops("fp16", "cuda") == find_peak_flops("bf16", "cuda") == 121e12
    meter = Meter(num_rows=6)
    row = meter.summarise(ModelSettings(), "bf16", "cuda", num_devices=2)
    assert row["mfu"] == pytest.approx(row["images_per_second"] * count_flops(ModelSettings()) / 242e12)


def pretend(patch: pytest.MonkeyPatch, name: str) -> None:
    """Lets torch name a GPU that is not there."""
    patch.setattr(throughput.torch.cuda, "get_device_name", lambda: name)
    patch.setattr(throughput.torch.cuda, "max_memory_allocated", lambda: 0)


@pytest.mark.parametrize("name", ["NVIDIA L4 Ti", "L4", "NVIDIA A100", "NVIDIA H200 MIG 1g.18gb"])
def test_a_gpu_of_another_name_is_another_gpu_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A part of a name may be that of a faster card, or of a slice of this one."""
    pretend(monkeypatch, name)
    assert find_peak_flops("fp16", "cuda") is None
    reporter = quiet()
    say_if_peak_unknown("fp16", "cuda", reporter)
    assert heard(reporter) == f"no peak is known for {name} in fp16: MFU (of its peak) is left empty\n"


def test_nothing_is_said_of_a_known_gpu_or_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "NVIDIA H200")
    reporter = quiet()
    say_if_peak_unknown("bf16", "cuda", reporter)
    say_if_peak_unknown("float32", "cpu", reporter)
    assert heard(reporter) == ""


def test_float32_has_a_peak_with_tf32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="ieee"))
    assert find_peak_flops("float32", "cuda") is None
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="tf32"))
    assert find_peak_flops("float32", "cuda") == 156e12
    pretend(monkeypatch, "Tesla V100-SXM2-16GB")
    assert find_peak_flops("float32", "cuda") is None  # it has none


def test_a_run_and_its_plan_say_once_that_a_peak_is_unknown(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the device and precision that are used, which here are a CPU's."""
    for module in (cross_validate, dry_run):
        monkeypatch.setattr(module, "say_if_peak_unknown", lambda *asked: asked[2].say(str(asked[:2])))
    recipe, planning, training = make_recipe(epochs=1, device="auto", precision="fp16"), quiet(), quiet()
    dry_run.make_dry_run(recipe, cache, reporter=planning)
    cross_validate.cross_validate(recipe, cache, Run(tmp_path / "run"), reporter=training)
    assert heard(planning).count("('float32', 'cpu')") == heard(training).count("('float32', 'cpu')") == 1


@pytest.mark.parametrize(("fusion", "num_images"), [("views", 2), ("exam", 4)])
def test_the_layers_over_images_are_counted_and_cost_little(fusion: str, num_images: int) -> None:
    """Torch counts; the heads are left out, as of single images."""
    model = ModelSettings(image_size=64, width=32, num_heads=2, fusion=fusion, attention="explicit")
    slots = torch.arange(num_images)[None]
    places = Places(slots, torch.zeros_like(slots), torch.zeros_like(slots))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        BreastTransformer(model)(BreastInputs(torch.zeros(num_images, 1, 64, 64), places))
    heads = 2 * model.width * (num_images + 1)
    counted = count_flops(model, images_per_breast=num_images) * num_images
    assert counted == pytest.approx(3 * (counter.get_total_flops() - heads))
    real = ModelSettings(fusion=fusion, kept_patches=383)
    share = 3 * count_fusion_flops(real, num_images) / num_images / count_flops(real)
    assert share < 0.01
