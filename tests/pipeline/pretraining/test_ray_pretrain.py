"""Encoders on the machines of a Ray cluster: they are stopped, go on, and are those of one machine."""

import signal
from pathlib import Path

import pytest

from data_prep.cache.folder import Cache
from data_prep.settings import dump_settings
from pipeline.runs.pretrain_run import PretrainRun
from tests.forked import Forked
from tests.pipeline.pretraining.test_pretrain import bytes_of, make_pretrain_recipe, run_all
from tests.ray_nodes import Nodes, wait_until

pytestmark = pytest.mark.slow

EPOCHS = 30


def test_encoders_that_are_stopped_go_on_to_those_of_one_machine(
    nodes: Nodes, cache: Cache, tmp_path: Path
) -> None:
    nodes.have(2)
    here, there = (
        run_all(tmp_path / "here", cache, like=cache.folder, epochs=EPOCHS),
        PretrainRun(tmp_path / "there"),
    )
    config = tmp_path / "mae.toml"
    config.write_text(dump_settings(make_pretrain_recipe(epochs=EPOCHS)))
    command = [
        "-m",
        "pipeline",
        "pretrain",
        str(config),
        "--cache",
        str(cache.folder),
        "--run",
        str(there.folder),
    ]
    command += ["--for", str(cache.folder), "--engine", "ray", "--address", nodes.address]
    with Forked(*command, new_session=True) as pretraining:
        wait_until(
            lambda: (
                pretraining.poll() is not None
                or any(there.training(fold).previous.exists() for fold in (0, 1))
            )
        )
        pretraining.send_signal(signal.SIGTERM)
        _, errors = pretraining.communicate(timeout=600)
    assert pretraining.returncode == 143, errors
    with Forked(*command, new_session=True) as pretraining:
        said, errors = pretraining.communicate(timeout=600)
    assert pretraining.returncode == 0, errors
    assert "goes on after epoch" in said
    assert f"loss and reconstructions: {there.report}" in said
    assert bytes_of(there) == bytes_of(here)
