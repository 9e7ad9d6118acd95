"""What a training has recorded for people to read, and a report can do without."""

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from data_prep.storage.files import parse_json, read_own
from pipeline.runs.run_folder import GROUP, RunFolder

CACHE_FROM_RUN = "cache_from_run"

HISTORY_FIGURES = ["pf1", "auc", "average_precision"]
"""What a fold's `history.csv` follows, per breast (`val_`) and per image (`val_image_`)."""
FIGURES_OF_AN_EPOCH = {
    "train_loss": "loss",
    "val_loss": "val",
    "test_loss": "test",
    "val_auc": "AUC",
    "val_pf1": "pF1",
    "test_accuracy": "accuracy",
    "probe_auc": "probe AUC",
}
"""What is said of an epoch once it has ended, by the columns of `history.csv`."""


def describe_epoch(row: Mapping[str, float]) -> str:
    """Returns the main figures of a row of `history.csv` in a few words."""
    shown = {name: row[name] for name in FIGURES_OF_AN_EPOCH if name in row}
    return ", ".join(
        f"{FIGURES_OF_AN_EPOCH[name]} {'undefined' if math.isnan(value) else f'{value:.3f}'}"
        for name, value in shown.items()
    )


def read_environment(path: Path) -> dict[str, str]:
    """Reads `environment.json` as names and values, nested names joined by a dot; empty without the file.

    Raises:
        UserError: if it is damaged.
    """
    try:
        return dict(_flatten(parse_json(read_own(path)))) if path.exists() else {}
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): remove it; it describes the machine and names the cache, and a "
            "report goes without them and without the cases' pictures"
        ) from error


def describe_cache(cache: Cache, run: RunFolder) -> dict[str, str]:
    """Returns what `environment.json` says of a run's cache: where it lies, also as seen from the run."""
    folder = cache.folder.absolute()
    return {"cache": str(folder), CACHE_FROM_RUN: os.path.relpath(folder, run.folder.absolute())}


def find_cache(run: RunFolder) -> Cache:
    """Returns the cache that a run was trained on, though both may have been moved together.

    A run of an older mammo may name it as seen from the folder where `mammo train` was typed, which is often
    one above the run.

    Raises:
        UserError: if the run names none, or it is gone.
    """
    environment = read_environment(run.environment)
    if not (named := environment.get("cache")):
        raise UserError(f"the run's {run.environment.name} names no cache")
    above = [] if Path(named).is_absolute() else run.folder.absolute().parents
    places = [*(folder / named for folder in above), Path(named)]
    if from_run := environment.get(CACHE_FROM_RUN):
        places.append(Path(os.path.normpath(run.folder.absolute() / from_run)))
    found = next((place for place in places if Cache(place).settings_path.exists()), None)
    if found is None:
        raise UserError(f"the run's cache {named} is no longer there")
    return Cache(found)


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows


def describe_groups(folds: pd.DataFrame) -> str | None:
    """Says how many patients are kept together because they share pictures; None if none."""
    if GROUP not in folds:
        return None
    sizes = folds[GROUP].value_counts()
    sizes = sizes[sizes > 1]
    groups = "1 group, kept in one fold" if len(sizes) == 1 else f"{len(sizes)} groups, each kept in one fold"
    return f"{sizes.sum():,} patients share a picture with another one: {groups}"


def read_numbers(path: Path, columns: list[str], *, newer: Sequence[str] = ()) -> pd.DataFrame:
    """Reads the columns of a table that a training has written for people, such as `history.csv`.

    Those that older tables lack are NaN there.

    Raises:
        UserError: if it is damaged; the way out is to do without it.
    """
    way_out = f"remove it, and the report goes without it, or train again to have it ({', '.join(columns)})"
    try:
        whole = pd.read_csv(io.BytesIO(read_own(path)))
        table = whole[columns].join(whole.reindex(columns=[*newer])).astype(float)
    except (ValueError, KeyError) as error:  # pandas's own errors are among them
        raise UserError(
            f"{path} is damaged, it does not hold the numbers of a training: {way_out}"
        ) from error
    if table.empty:
        raise UserError(f"{path} is damaged, it has no row: {way_out}")
    return table
