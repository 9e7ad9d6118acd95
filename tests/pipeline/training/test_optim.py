"""Optimizer groups, the learning rate's course, averaged weights, and which arithmetic a machine gets."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.vit import VisionTransformer
from pipeline.runtime.torchvision_compat import allow_torchvision_import
from pipeline.training.optim import Average, freeze, learning_rate_at, make_optimizer, set_learning_rate
from tests.pipeline.tiny import MODEL, TRAIN

allow_torchvision_import()

from timm.utils import ModelEmaV3  # noqa: E402  after the line above


@pytest.mark.parametrize("changes", [{}, {"register_tokens": 2, "qk_norm": True, "layer_scale": 0.1}])
def test_only_matrices_are_decayed(changes: dict) -> None:
    model = VisionTransformer(MODEL.model_copy(update=changes))
    groups = make_optimizer(model, TRAIN.model_copy(update={"weight_decay": 0.3})).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    names = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(decay) == len(names)
    kernels = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    decayed = {name for name, value in names.items() if value == 0.3}
    assert decayed == {
        "patch_embed.proj.weight",
        "head.weight",
        *(f"blocks.{block}.{kernel}" for block in range(MODEL.depth) for kernel in kernels),
    }
    assert all(value == 0.0 for name, value in names.items() if name not in decayed)


def test_a_learning_rate_is_set_in_all_groups() -> None:
    optimizer = make_optimizer(VisionTransformer(MODEL), TRAIN)
    set_learning_rate(optimizer, 0.125)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}


def test_each_layer_learns_slower_than_the_one_above() -> None:
    model = VisionTransformer(MODEL.model_copy(update={"register_tokens": 2}))
    optimizer = make_optimizer(model, TRAIN.model_copy(update={"layer_decay": 0.5}))
    set_learning_rate(optimizer, 1.0)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    rates = {name: rate[id(parameter)] for name, parameter in model.named_parameters()}
    assert MODEL.depth == 2
    assert rates["head.weight"] == rates["norm.bias"] == 1.0
    assert {value for name, value in rates.items() if name.startswith("blocks.1.")} == {0.5}
    assert {value for name, value in rates.items() if name.startswith("blocks.0.")} == {0.25}
    embedding = ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.bias")
    assert {rates[name] for name in embedding} == {0.125}


@pytest.mark.parametrize(
    ("change", "trained"),
    [
        ({}, ["", "blocks.0.", "blocks.1.", "head."]),
        ({"frozen_layers": 1}, ["blocks.1.", "head."]),
        ({"frozen_layers": 2}, ["head."]),
        ({"linear_probe": True}, ["head."]),
    ],
    ids=str,
)
def test_frozen_parameters_do_not_move(change: dict, trained: list[str]) -> None:
    settings = TRAIN.model_copy(update={**change, "weight_decay": 0.5})
    model = VisionTransformer(MODEL)
    freeze(model, settings)
    optimizer = make_optimizer(model, settings)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(2):  # the head starts at zero and passes nothing on at first
        optimizer.zero_grad()
        model(torch.randn(4, 1, 32, 32)).sum().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        stem = "head." if name.startswith("head.") else name[:9] if name.startswith("blocks.") else ""
        if name.startswith("norm."):
            assert torch.equal(parameter, before[name]) == settings.linear_probe, name
        else:
            assert torch.equal(parameter, before[name]) == (stem not in trained), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion", "muon"])
def test_every_optimizer_lowers_a_simple_loss_and_goes_on_from_its_state(optimizer: str) -> None:
    rate = {"adamw": 1e-2, "sgd": 0.1, "lion": 1e-3, "muon": 1e-2}[optimizer]
    settings = TRAIN.model_copy(update={"optimizer": optimizer, "learning_rate": rate})
    torch.manual_seed(0)
    images_BCHW, targets_B1 = torch.randn(8, 1, 32, 32), torch.tensor([[0.0], [1.0]] * 4)
    model = VisionTransformer(MODEL)
    made = make_optimizer(model, settings)

    def step() -> float:
        made.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images_BCHW), targets_B1)
        loss.backward()
        made.step()
        return loss.item()

    losses = [step() for _ in range(30)]
    assert losses[-1] < 0.98 * losses[0]
    state = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": made.state_dict()}, state)
    expected = [step() for _ in range(3)]
    saved = torch.load(io.BytesIO(state.getvalue()), weights_only=True)
    model.load_state_dict(saved["model"])
    made = make_optimizer(model, settings)
    made.load_state_dict(saved["optimizer"])
    assert [step() for _ in range(3)] == expected


@given(st.integers(1, 500), st.integers(0, 500), st.floats(1e-6, 1.0))
def test_the_learning_rate_rises_to_its_peak_and_falls_to_nearly_nothing(
    num_steps: int, warmup_steps: int, peak: float
) -> None:
    warmup_steps = min(warmup_steps, num_steps - 1)
    course = [
        learning_rate_at(step, num_steps=num_steps, warmup_steps=warmup_steps, peak=peak)
        for step in range(num_steps)
    ]
    assert course[0] == pytest.approx(peak / (warmup_steps + 1))  # 0 would waste the first step
    assert course[warmup_steps] == pytest.approx(peak)
    rising, falling = course[: warmup_steps + 1], course[warmup_steps:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert all(0.0 < rate <= peak * (1 + 1e-12) for rate in course)


def test_the_learning_rate_is_half_at_half_way_and_zero_after_the_last_step() -> None:
    rate = {step: learning_rate_at(step, num_steps=110, warmup_steps=10, peak=0.5) for step in (60, 110)}
    assert rate[60] == pytest.approx(0.25)
    assert rate[110] == pytest.approx(0.0, abs=1e-15)


def test_the_average_follows_its_formula() -> None:
    """Of a model whose only weight is the step's number."""
    model = torch.nn.Linear(1, 1, bias=False)
    average = Average(model, 0.9)
    expected = 0.0
    for step in range(100):
        torch.nn.init.constant_(model.weight, float(step))
        average.update(step)
        decay = min(0.9, 1 - (1 + max(0, step - 1)) ** (-2 / 3))
        expected = decay * expected + (1 - decay) * step
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_average_is_that_of_timm_to_the_last_bit() -> None:
    model = VisionTransformer(MODEL)
    average, expected = Average(model, 0.95), ModelEmaV3(model, decay=0.95, use_warmup=True)
    for step in range(60):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        average.update(step)
        expected.update(model, step)
        for name, weight in average.module.state_dict().items():
            assert torch.equal(weight, expected.module.state_dict()[name]), (step, name)


def test_the_average_starts_as_the_model_in_evaluation_mode() -> None:
    model = VisionTransformer(MODEL)
    average = Average(model, 0.999)
    assert not average.module.training
    for name, weight in average.module.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_a_warm_up_longer_than_the_training_does_not_reach_the_peak() -> None:
    assert learning_rate_at(3, num_steps=4, warmup_steps=9, peak=1.0) == pytest.approx(0.4)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_optimizers_that_torch_has_fused_are(optimizer: str) -> None:
    groups = make_optimizer(VisionTransformer(MODEL), TRAIN.model_copy(update={"optimizer": optimizer}))
    assert all(group["fused"] for group in groups.param_groups)
