"""What the commands share: the consoles, arguments that several take, and how they end."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.control import Control
from rich.table import Table
from rich.text import Text

from data_prep.errors import ImageError, TrainingStopped, UserError, printable
from data_prep.storage.atomic import require_writable
from data_prep.storage.places import ImagePath

if TYPE_CHECKING:
    from pipeline.runtime.distributed import ProcessGroup

NOT_CLEAN = 1  # exit code: finished, but something needs a look


class PlainConsole(Console):
    """A console whose texts cannot steer the terminal, whatever names and messages they quote.

    Attributes:
        log_console: prints the same, but for what steers the terminal; None keeps none.
    """

    log_console: Console | None = None

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as a console does."""
        plain = [printable(one) if isinstance(one, str) else one for one in objects]
        super().print(*plain, **options)
        if (
            self.log_console is not None
            and not self.quiet
            and not any(isinstance(one, Control) for one in plain)
        ):
            self.log_console.print(*plain, **options)


console = PlainConsole(soft_wrap=True)
error_console = PlainConsole(stderr=True, soft_wrap=True)


DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder in RSNA layout: train.csv, train_images/<patient_id>/<image_id>.dcm, and so on; or its "
        "URL, such as s3://BUCKET/FOLDER.",
    ),
]
DataOption = Annotated[
    str, typer.Option("--data", metavar="DATA", help="Folder in RSNA layout with test.csv, or its URL.")
]
CacheArgument = Annotated[Path, typer.Argument(metavar="CACHE", help="Cache that `mammo prepare` made.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `mammo train` made.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a setting, e.g. train.epochs=3; may be repeated."),
]
PrepareOverrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a setting, e.g. prepare.side=256; may be repeated."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0, max=1024, metavar="N", help="Processes; 0 works in this one.", show_default="one per core"
    ),
]
AllowFailures = Annotated[bool, typer.Option("--allow-failures", help="Exit 0 although some images failed.")]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Draws everything that is random.")]


def say(text: str) -> None:
    """Prints one line as it is."""
    console.print(text, markup=False, highlight=False)


@contextmanager
def in_process_group() -> Iterator["ProcessGroup"]:
    """Joins the processes that train together; the main one alone speaks of what concerns all."""
    from pipeline.runtime.distributed import (  # only here: torch is slow to import
        RankLost,
        join_process_group,
        warn_of_restarts,
    )

    with join_process_group() as group:
        console.quiet = not group.is_main
        try:
            if group.is_main and (warning := warn_of_restarts()):
                error_console.print(warning, markup=False, highlight=False)
            yield group
        except (RankLost, TrainingStopped):
            error_console.quiet = not group.is_main  # all end for the same reason
            raise


def choose_picture(image: ImagePath, out: Path | None, ending: str) -> Path:
    """Returns where the picture of an image goes, by default `<name of the image>_<ending>.png`.

    Raises:
        UserError: if there is no such image, or the picture would replace something that is not a picture.
    """
    from data_prep.preprocessing.inspection import require_png  # only here: it draws, and is slow to import

    target = out or Path(f"{image.stem}_{ending}.png")
    if isinstance(image, Path):
        if not image.is_file():
            raise UserError(f"{image} is not a file: name one mammogram")
        if target.exists() and target.samefile(image):
            raise UserError(f"{target} is the mammogram itself: choose another --out")
    require_png(target)
    require_writable(target)
    return target


def describe_file(image: ImagePath) -> str:
    """Returns an image's path, and where a link, such as `mammo collect` makes, leads to."""
    if isinstance(image, Path) and image.is_symlink():
        return f"{image}, a link to {image.resolve()}"
    return str(image)


@contextmanager
def reporting_unusable(image: ImagePath) -> Iterator[None]:
    """Says why an image cannot be used, and ends with `NOT_CLEAN`."""
    try:
        yield
    except ImageError as error:
        error_console.print(f"{describe_file(image)}: {error.reason}: {error}", markup=False, highlight=False)
        raise typer.Exit(NOT_CLEAN) from error


def show_facts(rows: Iterable[tuple[str, str]]) -> None:
    """Prints names and values."""
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")  # a path is whole, or cannot be copied
    for name, value in rows:
        table.add_row(Text(name, "bold"), Text(printable(value)))
    console.print(table)


def finish_with_failures(failures: dict[str, int], path: Path, *, allowed: bool) -> None:
    """Says how many images failed for which reason, and ends with `NOT_CLEAN` unless that is allowed.

    Without a failure does nothing.
    """
    if not failures:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in failures.items())
    error_console.print(f"failed: {reasons}; see {path}", markup=False, highlight=False)
    if not allowed:
        raise typer.Exit(NOT_CLEAN)
