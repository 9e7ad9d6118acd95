"""Whether the doctor finds what is wrong with an installation, and does not fall ill itself."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from data_prep.parallel.resource_limits import count_cores
from pipeline import doctor
from pipeline.cli import doctor as doctor_command
from pipeline.doctor import Check, run_checks, run_child

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_installation_that_runs_the_tests_is_sound(tmp_path: Path) -> None:
    checks = {check.name: check for check in run_checks(tmp_path)}
    ill = {"packages", "OpenCV", "imports", "codecs"} & {name for name, one in checks.items() if one.problem}
    assert not ill, [checks[name] for name in ill]
    assert checks["codecs"].found == "JPEG 2000, HTJ2K, JPEG"
    assert checks["cores"].found == str(count_cores())


def test_opencv_that_is_there_twice_is_found_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"opencv-python", "opencv-python-headless"}
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name in present)
    check = doctor.check_opencv()
    assert check.found == "opencv-python and opencv-python-headless"
    assert check.remedy.startswith("pip uninstall -y opencv-python opencv-python-headless && pip install")


def test_a_package_that_is_missing_or_too_old_is_named_with_what_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = metadata.version

    def pretend(name: str) -> str:
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return "1.9" if name == "torch" else version(name)

    monkeypatch.setattr(metadata, "version", pretend)
    check = doctor.check_packages()
    assert "torch>=2.11 (found 1.9)" in check.found
    assert "(found none)" in check.found
    assert check.problem
    assert check.remedy.startswith("pip install 't")


def test_mammo_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution")
    assert doctor.check_packages().problem == "no-such-distribution is not installed"


def test_only_packages_that_cannot_be_loaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES_BY_MODULE", {"json": "json", "no_such_module": "its-package"})
    monkeypatch.setattr(doctor, "COMPATIBLE", "pass")
    check = doctor.check_imports()
    assert check.found == "no_such_module: ModuleNotFoundError: No module named 'no_such_module'"
    assert check.remedy == "pip install --force-reinstall its-package"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print(1); print(2)", (True, "2")),
        ("pass", (True, "")),
        ("raise ValueError('why')", (False, "ValueError: why")),
        ("import os; os.abort()", (False, "ended with -6")),
        ("import time; time.sleep(60)", (False, "no answer within 1 s")),
    ],
)
def test_a_child_that_fails_crashes_or_hangs_is_an_answer_too(
    monkeypatch: pytest.MonkeyPatch, program: str, expected: tuple[bool, str]
) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 1 if "sleep" in program else 60)
    assert run_child(program) == expected


def test_a_driver_that_torch_cannot_use_is_a_problem_and_no_gpu_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "run_child", lambda _program: (True, ""))
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert not doctor.check_gpu().problem
    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/nvidia-smi")
    assert doctor.check_gpu().problem == "not usable"


GPUS = """
class cuda:
    is_available = lambda: True
    device_count = lambda: 1
    get_device_name = lambda number: "Tesla P100-PCIE-16GB"
    get_device_properties = lambda number: cuda
    is_bf16_supported = lambda including_emulation: False
    get_device_capability = lambda number: (6, 0)
    get_arch_list = lambda: {architectures}
    total_memory = 17.1e9
class version:
    cuda = "12.6"
bfloat16, float16 = "bf16", "fp16"
def randn(*shape, **options):
    raise RuntimeError("CUDA error: no kernel image\\nCompile with TORCH_USE_CUDA_DSA")
class SDPBackend:
    FLASH_ATTENTION = CUDNN_ATTENTION = EFFICIENT_ATTENTION = 0
