"""The command that looks at the installation and the machine."""

from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from data_prep.errors import printable
from pipeline.cli.console import NOT_CLEAN, console, error_console, say
from pipeline.doctor import Check, run_checks


def doctor() -> None:
    """Check the installation and this machine.

    Looks at packages, OpenCV, codecs, GPU, compiler, cores, memory and disk, and prints for each problem what
    mends it; the exit code is 1 if there is one.
    """
    checks = list(run_checks(Path()))
    console.print(_tabulate(checks))
    problems = [check for check in checks if check.problem]
    for check in problems:
        error_console.print(check.sentence, markup=False, highlight=False)
    if problems:
        raise typer.Exit(NOT_CLEAN)
    say("nothing is wrong")


def _tabulate(checks: list[Check]) -> Table:
    table = Table(show_header=False, box=None)
    for check in checks:
        state = Text("wrong", "bold red") if check.problem else Text("good", "green")
        table.add_row(state, Text(check.name, "bold"), Text(printable(check.found)))
    return table
