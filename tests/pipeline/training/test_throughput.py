"""Operations per image, waiting for images, and the columns of throughput.csv."""

import math
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.vit import VARIANTS, VisionTransformer
from pipeline.runs.recipe import ModelSettings
from pipeline.training import throughput
from pipeline.training.throughput import Meter, count_flops, find_peak_flops


@pytest.mark.parametrize(
    "change",
    [{}, {"in_channels": 3}, {"mlp_ratio": 2.5}, {"attention": "explicit"}, {"patch_size": 8}],
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
    meter.num_images = 6
    row = meter.summarise(ModelSettings(), "float32", "cpu")
    assert seen == [0, 1, 2]
    assert 0.06 <= meter.waited <= row["seconds"] - 0.09 + 1e-3
    assert row["loader_wait_share"] == meter.waited / row["seconds"]
    assert row["images_per_second"] == 6 / row["seconds"]
    assert row["peak_memory_mb"] > 50
    assert math.isnan(row["mfu"])


def test_utilisation_is_measured_by_the_gpus_own_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput.torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert find_peak_flops("fp16", "cuda") == 65e12
    assert find_peak_flops("bf16", "cuda") is None  # it has none
    assert find_peak_flops("float32", "cuda") is None
    assert find_peak_flops("fp16", "cpu") is None
