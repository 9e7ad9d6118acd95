"""Strict settings: frozen pydantic models from TOML files and `--set a.b=c`."""

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from data_prep.errors import UserError
from data_prep.storage.files import parse_toml, read_input


class StrictSettings(BaseModel):
    """Frozen; an unknown name, a value out of range and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Settings = TypeVar("Settings", bound=StrictSettings)


def load_settings(kind: type[Settings], path: Path | None, overrides: Iterable[str] = ()) -> Settings:
    """Reads a TOML file (None: all defaults) and applies overrides such as `train.epochs=3`, in order.

    Raises:
        UserError: naming every problem at once, with dotted paths.
    """
    values = _read_toml(path) if path else {}
    for override in overrides:
        _apply_override(values, override)
    source = f"{path}" if path else "--set"
    return validate_settings(kind, values, source)


def validate_settings(kind: type[Settings], values: dict[str, Any], source: str) -> Settings:
    """Makes settings of a nested dictionary.

    Raises:
        UserError: naming every problem at once, with dotted paths.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [_describe(kind, problem) for problem in error.errors()]
        raise UserError(f"{source}: " + "; ".join(problems)) from error


def dump_settings(settings: StrictSettings) -> str:
    """Returns TOML text that `load_settings` reads back to equal settings; names set to None are left out."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def differences(ours: StrictSettings, theirs: StrictSettings, *, ignored: Collection[str] = ()) -> list[str]:
    """Returns one `name is ours, not theirs` for every leaf that differs, but for those ignored."""
    left, right = _leaves(ours.model_dump(mode="json")), _leaves(theirs.model_dump(mode="json"))
    changed = [name for name in left if left[name] != right.get(name) and name not in ignored]
    return [f"{name} is {left[name]}, not {right[name]}" for name in changed]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_input(path).decode("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; the recipes stand in configs/") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of UTF-8 too
        raise UserError(f"{path} cannot be read as TOML: {error}") from error


def _apply_override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise UserError(f"--set {override}: write it as name.name=value, for example --set train.epochs=3")
    *tables, leaf = name.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: {table} is a value, not a table")
    values[leaf] = _parse_value(text)


def _parse_value(text: str) -> Any:
    """Reads TOML values; anything else is text, so that quotes are not needed in a shell."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _describe(kind: type[BaseModel], problem: Any) -> str:
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = _known_names(kind, path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known names are {', '.join(known)}"
        return f"unknown setting {name}: {hint}"
    if not name or (problem["type"] == "value_error" and isinstance(problem["input"], dict)):
        return str(problem["msg"]).removeprefix("Value error, ")  # of several settings; it names them
    if problem["type"] == "missing":
        return f"setting {name} is missing"
    return f"{name} = {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"


def _known_names(kind: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        annotation = kind.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        kind = annotation
    return list(kind.model_fields)


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves
