"""Strict settings: frozen pydantic models from TOML files and `--set a.b=c`."""

import difflib
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from data_prep.errors import UserError
from data_prep.storage.files import parse_toml, read_input

NUM_SUGGESTIONS = 3
ALIKE, NEARLY_AS_ALIKE = 0.6, 0.2
"""Names are alike from this ratio of difflib's on, and suggested if they are hardly less so than the best."""
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class StrictSettings(BaseModel):
    """Frozen; an unknown name, a value out of range and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    other_names: ClassVar[Mapping[str, str]] = {}
    """What else settings of this table are called, such as `lr`: by setting, words; for errors alone."""


Settings = TypeVar("Settings", bound=StrictSettings)
Link = Callable[[dict[str, Any], dict[str, str]], None]
"""Completes the values that were read, given what `--set` changed: by its dotted name, the text."""


def load_settings(
    kind: type[Settings], path: Path | None, overrides: Iterable[str] = (), *, link: Link | None = None
) -> Settings:
    """Reads a TOML file (None: all defaults) and applies overrides such as `train.epochs=3`, in order.

    Raises:
        UserError: naming every problem at once, with dotted paths, and the `--set` that a problem came from.
    """
    values = _read_toml(path) if path else {}
    changed: dict[str, str] = {}
    for override in overrides:
        changed[_apply_override(values, override)] = override
    if link is not None:
        link(values, changed)
    return validate_settings(kind, values, f"{path}" if path else "the settings", changed)


def validate_settings(
    kind: type[Settings], values: dict[str, Any], source: str, changed: Mapping[str, str] | None = None
) -> Settings:
    """Makes settings of a nested dictionary; `changed` are the names that `--set` changed, with its text.

    Raises:
        UserError: naming every problem at once, with dotted paths.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        by_origin: dict[str, list[str]] = {}
        for problem in error.errors():
            for name, sentence in _describe(kind, problem):
                origin = _find_origin(name, sentence, changed or {}) or source
                by_origin.setdefault(origin, []).append(sentence)
        told = [f"{origin}: {'; '.join(sentences)}" for origin, sentences in by_origin.items()]
        raise UserError("; ".join(told)) from error


def dump_settings(settings: StrictSettings) -> str:
    """Returns TOML text that `load_settings` reads back to equal settings; names set to None are left out."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def differences(ours: StrictSettings, theirs: StrictSettings, *, ignored: Collection[str] = ()) -> list[str]:
    """Returns one `name is ours, not theirs` for every leaf that differs, but for those ignored."""
    left, right = _leaves(ours.model_dump(mode="json")), _leaves(theirs.model_dump(mode="json"))
    changed = [name for name in left if left[name] != right.get(name) and name not in ignored]
    return [f"{name} is {left[name]}, not {right[name]}" for name in changed]


def write_overrides(settings: StrictSettings, theirs: StrictSettings, *, table: str) -> str:
    """Returns the options `--set ...` that make the other settings of a table equal to the first ones."""
    ours, others = _leaves(settings.model_dump(mode="json")), _leaves(theirs.model_dump(mode="json"))
    changed = {name: value for name, value in ours.items() if value != others.get(name)}
    options = [
        f"{table}.{name}={value if isinstance(value, str) else _show(value)}"
        for name, value in changed.items()
    ]
    return " ".join(f"--set {shlex.quote(option)}" for option in options)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_input(path).decode("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of UTF-8 too
        raise UserError(f"{path} cannot be read as TOML: {error}") from error


def _apply_override(values: dict[str, Any], override: str) -> str:
    """Returns the dotted name of what it changes."""
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise UserError(f"--set {override}: write it as name.name=value, for example --set train.epochs=3")
    *tables, leaf = name.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: {table} is a value, not a table")
    values[leaf] = _parse_value(text)
    return name


def _parse_value(text: str) -> Any:
    """Reads TOML values; anything else is text, so that quotes are not needed in a shell."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


# Errors


def _find_origin(name: str, sentence: str, changed: Mapping[str, str]) -> str | None:
    """Returns the last `--set` that changed what is wrong; a rule of several settings says their names."""
    words = {word.strip(",;:") for word in sentence.split()}
    for other, override in reversed([*changed.items()]):
        is_meant = other in words if not name else f"{name}.".startswith(f"{other}.")
        if is_meant or (name and other.startswith(f"{name}.")):
            return f"--set {shlex.quote(override)}"
    return None


