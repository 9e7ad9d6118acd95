"""The pages of `--help`: words as they are written, reflowed to the terminal's width."""

import inspect
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperArgument, TyperCommand, TyperGroup

MOST_NAMES = 0.45  # of the width, for the names of options


class PlainCommand(TyperCommand):
    """A command whose help takes no brackets for markup, and calls a value by one plain word."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Returns what follows the command's name in its usage."""
        arguments = [each for each in self.get_params(ctx) if isinstance(each, TyperArgument)]
        names = [_name(each) if each.required else f"[{_name(each)}]" for each in arguments]
        return ["[OPTIONS]", *names]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Prints the page; nothing is left for the formatter."""
        del formatter
        parameters = self.get_params(ctx)
        arguments = [each for each in parameters if isinstance(each, TyperArgument)]
        options = [each for each in parameters if each not in arguments]
        _print_page(
            self.get_usage(ctx),
            self.help or "",
            {
                "Arguments": [(_name(each), _explain(each)) for each in arguments],
                "Options": [(_name(each), _explain(each)) for each in options],
            },
        )


class PlainGroup(TyperGroup):
    """The same for all commands together."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Returns what follows the program's name in its usage."""
        del ctx
        return ["[OPTIONS]", "COMMAND", "..."]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Prints the page; nothing is left for the formatter."""
        del formatter
        options = [(_name(each), _explain(each)) for each in self.get_params(ctx)]
        commands = [
            (name, (command.help or "").partition("\n")[0]) for name, command in self.commands.items()
        ]
        _print_page(self.get_usage(ctx), self.help or "", {"Commands": commands, "Options": options})


def _name(parameter: Any) -> str:
    """Returns what is typed for a parameter: its name, and the word for its value."""
    if isinstance(parameter, TyperArgument):
        return str(parameter.metavar or parameter.name).upper()
    takes_value = not (getattr(parameter, "is_flag", False) or "--help" in parameter.opts)
    word = (parameter.metavar or str(parameter.name).upper()) if takes_value else ""
    return " ".join(filter(None, [", ".join(parameter.opts), word]))


def _explain(parameter: Any) -> str:
    """Returns what a parameter is for, and its default."""
    shown, default = getattr(parameter, "show_default", None), parameter.default
    if parameter.required:
        more = "" if isinstance(parameter, TyperArgument) else " (required)"
    elif isinstance(shown, str):
        more = f" (default: {shown})"
    else:
        has_default = isinstance(default, str | int | float | Path) and default is not False and default != ""
        more = f" (default: {default})" if has_default else ""
    return f"{parameter.help or ''}{more}"


def _print_page(usage: str, text: str, tables: dict[str, list[tuple[str, str]]]) -> None:
    console = Console(highlight=False)
    console.print(Text(usage, "bold"))
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        console.print()
        console.print(Text(" ".join(paragraph.split())))
    for title, rows in tables.items():
        if not rows:
            continue
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(max_width=int(MOST_NAMES * console.width))
        table.add_column()
        for name, explanation in rows:
            table.add_row(Text(name, "cyan"), Text(" ".join(explanation.split())))
        console.print()
        console.print(Text(title, "bold"))
        console.print(Padding(table, (0, 0, 0, 2)))
