"""Where a command runs: on this machine without ever importing ray, and what is said when it cannot."""

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.errors import UserError
from data_prep.parallel import ray_cluster as cluster_module
from pipeline.cli.ray_options import open_cluster
from tests import forked
from tests.data_prep.data_folder import make_data

PROGRAM = """
import sys
from pipeline.cli import app
try:
    app.main()
finally:
    assert "ray" not in sys.modules and "data_prep.parallel.ray_cluster" not in sys.modules
"""


def test_ray_is_not_imported_on_one_machine(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 2)
    command = ["-c", PROGRAM, "prepare", str(data), "--cache", str(tmp_path / "cache")]
    ended = forked.run(*command, "--set", "prepare.side=32", "--workers", "1")
    assert ended.returncode == 0, ended.stderr


def test_this_machine_has_no_cluster() -> None:
    with open_cluster("local", None) as cluster:
        assert cluster is None


def test_an_address_needs_the_engine_that_has_one() -> None:
    with (
        pytest.raises(UserError, match="--address auto goes with --engine ray"),
        open_cluster("local", "auto"),
    ):
        pass


def test_what_is_not_installed_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(UserError, match=r'pip install "mammo-vit\[cluster\]"'),
        open_cluster("ray", None),
    ):
        pass


@pytest.mark.parametrize(("cpus", "expected"), [(0, "waiting for one to join"), (1, "")])
def test_a_cluster_that_cannot_work_yet_is_mentioned(
    cpus: int, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = SimpleNamespace(count=lambda resource: {"CPU": cpus}[resource])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(cluster_module, "connect", lambda address: nullcontext(cluster))
    with open_cluster("ray", "auto") as opened:
        assert opened is cluster
    said = capsys.readouterr().out
    assert expected in said
    assert bool(said) == (cpus == 0)
