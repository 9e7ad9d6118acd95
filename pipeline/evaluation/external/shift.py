"""How an external set differs from a run's own data, trait by trait.

Differences are standardised: of means and of shares, in standard deviations (Austin 2009, "Balance
diagnostics", Stat. Med. 28:3083). Nobody's label decides which traits are looked at.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from data_prep.rsna.exam_table import name_breast
from pipeline.evaluation.slices import MOST_VALUES, NOT_RECORDED

SHIFT_COLUMNS = ["trait", "value", "statistic", "run", "external", "standardized_difference"]
SHARES_OF_PATIENTS = {"machine": "machine_id", "site": "site_id", "density": "density", "implant": "implant"}
TONES = ["brightness", "contrast", "saturated"]
"""Of pictures, from 0 to 1, with `image_id`, where somebody has measured them."""


def describe_shift(
    own: pd.DataFrame, external: pd.DataFrame, own_tones: pd.DataFrame, external_tones: pd.DataFrame
) -> pd.DataFrame:
    """Compares both sets.

    Args:
        own: the run's out-of-fold predictions, one row per image.
        external: the same of the external set.
        own_tones: columns of `TONES` that are known of the run's pictures, a row per picture.
        external_tones: the same of the external set.

    Returns:
        A row per trait, value and statistic: `count`, `share` (of patients, or of breasts or images as the
        trait says), `mean`, `deviation`, `median`; what is not known is NaN.
    """
    sets = own, external
    rows = [*_compare_counts(*sets), *_compare_labels(*sets), *_compare_ages(*sets)]
    for trait, column in SHARES_OF_PATIENTS.items():
        rows += _compare_shares(f"{trait}, of patients", *(_list_pairs(each, column) for each in sets))
    rows += _compare_shares("view, of images", *(_list_views(each) for each in sets))
    for tone in TONES:
        rows += _compare_numbers(
            f"{tone} of pictures",
            *(each[tone] if tone in each else pd.Series(dtype=float) for each in (own_tones, external_tones)),
        )
    return pd.DataFrame(rows, columns=SHIFT_COLUMNS)


def find_difference_of_means(own: "pd.Series[float]", external: "pd.Series[float]") -> float:
    """Returns the standardised difference; NaN where nothing spreads."""
    spread = np.sqrt((own.var(ddof=1) + external.var(ddof=1)) / 2)
    return float((external.mean() - own.mean()) / spread) if spread > 0 else np.nan


def find_difference_of_shares(own: float, external: float) -> float:
    """Returns the standardised difference; NaN where neither share is between 0 and 1."""
    spread = np.sqrt((own * (1 - own) + external * (1 - external)) / 2)
    return float((external - own) / spread) if spread > 0 else np.nan


Row = tuple[str, str, str, float, float, float]


def _compare_counts(own: pd.DataFrame, external: pd.DataFrame) -> Iterator[Row]:
    counts = [
        (each["patient_id"].nunique(), len(each[name_breast(each)].drop_duplicates()), len(each))
        for each in (own, external)
    ]
    for trait, first, second in zip(("patients", "breasts", "images"), *counts, strict=True):
        yield trait, "", "count", float(first), float(second), np.nan
    per_breast = [each.groupby(name_breast(each)).size().astype(float) for each in (own, external)]
    yield from _compare_numbers("images per breast", *per_breast)


def _compare_labels(own: pd.DataFrame, external: pd.DataFrame) -> Iterator[Row]:
    sets = own, external
    of_patients = [["patient_id"]] * len(sets)
    for trait, keys in {"breasts": [*map(name_breast, sets)], "patients": of_patients}.items():
        pairs = zip(sets, keys, strict=True)
        first, second = (float(each.groupby(key)["cancer"].max().mean()) for each, key in pairs)
        difference = find_difference_of_shares(first, second)
        yield f"cancer, of {trait}", "", "share", first, second, difference


def _compare_ages(own: pd.DataFrame, external: pd.DataFrame) -> Iterator[Row]:
    ages = [
        each.groupby("patient_id")["age"].first().astype(float) if "age" in each else pd.Series(dtype=float)
        for each in (own, external)
    ]
    yield from _compare_numbers("age", *(each.dropna() for each in ages))
    first, second = (float(each.isna().mean()) if len(each) else 1.0 for each in ages)
    yield "age", NOT_RECORDED, "share", first, second, find_difference_of_shares(first, second)


def _compare_numbers(trait: str, own: "pd.Series[float]", external: "pd.Series[float]") -> Iterator[Row]:
    first, second = (each.dropna().astype(float).sort_values() for each in (own, external))  # one order
    yield (
        trait,
        "",
        "mean",
        float(first.mean()),
        float(second.mean()),
        find_difference_of_means(first, second),
    )
    yield trait, "", "deviation", float(first.std(ddof=1)), float(second.std(ddof=1)), np.nan
    yield trait, "", "median", float(first.median()), float(second.median()), np.nan


def _compare_shares(trait: str, own: "pd.Series[str]", external: "pd.Series[str]") -> Iterator[Row]:
    """Compares the most frequent values; a patient may have several, each once."""
    shares = [each.value_counts() / each.index.nunique() for each in (own, external)]
    values = sorted({*shares[0].index[:MOST_VALUES], *shares[1].index[:MOST_VALUES]})
    if values in ([], [NOT_RECORDED]):
        return
    for value in values:
        first, second = (float(each.get(value, 0.0)) for each in shares)
        yield trait, value, "share", first, second, find_difference_of_shares(first, second)


def _list_pairs(images: pd.DataFrame, column: str) -> "pd.Series[str]":
    """Returns each value of each patient once, by patient."""
    texts = _to_text(images, column)
    pairs = pd.DataFrame({"patient_id": images["patient_id"], "value": texts}).drop_duplicates()
    return pairs.set_index("patient_id")["value"]


def _list_views(images: pd.DataFrame) -> "pd.Series[str]":
    return _to_text(images, "view").set_axis(images["image_id"])


def _to_text(images: pd.DataFrame, column: str) -> "pd.Series[str]":
    if column not in images:
        return pd.Series(NOT_RECORDED, images.index)
    return images[column].astype("str").where(images[column].notna(), NOT_RECORDED)
