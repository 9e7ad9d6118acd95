"""The command `mammo`: puts the commands together, turns errors into one line and an exit code."""

import importlib.metadata
import re
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from data_prep.errors import UserError
from pipeline.cli import data, doctor, evaluate, predict, pretrain, recipes, train
from pipeline.cli.console import console, error_console, say
from pipeline.cli.help_pages import PlainCommand, PlainGroup
from pipeline.cli.stopped import describe_stop
from pipeline.runtime.signals import Interrupted, find_signal, leave

DISTRIBUTION = "mammo-vit"
COMMANDS: list[Callable[..., None]] = [
    train.demo,
    data.phantom,
    data.collect,
    data.prepare,
    data.inspect,
    data.verify,
    data.pack,
    recipes.recipes,
    pretrain.pretrain,
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
    pretty_exceptions_enable=False,
    cls=PlainGroup,
    help="Screening mammograms in; a cross-validated Vision Transformer and a submission out.",
)


def with_local_paths(command: Callable[..., None]) -> Callable[..., None]:
    """Has a command refuse addresses for its paths: one would be a folder here, any password in its name."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        console.log_console = error_console.log_console = None  # of a command before in this process
        for name, value in arguments.items():
            for path in value if isinstance(value, list | tuple) else [value]:
                if isinstance(path, Path) and re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
                    raise UserError(
                        f"{name} is an address here, and takes a path on this machine: object storage is for "
                        "the mammograms that commands read"
                    )
        command(**arguments)

    return run


for command in COMMANDS:
    app.command(cls=PlainCommand)(with_local_paths(command))


def _show_version(is_asked: bool) -> None:  # noqa: FBT001  typer gives it so
    if is_asked:
        try:
            say(f"mammo {importlib.metadata.version(DISTRIBUTION)}")
        except importlib.metadata.PackageNotFoundError:
            say("mammo of a checkout that is not installed")
        raise typer.Exit


@app.callback()
def options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Screening mammograms in; a cross-validated Vision Transformer and a submission out."""
    del debug, version  # read by main, before anything can fail, and by `_show_version`


def main() -> None:
    """Runs `mammo` and ends the process with its exit code."""
    try:
        _refuse_passwords()
        app()
    except BaseException as error:  # whatever a signal may have led to
        stop = error.number if isinstance(error, Interrupted) else find_signal()
        if stop is not None and not (isinstance(error, SystemExit) and not error.code):
            _show_traceback(error)
            if error_console.log_console is not None:
                error_console.log_console.print(describe_stop(stop), markup=False, highlight=False)
            leave(stop, describe_stop(stop))
        if isinstance(error, UserError):
            _leave(error, f"mammo: {error}", error.exit_code)
        if isinstance(error, MemoryError):
            _leave(error, "mammo: there is not enough memory for that", UserError.exit_code)
        if isinstance(error, OSError):  # of a path that nobody could foresee: no permission, a name too long
            what = f"cannot use {error.filename}: " if error.filename else ""
            _leave(error, f"mammo: {what}{error.strerror or error}", UserError.exit_code)
        raise


def _refuse_passwords() -> None:
    """Refuses them before anybody can repeat them: a wrong option is shown with its value."""
    if any(re.search("://.*:.*@", word) for word in sys.argv[1:]):
        raise UserError(
            "an address holds a user name and a password: give it without, and the credentials in the "
            "environment, where the store's own programs look for them"
        )


def _show_traceback(error: BaseException) -> None:
    if "--debug" in sys.argv:
        traceback.print_exception(error)


def _leave(error: Exception, sentence: str, exit_code: int) -> NoReturn:
    _show_traceback(error)
    error_console.print(sentence, markup=False, highlight=False)
    sys.exit(exit_code)
