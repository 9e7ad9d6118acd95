"""Kinds of images and breasts, such as a site, a machine or an age band.

Each image gets a text per kind; a breast has its images' text, or `several` where they differ.
"""

import re

import numpy as np
import pandas as pd

from data_prep.rsna.exam_table import name_breast

NOT_RECORDED = "not recorded"
SEVERAL = "several"
KIND_COLUMNS = {
    "site": "site_id",
    "machine": "machine_id",
    "view": "view",
    "density": "density",
    "age": "age",
    "implant": "implant",
}
"""The exam column behind each kind that an exam table may lack."""
OF_IMAGES = ["site", "machine", "view", "density", "age", "implant", "views", "laterality"]
OF_BREASTS = [kind for kind in OF_IMAGES if kind != "view"]
AGES = {0: "0 to 39", 40: "40 to 49", 50: "50 to 59", 60: "60 to 69", 70: "70 to 79", 80: "80 or more"}
"""The bands, by their first year."""
MOST_VIEWS = 5
MOST_VALUES = 20
"""Kinds with more values than this keep the most frequent ones."""
OTHERS = "others"


def describe_images(oof: pd.DataFrame) -> pd.DataFrame:
    """Returns a text column for each kind that the predictions tell of, with the same index."""
    kinds = pd.DataFrame(index=oof.index)
    for kind, column in KIND_COLUMNS.items():
        if column in oof:
            kinds[kind] = _merge_rare(_to_text(kind, oof[column]))
    views = oof.groupby(name_breast(oof))["image_id"].transform("size")
    kinds["views"] = np.where(views < MOST_VIEWS, views.astype(str), f"{MOST_VIEWS} or more")
    kinds["laterality"] = oof["laterality"]
    return kinds[[kind for kind in OF_IMAGES if kind in kinds]]


def describe_breasts(oof: pd.DataFrame, kinds: pd.DataFrame, breasts: pd.DataFrame) -> pd.DataFrame:
    """Returns the text columns of breasts, in the order and with the index of their table."""
    breast = name_breast(oof)
    of_breasts = pd.MultiIndex.from_frame(breasts[breast])
    described = {}
    for kind in OF_BREASTS:
        if kind in kinds:
            texts = oof[breast].assign(text=kinds[kind])
            distinct = texts[texts["text"] != NOT_RECORDED].drop_duplicates()
            distinct.loc[distinct.duplicated(breast, keep=False), "text"] = SEVERAL
            of_breast = distinct.drop_duplicates(breast).set_index(breast)["text"]
            described[kind] = of_breast.reindex(of_breasts, fill_value=NOT_RECORDED).to_numpy()
    return pd.DataFrame(described, index=breasts.index)


def list_values(kind: "pd.Series[str]") -> list[str]:
    """Returns a kind's values, numbers in their order, what is not a value of its own last."""

    def key(value: str) -> tuple[bool, int, str]:
        digits = re.match(r"\d+", value)
        return value in {OTHERS, SEVERAL, NOT_RECORDED}, int(digits[0]) if digits else 0, value

    return sorted(kind.unique(), key=key)


def explain_missing(oof: pd.DataFrame) -> dict[str, str]:
    """Says for each kind without a slice why there is none."""
    return {
        kind: f"the run's predictions have no column {column}"
        for kind, column in KIND_COLUMNS.items()
        if column not in oof
    }


def _to_text(kind: str, column: "pd.Series[str]") -> "pd.Series[str]":
    if kind == "age":
        edges = [*AGES, np.inf]
        banded = pd.cut(pd.to_numeric(column), edges, right=False, labels=list(AGES.values()))
        return banded.astype("str").where(column.notna(), NOT_RECORDED)
    text = column.astype("str").where(column.notna(), NOT_RECORDED)
    return text.replace({"0": "no", "1": "yes"}) if kind == "implant" else text


def _merge_rare(texts: "pd.Series[str]") -> "pd.Series[str]":
    counts = texts.value_counts()
    if len(counts) <= MOST_VALUES:
        return texts
    kept = sorted(counts.index, key=lambda value: (-counts[value], value))[: MOST_VALUES - 1]
    return texts.where(texts.isin(kept), OTHERS)
