"""The command `mammo`: puts the commands together, turns errors into one line and an exit code."""

import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Annotated, NoReturn

import typer

from data_prep.errors import UserError
from pipeline.cli import data, doctor, evaluate, predict, train
from pipeline.cli.console import error_console
from pipeline.runtime.signals import Interrupted
from pipeline.runtime.torchrun import is_under_torchrun

RESUMABLE = {"demo", "predict", "prepare", "train"}  # the commands that go on where they were stopped
COMMANDS: list[Callable[..., None]] = [
    train.demo,
    data.phantom,
    data.collect,
    data.prepare,
    data.inspect,
    data.verify,
    data.pack,
    train.train,
    evaluate.evaluate,
    evaluate.compare,
    predict.predict,
    predict.explain,
    predict.export,
    predict.check,
    doctor.doctor,
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Screening mammograms in; a cross-validated Vision Transformer and a submission out.",
)
for command in COMMANDS:
    app.command()(command)


@app.callback()
def options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Screening mammograms in; a cross-validated Vision Transformer and a submission out."""
    del debug  # read by main, before anything can fail


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    raise Interrupted(number)


def main() -> None:
    """Runs `mammo` and ends the process with its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except UserError as error:
        _leave(error, f"mammo: {error}", error.exit_code)
    except OSError as error:  # of a path that nobody could foresee: no permission, a name too long
        what = f"cannot use {error.filename}: " if error.filename else ""
        _leave(error, f"mammo: {what}{error.strerror or error}", UserError.exit_code)
    except Interrupted as error:
        again = shlex.join(["mammo", *sys.argv[1:]])
        command = "the same torchrun command" if is_under_torchrun() else again
        is_resumable = next((word for word in sys.argv[1:] if not word.startswith("-")), "") in RESUMABLE
        way_on = "what was done is kept, go on with" if is_resumable else "start again with"
        _leave(error, f"mammo: stopped by {error}; {way_on}: {command}", error.exit_code)


def _leave(error: Exception, sentence: str, exit_code: int) -> NoReturn:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    error_console.print(sentence, markup=False, highlight=False)
    sys.exit(exit_code)