sdpa_kernel = scaled_dot_product_attention = None
"""
"""What a program sees of torch beside an old GPU that computes nothing."""


def pretend_torch(patch: pytest.MonkeyPatch, folder: Path, *architectures: str) -> None:
    """Lets children find that instead of torch."""
    (folder / "torch/nn").mkdir(parents=True)
    for name in ("__init__", "nn/__init__", "nn/attention", "nn/functional"):
        (folder / f"torch/{name}.py").write_text(GPUS.replace("{architectures}", repr([*architectures])))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))


@pytest.mark.parametrize(
    ("architectures", "problem", "remedy"),
    [
        (
            ["sm_75", "sm_80", "sm_90"],
            "no kernels for sm_60",
            "older than 2.15 and built with CUDA 12.6",
        ),
        (["sm_60", "sm_75"], "computes nothing, or has no fused attention", "CUDA_VISIBLE_DEVICES="),
        ([], "computes nothing, or has no fused attention", "CUDA_VISIBLE_DEVICES="),
    ],
    ids=["not built for it", "broken", "not known what it is built for"],
)
def test_a_gpu_that_cannot_compute_is_a_problem_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, architectures: list[str], problem: str, remedy: str
) -> None:
    pretend_torch(monkeypatch, tmp_path, *architectures)
    check = doctor.check_gpu()
    assert check.found.startswith("1 x Tesla P100-PCIE-16GB, 17 GB, fp16; ")
    assert "Compile with" not in check.found
    assert check.problem == problem
    assert remedy in check.remedy


PRETEND_A_GPU = """
import torch
randn = torch.randn
torch.randn = lambda *shape, device, **options: randn(*shape, **options)
torch.cuda.device_count = lambda: 2
torch.cuda.is_bf16_supported = lambda including_emulation: {has_bf16}
"""


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_gpu_that_computes_is_none(monkeypatch: pytest.MonkeyPatch, *, has_bf16: bool) -> None:
    """The program is run by the real torch, on the CPU."""
    ended = run_child(PRETEND_A_GPU.format(has_bf16=has_bf16) + doctor.KERNELS)
    assert ended == (True, "matrix product and fused attention run")
    monkeypatch.setattr(doctor, "run_child", lambda _program: ended)
    check = doctor.check_kernels("1 x Tesla T4, 16 GB, fp16", [(7, 5)], ["sm_75"])
    assert check == Check("GPU", "1 x Tesla T4, 16 GB, fp16; matrix product and fused attention run")


@pytest.mark.parametrize(
    ("architecture", "runs", "fails"),
    [
        ("sm_86", [(8, 6), (8, 9)], [(8, 0), (9, 0), (7, 5)]),
        ("sm_90", [(9, 0)], [(8, 9), (10, 0)]),
        ("sm_90a", [(9, 0)], [(9, 1), (10, 0)]),
        ("sm_100f", [(10, 0), (10, 3)], [(12, 0), (9, 0)]),
        ("sm_120", [(12, 0), (12, 1)], [(10, 0)]),
        ("compute_80", [(8, 0), (8, 6), (9, 0), (12, 0)], [(7, 5)]),
        ("compute_120", [(12, 0), (12, 1), (13, 0)], [(9, 0)]),
        ("compute_90a", [(9, 0)], [(10, 0)]),
        ("gfx90a", [], [(9, 0)]),
    ],
)
def test_machine_code_runs_in_its_generation_and_ptx_on_all_later_gpus(
    architecture: str, runs: list[tuple[int, int]], fails: list[tuple[int, int]]
) -> None:
    assert all(doctor.runs_on(architecture, capability) for capability in runs)
    assert not any(doctor.runs_on(architecture, capability) for capability in fails)


def test_a_gpu_newer_than_torch_wants_a_newer_torch() -> None:
    check = doctor.check_kernels("1 x GPU", [(9, 0), (13, 0)], ["sm_90", "sm_120"])
    assert check.problem == "no kernels for sm_130"
    assert check.remedy.startswith("pip install --upgrade torch torchvision")


@pytest.mark.parametrize(("is_installed", "found"), [(True, "not built for this torch"), (False, "none")])
def test_a_torchvision_that_is_not_needed_is_told_without_an_error(
    monkeypatch: pytest.MonkeyPatch, is_installed: bool, found: str
) -> None:
    """A line that says good and RuntimeError would be read as neither."""
    said = "RuntimeError: operator torchvision::nms does not exist"
    monkeypatch.setattr(doctor, "run_child", lambda program: (False, said))
    monkeypatch.setattr(doctor, "_is_installed", lambda name: is_installed)
    assert doctor.check_torchvision() == Check("torchvision", f"{found}: mammo works without it")


def test_no_compiler_is_no_problem_but_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "")
    check = doctor.check_compiler()
    assert "no compiler" in check.found
    assert check.found.endswith("only train.compile needs that")
    assert not check.problem
    (tmp_path / "gcc").write_text("")
    (tmp_path / "gcc").chmod(0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert doctor.check_compiler() == Check("C compiler", "gcc")


def test_a_full_disk_and_little_memory_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = SimpleNamespace(free=1e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage)
    assert doctor.check_disk(tmp_path).problem
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)
    assert not doctor.check_shared_memory().problem
    usage.free = 64e6  # what docker gives
    assert doctor.check_shared_memory().found == f"0.06 GB free in {tmp_path}"
    assert "--shm-size 8g" in doctor.check_shared_memory().sentence
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "absent")
    assert not doctor.check_shared_memory().problem
    monkeypatch.setattr(doctor, "count_memory_bytes", lambda: 2_048_000_000)
    assert doctor.check_memory().found == "2 GB"
    assert doctor.check_memory().problem


SICK_TORCH = "raise ImportError('torch is ill too')"
"""Else most of the time would go into loading it."""


def run_mammo(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, for which modules in the folder stand in for packages."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", command],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_a_broken_opencv_does_not_break_the_doctor_who_names_it_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    (tmp_path / "torch.py").write_text(SICK_TORCH)
    ended = run_mammo(tmp_path, "doctor")
    assert ended.returncode == 1
    shown = " ".join(ended.stdout.split())
    assert "cv2: ImportError: libGL.so.1: cannot open shared object file" in shown
    mended = (
        r"imports: cannot be loaded; fix it with: pip install --force-reinstall .* opencv-python-headless "
    )
    assert re.search(mended, ended.stderr)
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_the_doctor_answers_where_the_command_line_itself_cannot_be_loaded(tmp_path: Path) -> None:
    for name in ("pandas", "typer"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is ill')")
    (tmp_path / "torch.py").write_text(SICK_TORCH)
    ended = run_mammo(tmp_path, "doctor")
    assert ended.returncode == 1
    for name in ("pandas", "typer"):
        assert f"ImportError: {name} is ill" in ended.stdout
    assert "pip install --force-reinstall pandas typer" in ended.stderr
    assert "disk" in ended.stdout
    assert "Traceback" not in ended.stderr
    other = run_mammo(tmp_path, "check")
    assert other.returncode == 2
    assert f"(ImportError: {name} is ill): `mammo doctor`" in other.stderr
    assert other.stderr.count("\n") == 1


def test_packages_cannot_be_compared_without_the_package_that_compares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    assert doctor.check_packages().remedy == "pip install packaging"


def test_the_command_ends_with_0_or_1_and_prints_each_remedy_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("disk", "9 GB"), Check("GPU", "none", "not usable", "update the driver")]
    monkeypatch.setattr(doctor_command, "run_checks", lambda _folder: checks)
    with pytest.raises(typer.Exit) as ended:
        doctor_command.doctor()
    shown = capsys.readouterr()
    assert ended.value.exit_code == 1
    assert [line.split() for line in shown.out.splitlines()] == [
        ["good", "disk", "9", "GB"],
        ["wrong", "GPU", "none"],
    ]
    assert shown.err == "GPU: not usable; fix it with: update the driver\n"
    checks.pop()
    doctor_command.doctor()
    assert "nothing is wrong" in capsys.readouterr().out
