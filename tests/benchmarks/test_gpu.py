"""The benchmark of a GPU: each of its parts works, in small on a CPU, and none stops the others."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).with_name("gpu.py")
HEADER = "| part | what | figure | aim |"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which finds its neighbours as one that is run does."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("gpu")


def run_script(*arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def read_rows(said: str) -> list[list[str]]:
    """The cells of a table, without its head."""
    lines = [line for line in said.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


@pytest.mark.slow
def test_every_part_works_in_small(gpu: ModuleType) -> None:
    said = run_script("--smoke")
    assert said.startswith("## ")
    assert f"torch {torch.__version__}" in said
    assert HEADER in said
    rows = read_rows(said)[1:]
    assert {row[0] for row in rows} == set(gpu.PARTS)
    assert all(len(row) == 4 for row in rows)
    bad = [row for row in rows if re.match("failed|out of memory", row[2])]
    absent = {"EFFICIENT_ATTENTION", "CUDNN_ATTENTION"}  # a CPU has none
    assert [row for row in bad if row[1].partition(",")[0] not in absent] == []
    figures = {(row[0], row[1]): row[2] for row in rows}
    assert figures["resume", "stopped and gone on with, deterministic"] == "the same to the last bit"
    assert figures["memory", "too little"].startswith("exit code 3: fold 0 with train.batch_size 32")
    assert len([row for row in rows if row[0] == "speed" and "images/s" in row[2]]) == 4
    errors = [float(row[2].split()[1].strip(",")) for row in rows if row[0] == "gradients" and row not in bad]
    assert len(errors) >= 10
    assert max(errors) < 1e-2


def test_without_a_gpu_it_says_so(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    gpu.main()
    assert capsys.readouterr().out.startswith("nothing was measured: no GPU, torch ")


@pytest.mark.parametrize(
    ("ending", "limit_s", "row"),
    [
        ("pass", 60, None),
        ("raise ValueError('a | b')", 60, "failed: ended with 1: ValueError: a / b"),
        ("import os; os.abort()", 60, "failed: ended with -6: "),
        ("import time; time.sleep(600)", 2, "not measured: the part's 2 s are over"),
    ],
)
def test_a_part_that_fails_or_hangs_keeps_the_rows_that_it_had(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str], ending: str, limit_s: float, row: str | None
) -> None:
    program = f"print('noise'); print('| speed | ViT | 1 images/s | 2 |', flush=True); {ending}"
    gpu.run_part("speed", [sys.executable, "-c", program], limit_s)
    said = capsys.readouterr().out
    expected = [["speed", "ViT", "1 images/s", "2"]]
    if row is not None:
        expected.append(["speed", "what follows", row.strip(), ""])
    assert read_rows(said) == expected


def test_a_case_that_fails_is_a_row_and_the_next_is_measured(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = {"batch 256": torch.OutOfMemoryError("CUDA"), "compiled": RuntimeError("no g++\nhint")}
    for what, error in errors.items():
        with gpu.guarded("speed", what):
            raise error
    assert read_rows(capsys.readouterr().out) == [
        ["speed", "batch 256", "out of memory", ""],
        ["speed", "compiled", "failed: RuntimeError: no g++", ""],
    ]


def test_all_parts_together_take_less_than_ten_minutes(gpu: ModuleType) -> None:
    assert sum(limit_s for limit_s, _ in gpu.PARTS.values()) < 600
