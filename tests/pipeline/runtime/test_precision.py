"""Device and precision: what is asked for where the hardware has it, else the nearest."""

import pytest
import torch

from data_prep.errors import UserError
from pipeline.runtime.precision import DTYPES, autocast, choose_device, choose_precision


@pytest.mark.parametrize(
    ("wanted", "device", "has_bf16", "expected"),
    [
        ("bf16", "cuda", True, "bf16"),
        ("bf16", "cuda", False, "fp16"),  # a T4
        ("fp16", "cuda", True, "fp16"),
        ("float32", "cuda", True, "float32"),
        ("float32", "cuda", False, "float32"),
        ("bf16", "cpu", True, "bf16"),
        ("bf16", "cpu", False, "float32"),
        ("fp16", "cpu", True, "float32"),
        ("float32", "cpu", True, "float32"),
    ],
)
def test_the_precision_is_the_nearest_that_the_hardware_has(
    monkeypatch: pytest.MonkeyPatch, wanted, device: str, has_bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16, "amx_tile": False})
    assert choose_precision(wanted, device) == expected


@pytest.mark.parametrize(
    ("wanted", "has_gpu", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_auto_takes_the_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, wanted: str, has_gpu: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert choose_device(wanted) == expected


def test_a_gpu_that_is_asked_for_and_not_there_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r'train\.device is "cuda".*set it to "auto" or "cpu"'):
        choose_device("cuda")


@pytest.mark.parametrize(("precision", "dtype"), DTYPES.items())
def test_autocast_computes_matrix_products_in_the_precision(precision, dtype: torch.dtype) -> None:
    with autocast(precision, "cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == dtype
