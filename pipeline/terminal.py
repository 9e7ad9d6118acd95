"""What the commands share: the consoles, arguments that several take, and how they end. Knows no command."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

NOT_CLEAN = 1  # exit code: finished, but something needs a look

console = Console(soft_wrap=True)
error_console = Console(stderr=True, soft_wrap=True)

DataFolder = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Folder in RSNA layout: train.csv, train_images/<patient_id>/<image_id>.dcm, and so on.",
    ),
]
DataOption = Annotated[Path, typer.Option("--data", help="Folder in RSNA layout with test.csv.")]
CacheFolder = Annotated[Path, typer.Argument(metavar="CACHE", help="Cache that `mammo prepare` made.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `mammo train` made.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a setting, e.g. train.epochs=3; may be repeated."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes; 0 works in this one.", show_default="one per core"),
]
AllowFailures = Annotated[bool, typer.Option("--allow-failures", help="Exit 0 although some images failed.")]
Seed = Annotated[int, typer.Option(min=0, help="Draws everything that is random.")]


def say(text: str) -> None:
    """Prints one line as it is."""
    console.print(text, markup=False, highlight=False)


def finish_with_failures(failures: dict[str, int], path: Path, *, allowed: bool) -> None:
    """Says how many images failed for which reason, and ends with `NOT_CLEAN` unless that is allowed."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in failures.items())
    error_console.print(f"failed: {reasons}; see {path}", markup=False, highlight=False)
    if not allowed:
        raise typer.Exit(NOT_CLEAN)