def _describe(kind: type[BaseModel], problem: Any) -> Iterator[tuple[str, str]]:
    """Yields dotted name and sentence of what is wrong; without a name, it is a rule of several settings."""
    path, value = [str(part) for part in problem["loc"]], problem["input"]
    told = str(problem["msg"]).removeprefix("Value error, ")
    while path and _find_field(kind, path) is None and problem["type"] != "extra_forbidden":
        del path[-1]  # the place in a list
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        yield from _describe_unknown(kind, path, value)
    elif not name or (problem["type"] == "value_error" and isinstance(value, dict)):
        yield "", told
    elif problem["type"] == "missing":
        yield name, f"setting {name} is missing"
    elif problem["type"] == "value_error":
        yield name, f"{name} = {_show(value)}: {told}"
    else:
        field = _find_field(kind, path)
        assert field is not None
        yield name, _describe_value(name, field, value)


def _describe_value(name: str, field: FieldInfo, value: Any) -> str:
    """Says in plain words what a setting takes, with an example."""
    limits = [
        f"{words} {getattr(one, key):g}"
        for one in field.metadata
        for key, words in BOUNDS.items()
        if hasattr(one, key)
    ]
    limited = f" ({', '.join(limits)})" if limits else ""
    example = _find_example(field, value)
    shown = f": for example {name}={example}" if example else ""
    return f"{name} takes {_name_type(field.annotation)}{limited}, not {_show(value)}{shown}"


def _name_type(annotation: Any) -> str:
    """Returns what values of a type are called."""
    if get_origin(annotation) is Literal:
        *others, last = map(_show, get_args(annotation))
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(annotation) is tuple:
        return f"a list of {_name_type(get_args(annotation)[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a table of settings ({', '.join(annotation.model_fields)})"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    parts = [each for each in get_args(annotation) or [annotation] if each is not type(None)]
    return " or ".join(names.get(each, str(each)) for each in parts)


def _find_example(field: FieldInfo, value: Any) -> str:
    """Returns a value that is right: what was probably meant, else the default."""
    if get_origin(field.annotation) is tuple:
        choices = get_args(get_args(field.annotation)[0])
        given = [each for each in (value if isinstance(value, list | tuple) else [value]) if each in choices]
        return _show(given or [*choices[:1]])
    default = field.default
    return "" if isinstance(default, BaseModel) or default in (None, "") else _show(default)


def _show(value: Any) -> str:
    """Writes a value about as TOML does."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_show, value))}]"
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _describe_unknown(kind: type[BaseModel], path: list[str], value: Any) -> Iterator[tuple[str, str]]:
    """Yields each unknown setting with the nearest ones; of a misspelt table, the table alone."""
    name = ".".join(path)
    if isinstance(value, dict):
        tables = [".".join(table) for table, _ in _list_fields(kind, tables=True)]
        if close := difflib.get_close_matches(name, tables, n=1):
            yield name, f"unknown table {name}: did you mean {close[0]}?"
            return
    for leaf in _leaves(value, f"{name}.") if isinstance(value, dict) and value else [name]:
        near, are_alike = suggest_settings(kind, leaf)
        listed = f"{', '.join(near[:-1])} or {near[-1]}" if len(near) > 1 else near[0]
        hint = f"did you mean {listed}?" if are_alike else f"the nearest names are {listed}"
        yield leaf, f"unknown setting {leaf}: {hint}"


def suggest_settings(kind: type[BaseModel], wrong: str) -> tuple[list[str], bool]:
    """Returns up to three settings, with their tables, that a wrong name may mean, and whether it is alike.

    The nearest comes first. Every table is searched, and what others call its settings.
    """
    table, _, leaf = wrong.rpartition(".")
    alike: dict[str, float] = {}
    for path, owner in _list_fields(kind, tables=False):
        others = owner.other_names if issubclass(owner, StrictSettings) else {}
        names = [path[-1], *others.get(path[-1], "").split()]
        ratios = [difflib.SequenceMatcher(None, leaf.lower(), each.lower()).ratio() for each in names]
        nearness = 0.1 if ".".join(path[:-1]) == table else 0.0  # of two alike, the one in the same table
        alike[".".join(path)] = max(ratios) + nearness
    ranked = sorted(alike, key=lambda name: -alike[name])[:NUM_SUGGESTIONS]
    best = alike[ranked[0]]
    if best < ALIKE:
        return ranked, False
    least = 1.0 if best >= 1.0 else max(ALIKE, best - NEARLY_AS_ALIKE)
    return [name for name in ranked if alike[name] >= least], True


def _list_fields(kind: type[BaseModel], *, tables: bool) -> Iterator[tuple[list[str], type[BaseModel]]]:
    """Yields the path of each table, or else of each setting that is none, with the class that holds it."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            if not tables:
                yield [name], kind
            continue
        if tables:
            yield [name], kind
        for path, owner in _list_fields(inner, tables=tables):
            yield [name, *path], owner


def _find_field(kind: type[BaseModel], path: list[str]) -> FieldInfo | None:
    """Returns the setting of a path; None if there is none."""
    field = None
    for part in path:
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)) or part not in kind.model_fields:
            return None
        field = kind.model_fields[part]
        kind = field.annotation  # type: ignore[assignment]
    return field


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves
