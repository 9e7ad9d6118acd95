"""The frame of every report: template, settings, environment. Knows no figure and no kind of run."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.run import RunFolder


@dataclass(frozen=True)
class Picture:
    """A drawing with its caption."""

    title: str
    svg: str
    caption: str


def render_page(
    template: str, run: RunFolder, *, filters: dict[str, Callable[..., str]], **values: Any
) -> str:
    """Returns a page that extends `page.html.j2`; the run's name, settings and environment are added."""
    environment = Environment(
        loader=PackageLoader("pipeline", "."),
        autoescape=True,  # names of folders, classes and settings come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template).render(
        run_name=run.name,
        settings=run.settings.read_text("utf-8") if run.settings.exists() else "",
        machine=read_environment(run.environment),
        **values,
    )


def read_environment(path: Path) -> dict[str, str]:
    """Reads `environment.json` as names and values, nested names joined by a dot; empty without the file."""
    return dict(_flatten(json.loads(path.read_text("utf-8")))) if path.exists() else {}


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows
