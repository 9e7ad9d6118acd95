"""Templates to pages and Markdown, with settings, first weights and environment of the run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template

from data_prep.storage.files import read_own
from pipeline.reporting.sections.first_weights_text import describe_first_weights
from pipeline.runs.records import CACHE_FROM_RUN, read_environment
from pipeline.runs.run_folder import RunFolder

OWN_PACKAGE = "pipeline.reporting"
Filters = Mapping[str, Callable[..., str]]


@dataclass(frozen=True)
class Picture:
    """A drawing with its caption."""

    title: str
    svg: str
    caption: str


class Verbatim(str):
    """Text that Markdown shall have as it is."""

    __slots__ = ()


def render_page(
    template: str, run: RunFolder, *, filters: Filters, package: str = OWN_PACKAGE, **values: Any
) -> str:
    """Returns a page that extends `page.html.j2`; the run's name, settings and so on are added.

    A `run_name` among the values stands for the run's own. The template lies in the folder `templates` of
    `package`.
    """
    return _load(template, {}, filters, package).render(_describe(run) | values)


def render_markdown(template: str, run: RunFolder, *, filters: Filters, **values: Any) -> str:
    """Returns a Markdown text with the same additions; no value of them can become markup."""
    options = {"autoescape": False, "finalize": escape_markdown}
    text = _load(template, options, {"code": to_code_block, **filters}, OWN_PACKAGE)
    return text.render(_describe(run) | values)


def escape_markdown(value: object) -> str:
    """Returns text that Markdown shows as it is, also within a table's cell."""
    if isinstance(value, Verbatim):
        return value
    text = " ".join(str(value).splitlines()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`*_~\[\]])", r"\\\1", text)


def to_code_block(text: str) -> Verbatim:
    """Returns lines that Markdown shows as code, whatever they hold."""
    return Verbatim("\n".join(f"    {line}".rstrip() for line in text.splitlines()))


def _load(template: str, options: dict[str, Any], filters: Filters, package: str) -> Template:
    environment = _make_environment(package, frozenset(options.items()), frozenset(filters.items()))
    return environment.get_template(template)


@cache
def _make_environment(
    package: str, options: frozenset[tuple[str, Any]], filters: frozenset[tuple[str, Callable[..., str]]]
) -> Environment:
    """Makes what reads templates, and keeps those that it has compiled for the next page."""
    # Markdown has an escape of its own.
    environment = Environment(  # noqa: S701  # nosec B701
        loader=ChoiceLoader([PackageLoader(name, "templates") for name in (package, OWN_PACKAGE)]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **{"autoescape": True} | dict(options),  # names of folders, classes and settings come from outside
    )
    environment.filters.update(dict(filters))
    return environment


def _describe(run: RunFolder) -> dict[str, Any]:
    machine = read_environment(run.environment)
    if CACHE_FROM_RUN in machine:  # says the same without the names of this machine's folders
        machine.pop("cache", None)
    return {
        "run_name": run.name,
        "settings": read_own(run.settings).decode("utf-8", "replace") if run.settings.exists() else "",
        "first_weights": describe_first_weights(run),
        "machine": machine,
    }
