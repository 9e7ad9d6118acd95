"""Losses: published formulas, missing targets, mixing."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from data_prep.errors import UserError
from pipeline.training.losses import (
    AUXILIARIES,
    Mixup,
    auxiliary_loss,
    binary_loss,
    count_logits,
    encode_auxiliaries,
)

NAMES = list(AUXILIARIES)
EXAMS = pd.DataFrame(
    {
        "biopsy": pd.array([1, 0, None], dtype="Int64"),
        "invasive": pd.array([0, 1, 1], dtype="Int64"),
        "difficult_negative_case": pd.array([True, False, None], dtype="boolean"),
        "BIRADS": pd.array([2, None, 0], dtype="Int64"),
        "density": ["D", "A", None],
        "view": ["CC", "MLO", "AT"],
        "age": [48.0, 68.0, np.nan],
    }
)


@given(
    st.lists(st.tuples(st.floats(-30, 30), st.floats(0, 1)), min_size=1, max_size=5),
    st.floats(0.8, 1),
    st.floats(0.1, 10),
    st.floats(0, 5),
)
def test_the_binary_loss_is_the_focal_formula(pairs, positive_label, positive_weight, gamma) -> None:
    logits, targets = np.array(pairs).T
    p, q, y = expit(logits), expit(-logits), targets * positive_label
    expected = -positive_weight * y * q**gamma * np.log(p) - (1 - y) * p**gamma * np.log(q)
    actual = binary_loss(
        torch.from_numpy(logits),
        torch.from_numpy(targets),
        positive_label=positive_label,
        positive_weight=positive_weight,
        focal_gamma=gamma,
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@given(st.integers(1, 20), st.integers(1, 200), st.floats(0.1, 50))
def test_a_weight_moves_the_best_logit_by_its_logarithm(num_positives, num_negatives, weight) -> None:
    """Whatever the shares of an image's kind are, so that taking it off undoes the weight exactly."""
    targets_B = torch.cat([torch.ones(num_positives), torch.zeros(num_negatives)]).double()
    best = np.log(num_positives / num_negatives) + np.log(weight)
    logit = torch.tensor(best, requires_grad=True, dtype=torch.float64)
    loss_B = binary_loss(logit.expand(len(targets_B)), targets_B, positive_weight=weight)
    (slope,) = torch.autograd.grad(loss_B.sum(), logit)
    assert slope.item() == pytest.approx(0, abs=1e-9 * weight * len(targets_B))


def test_by_default_it_is_cross_entropy() -> None:
    logits_B, targets_B = torch.randn(50), torch.randint(2, (50,)).float()
    expected = F.binary_cross_entropy_with_logits(logits_B, targets_B, reduction="none")
    torch.testing.assert_close(binary_loss(logits_B, targets_B), expected)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_extreme_logits_give_finite_losses_and_gradients(gamma: float) -> None:
    logits_B = torch.tensor([-1e4, 1e4, -1e4, 1e4], requires_grad=True)
    loss_B = binary_loss(logits_B, torch.tensor([1.0, 0.0, 0.0, 1.0]), focal_gamma=gamma)
    loss_B.sum().backward()
    assert loss_B.isfinite().all()
    assert logits_B.grad.isfinite().all()


def test_soft_labels_are_best_met_by_their_own_probability() -> None:
    logits_B = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    losses = binary_loss(logits_B, torch.ones_like(logits_B), positive_label=0.9)
    assert torch.sigmoid(logits_B[losses.argmin()]) == pytest.approx(0.9, abs=1e-3)


def test_targets_are_numbers_of_classes_and_what_is_missing_is_nan() -> None:
    nan = np.nan
    expected = [[1, 0, 1, 2, 3, 0, -1], [0, 1, 0, nan, 0, 1, 1], [nan, 1, nan, 0, nan, nan, nan]]
    np.testing.assert_array_equal(encode_auxiliaries(EXAMS, NAMES), np.array(expected, np.float32))


@pytest.mark.parametrize("exams", [EXAMS.drop(columns="density"), EXAMS.assign(density=None)])
def test_a_target_that_nobody_recorded_is_refused(exams: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="records no density: leave it out"):
        encode_auxiliaries(exams, NAMES)


def test_the_auxiliary_loss_is_the_mean_over_the_targets_that_are_known() -> None:
    targets_BN = torch.from_numpy(encode_auxiliaries(EXAMS, NAMES))
    logits_BK = torch.randn(3, count_logits(NAMES), dtype=torch.float64)
    x = logits_BK[1].numpy()
    losses = [-np.log(expit(-x[0])), -np.log(expit(x[1])), -np.log(expit(-x[2]))]
    losses += [-np.log(np.exp(x[6]) / np.exp(x[6:10]).sum()), -np.log(expit(x[10])), 0.5 * (x[11] - 1) ** 2]
    loss_B = auxiliary_loss(logits_BK, targets_BN, NAMES)
    assert loss_B[1].item() == pytest.approx(np.mean(losses))


def test_missing_targets_have_neither_loss_nor_gradient() -> None:
    targets_BN = torch.full((2, len(NAMES)), float("nan"))
    logits_BK = torch.randn(2, count_logits(NAMES), requires_grad=True)
    loss_B = auxiliary_loss(logits_BK, targets_BN, NAMES)
    loss_B.sum().backward()
    assert loss_B.tolist() == [0, 0]
    assert torch.equal(logits_BK.grad, torch.zeros_like(logits_BK))


def test_mixing_blends_each_image_with_its_partner() -> None:
    mixup = Mixup(torch.tensor([0.75, 0.5, 1.0]), torch.tensor([2, 0, 1]))
    images_BCHW = torch.tensor([0.0, 4.0, 8.0])[:, None, None, None].expand(3, 1, 2, 2)
    assert mixup.blend(images_BCHW)[:, 0, 0, 0].tolist() == [2.0, 2.0, 8.0]
    assert mixup.weigh(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 3.0, 3.0])).tolist() == [
        1.5,
        2.0,
        1.0,
    ]


def test_shares_are_at_least_a_half_and_partners_a_permutation() -> None:
    mixup = Mixup.draw(1000, alpha=0.2, generator=np.random.default_rng(0))
    assert mixup.share.min() >= 0.5
    assert sorted(mixup.partner.tolist()) == list(range(1000))
    again = Mixup.draw(1000, alpha=0.2, generator=np.random.default_rng(0))
    assert torch.equal(mixup.share, again.share)
