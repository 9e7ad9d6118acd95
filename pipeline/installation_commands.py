"""The command that looks at the installation and the machine. `pipeline.cli` puts it under `mammo`."""

from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from pipeline.doctor import Finding, examine
from pipeline.terminal import NOT_CLEAN, console, error_console, say


def doctor() -> None:
    """Check the installation and this machine.

    Looks at packages, OpenCV, codecs, GPU, cores, memory and disk, and prints for each problem what mends it;
    the exit code is 1 if there is one.
    """
    findings = list(examine(Path()))
    console.print(_tabulate(findings))
    problems = [finding for finding in findings if finding.problem]
    for finding in problems:
        error_console.print(finding.sentence, markup=False, highlight=False)
    if problems:
        raise typer.Exit(NOT_CLEAN)
    say("nothing is wrong")


def _tabulate(findings: list[Finding]) -> Table:
    table = Table(show_header=False, box=None)
    for finding in findings:
        state = Text("wrong", "bold red") if finding.problem else Text("good", "green")
        table.add_row(state, Text(finding.name, "bold"), Text(finding.found))
    return table
