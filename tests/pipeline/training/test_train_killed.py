"""Real training processes, killed by SIGKILL at chosen moments: the next ones end as if nothing had been."""

import signal
from pathlib import Path

import pytest
import tomli_w

from data_prep.cache.folder import Cache
from data_prep.storage.locks import locked
from pipeline.runs.run_folder import Run
from pipeline.training.checkpoint import load_checkpoint
from tests import forked
from tests.pipeline.tiny import make_recipe, results, torchrun

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from pipeline.__main__ import main
from pipeline.training import checkpoint, trainer, validation
from tests.killing import die_in_call

name, number, rank = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1)
is_mine = os.environ.get("RANK", "0") == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"

def write_half(state, stream):
    stream.write(b"half of a checkpoint")
    stream.flush()

if not is_mine:
    pass
elif name == "step":
    die_in_call(trainer.Trainer, "take_step", number)
elif name == "end of epoch":
    die_in_call(trainer.Trainer, "_end_epoch", number)
elif name == "held-out images":
    die_in_call(trainer.Trainer, "_judge", number)
elif name == "rename":
    die_in_call(Path, "replace", number)
elif name == "save":
    die_in_call(checkpoint.torch, "save", number, half_done=write_half)
elif name == "error":
    def fail(*arguments):
        raise RuntimeError("out of memory")
    trainer.Trainer._learning_rate = fail
elif name == "signals":
    def signal_and_step(self, *arguments, step=trainer.Trainer.take_step):
        if self.state.batch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)
    trainer.Trainer.take_step = signal_and_step
elif name == "signal in validation":
    def signal_and_predict(*arguments, predict=validation.predict_held_out, **options):
        if options:  # not in the rehearsal
            time.sleep(number)  # the other rank is done with its share
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(3)
        return predict(*arguments, **options)
    validation.predict_held_out = signal_and_predict
main()
"""


def train(cache: Cache, run: Run, *, workers: int, moment: str = "never", number: int = 0) -> int:
    """Trains fold 0 in a process of its own and returns its exit code."""
    config = run.folder.parent / "config.toml"
    config.write_text(tomli_w.dumps(make_recipe(workers=workers).model_dump()))
    finished = forked.run(
        *["-c", PROGRAM, moment, str(number), "0", "train", str(config)],
        *["--cache", str(cache.folder), "--run", str(run.folder), "--fold", "0"],
    )
    assert "Traceback" not in finished.stderr or moment == "error", finished.stderr
    return finished.returncode


def train_with_two(cache: Cache, run: Run, moment: str, number: int, rank: int) -> str:
    """Trains fold 0 with two ranks, one of which dies once, and returns what they said."""
    config, program = run.folder.parent / "config.toml", run.folder.parent / "program.py"
    config.write_text(tomli_w.dumps(make_recipe(workers=2).model_dump()))
    program.write_text(PROGRAM)
    finished = torchrun(
        *["--max-restarts=2", "--", str(program), moment, str(number), str(rank), "train", str(config)],
        *["--cache", str(cache.folder), "--run", str(run.folder), "--fold", "0"],
    )
    assert finished.returncode == (1 if moment.startswith("signal") else 0), finished.stderr
    return finished.stdout + finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number", "workers"),
    [
        ("step", 1, 0),
        ("step", 2, 2),
        ("step", 6, 0),
        ("held-out images", 2, 2),
        ("end of epoch", 1, 0),
        ("save", 1, 0),
        ("save", 2, 2),
        ("rename", 9, 0),
    ],
    ids=str,
)
def test_a_process_killed_at_any_moment_leaves_no_trace(
    cache: Cache, unbroken: Run, tmp_path: Path, moment: str, number: int, workers: int
) -> None:
    """In the first step, within an epoch, in validation, at its end, half way through a checkpoint."""
    run = Run(tmp_path / "run")
    assert train(cache, run, workers=workers, moment=moment, number=number) == -signal.SIGKILL
    assert not run.fold(0).is_finished
    assert train(cache, run, workers=workers) == 0
    of_fold_0 = {name for name in results(unbroken) if name.startswith("fold_0/")}
    assert len(of_fold_0) == 3
    for name in of_fold_0:
        assert results(run)[name] == results(unbroken)[name], name
    assert not [path.name for path in run.folder.rglob(".tmp-*")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number", "rank"),
    [("step", 1, 1), ("step", 5, 0), ("held-out images", 2, 1), ("save", 2, 0)],
    ids=str,
)
def test_torchrun_restarts_after_a_rank_was_killed_and_ends_with_the_same_weights(
    cache: Cache, unbroken_pair: Run, tmp_path: Path, moment: str, number: int, rank: int
) -> None:
    """In the first step, within an epoch, in validation, half way through a checkpoint."""
    run = Run(tmp_path / "run")
    said = train_with_two(cache, run, moment, number, rank)
    assert "exitcode: -9" in said
    of_fold = {name: content for name, content in results(run).items() if name.startswith("fold_0/")}
    assert len(of_fold) == 3
    for name, content in of_fold.items():
        assert content == results(unbroken_pair)[name], name
    assert not [path.name for path in run.folder.rglob(".tmp-*")]


@pytest.mark.slow
def test_an_error_ends_the_process_though_its_workers_ignore_signals(cache: Cache, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert train(cache, run, workers=2, moment="error") == 1
    with locked(run.fold(0).folder):  # no worker is left that holds it
        pass


@pytest.mark.slow
def test_workers_die_with_a_killed_trainer_and_let_go_of_its_folder(cache: Cache, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert train(cache, run, workers=2, moment="step", number=2) == -signal.SIGKILL
    with locked(run.fold(0).folder):
        pass


@pytest.mark.slow
def test_a_sigterm_that_comes_twice_is_one_stop(cache: Cache, unbroken: Run, tmp_path: Path) -> None:
    """A job system sends it to the launcher, which passes it on, and to the process itself."""
    run = Run(tmp_path / "run")
    assert train(cache, run, workers=0, moment="signals") == 128 + signal.SIGTERM
    assert run.fold(0).last.exists()
    assert train(cache, run, workers=0) == 0
    assert results(run)["fold_0/model.safetensors"] == results(unbroken)["fold_0/model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_in_the_validation_of_two_ranks_keeps_the_epoch_and_is_called_a_stop(
    cache: Cache, tmp_path: Path, rank: int
) -> None:
    """One rank is still predicting, the other waits for its share."""
    run = Run(tmp_path / "run")
    said = train_with_two(cache, run, "signal in validation", 2, rank)
    assert said.count("mammo: stopped by SIGTERM; what was done is kept, go on with: the same torchrun") == 1
    checkpoint = load_checkpoint(run.fold(0))
    assert checkpoint is not None
    assert checkpoint["counters"]["batch"] > 0
