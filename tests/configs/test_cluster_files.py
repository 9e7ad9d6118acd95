"""The files for Slurm and Kubernetes: each runs here as far as one machine can stand for several."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
import yaml

from data_prep.cache.folder import CacheSettings
from data_prep.preprocessing.settings import PrepareSettings
from pipeline.runs.run_folder import Run
from pipeline.training.cross_validate import cross_validate
from tests.data_prep.data_folder import make_data, prepare_folder, snapshot
from tests.isolation import with_own_processes
from tests.pipeline.tiny import make_exams, make_recipe, quiet, write_cache

ROOT = Path(__file__).parents[2]
FILES = ROOT / "configs/cluster"
PROGRAMS = {  # Slurm's, with one machine in the place of each of its nodes
    "scontrol": "echo 127.0.0.1",
    "srun": 'for node in $(seq "$SLURM_NNODES"); do "$@" & started+=($!); done\n'
    'for process in "${started[@]}"; do wait "$process"; done',
}


def sbatch(name: str, folder: Path, *apart: str, nodes: int, **variables: str) -> None:
    """Runs a batch file as Slurm does: in the folder where it was given, with what it was granted."""
    programs = folder / "bin"
    programs.mkdir()
    for program, text in PROGRAMS.items():
        (programs / program).write_text(f"#!/bin/bash\nset -e\n{text}\n")
        (programs / program).chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    granted = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": str(nodes), "SLURM_JOB_NODELIST": "here"}
    environment = (
        os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | granted | variables
    )
    ended = subprocess.run(
        [*apart, "bash", str(FILES / name)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_machines_bound_together_by_ray_prepare_like_one(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    data = make_data(tmp_path / "data", 6)
    settings = CacheSettings(split="train", prepare=PrepareSettings())
    prepare_folder(data, tmp_path / "alone", settings=settings)
    granted = {"SLURM_CPUS_PER_TASK": "1", "RAY_PORT": str(free_port())}
    apart = with_own_processes()  # where Ray sees no other test's Ray
    sbatch("prepare.sbatch", tmp_path, *apart, nodes=1, DATA="data", CACHE="together", **granted)
    (tmp_path / "together/qc.html").unlink()  # of the command alone
    assert snapshot(tmp_path / "together") == snapshot(tmp_path / "alone")


@pytest.mark.slow
def test_a_fold_over_two_machines_is_that_of_one(tmp_path: Path) -> None:
    """Two torchruns, as Slurm starts them on two nodes, meet and train like one process."""
    recipe = make_recipe(accumulation=2)
    config = tmp_path / "recipe.toml"
    config.write_text(tomli_w.dumps(make_recipe().model_dump()))
    cache = write_cache(tmp_path / "cache", make_exams())
    sbatch(
        "train.sbatch",
        tmp_path,
        nodes=2,
        SLURM_GPUS_ON_NODE="1",
        SLURM_ARRAY_TASK_ID="0",
        RECIPE=str(config),
        FIRST_PORT=str(free_port()),
    )
    cross_validate(recipe, cache, Run(tmp_path / "alone"), reporter=quiet(), folds=[0])
    for name in ("model.safetensors", "oof.csv"):
        one, other = (tmp_path / run / "fold_0" / name for run in ("alone", "reports/slurm"))
        assert one.read_bytes() == other.read_bytes(), name


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_kubernetes_runs_what_slurm_runs() -> None:
    job = yaml.safe_load((FILES / "kuberay.yaml").read_text())
    slurm = (FILES / "prepare.sbatch").read_text().split("-- \\\n")[1]
    cluster = job["spec"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    containers = [container for pod in pods for container in pod["containers"]]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    places = r'/data/\S+|auto|"\$\w+"'
    assert re.sub(places, "X", job["spec"]["entrypoint"]).split() == re.sub(places, "X", slurm).split()
    assert cluster["authOptions"] == {"mode": "token"}
    assert len({container["image"] for container in containers}) == 1
    for pod, container in zip(pods, containers, strict=True):
        mounted = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == mounted
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
