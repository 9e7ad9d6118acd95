"""Whether the doctor finds what is wrong with an installation, and does not fall ill itself."""

import os
import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import doctor
from pipeline.doctor import examine, run_child


@pytest.mark.slow
def test_the_installation_that_runs_the_tests_is_sound(tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in examine(tmp_path)}
    ill = {"packages", "OpenCV", "imports", "codecs"} & {
        name for name, one in findings.items() if one.problem
    }
    assert not ill, [findings[name] for name in ill]
    assert findings["codecs"].found == "JPEG 2000, HTJ2K, JPEG"
    assert findings["cores"].found == str(len(os.sched_getaffinity(0)))


def test_opencv_that_is_there_twice_is_found_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"opencv-python", "opencv-python-headless"}
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name in present)
    finding = doctor.look_at_opencv()
    assert finding.found == "opencv-python and opencv-python-headless"
    assert finding.remedy.startswith("pip uninstall -y opencv-python opencv-python-headless && pip install")


def test_a_package_that_is_missing_or_too_old_is_named_with_what_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = metadata.version

    def pretend(name: str) -> str:
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return "1.9" if name == "torch" else version(name)

    monkeypatch.setattr(metadata, "version", pretend)
    finding = doctor.look_at_packages()
    assert "torch>=2.10 (found 1.9)" in finding.found
    assert "(found none)" in finding.found
    assert finding.problem
    assert finding.remedy.startswith("pip install 't")


def test_mammo_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution")
    assert doctor.look_at_packages().problem == "no-such-distribution is not installed"


def test_only_packages_that_cannot_be_loaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "IMPORTS", ["json", "no_such_module"])
    monkeypatch.setattr(doctor, "COMPATIBLE", "pass")
    finding = doctor.look_at_imports()
    assert finding.found == "no_such_module: ModuleNotFoundError: No module named 'no_such_module'"
    assert finding.remedy == "pip install --force-reinstall no_such_module"


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
    assert not doctor.look_at_gpu().problem
    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/nvidia-smi")
    assert doctor.look_at_gpu().problem == "not usable"
    monkeypatch.setattr(doctor, "run_child", lambda _program: (True, "1 x Tesla T4, 16 GB, fp16"))
    assert not doctor.look_at_gpu().problem


def test_a_full_disk_and_little_memory_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = SimpleNamespace(free=1e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage)
    assert doctor.look_at_disk(tmp_path).problem
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 500_000)
    assert doctor.look_at_memory().found == "2 GB"
    assert doctor.look_at_memory().problem
