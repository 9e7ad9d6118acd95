"""The command that shows the recipes that come with mammo, and copies one."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.console import say
from pipeline.runs.shipped_recipes import copy_recipe, describe_recipe, list_recipes


def complete_recipe(incomplete: str) -> list[str]:
    """Returns the recipes whose names begin so, for a shell that completes them."""
    return [name for name in list_recipes() if name.startswith(incomplete)]


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Recipe to copy.", autocompletion=complete_recipe),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to copy it to.", show_default="NAME.toml in this folder")
    ] = None,
) -> None:
    """List the recipes that come with mammo, or copy one to edit.

    `mammo train` takes a recipe by its name, or the path of a file of your own.
    """
    if name is None:
        shipped = list_recipes()
        for each, path in shipped.items():
            say(f"{each:{max(map(len, shipped))}}  {describe_recipe(path)}")
        return
    path = copy_recipe(name, out)
    say(f"{path}: edit it, then `mammo train {path} --cache CACHE`")
