"""What is known of images and breasts beside their pixels, and may tell the label.

A trait is a column of numbers (NaN is not recorded) or of texts.
"""

import numpy as np
import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.rsna.exam_table import EXAM_ID, id_sort_key, name_breast
from pipeline.evaluation.slices import NOT_RECORDED

NUM_IMAGES, BOTH_VIEWS, AGE = "images per breast", "CC and MLO present", "age"
TEXT_COLUMNS = {
    "view": "view",
    "implant": "implant",
    "site": "site_id",
    "machine": "machine_id",
}
"""Traits that an exam table may lack, and the column behind each."""
CROP_SIZE, CROP_ASPECT, PATCHES = "crop size", "crop aspect", "non-empty patches"
FILE_SIZE, TRANSFER_SYNTAX = "file size", "transfer syntax"
OF_CACHE = [CROP_SIZE, CROP_ASPECT, PATCHES, FILE_SIZE, TRANSFER_SYNTAX]
"""Traits that only the cache's manifest knows."""
PATIENT_ORDER, EXAM_ORDER = "order of patient ids", "order of exam ids"
IMAGE_ORDER = "order of image ids"
OF_IMAGES = {"view", IMAGE_ORDER, *OF_CACHE}
"""Traits of single images; a mean over a breast's images would tell how many there are."""


def read_file_traits(cache: Cache) -> pd.DataFrame:
    """Reads what a cache knows of each image: `image_id` and the traits of `OF_CACHE`.

    Raises:
        UserError: if it is not finished or its manifest is damaged.
    """
    return to_file_traits(cache.read_manifest())


def to_file_traits(manifest: pd.DataFrame) -> pd.DataFrame:
    """Returns the same of a manifest, or of what one would say."""
    width, height = (
        (manifest[f"box_{end}"] - manifest[f"box_{start}"]).astype("Float64")
        for start, end in (("left", "right"), ("top", "bottom"))
    )
    return pd.DataFrame(
        {
            "image_id": manifest["image_id"],
            CROP_SIZE: width * height,
            CROP_ASPECT: width / height,
            PATCHES: manifest["patches"].astype("Float64"),
            FILE_SIZE: manifest["source_bytes"].astype("Float64"),
            TRANSFER_SYNTAX: manifest["transfer_syntax"],
        }
    )


def describe_image_traits(oof: pd.DataFrame, files: pd.DataFrame | None) -> pd.DataFrame:
    """Returns the traits of images, with the index of the predictions.

    Args:
        oof: one row per image.
        files: as `read_file_traits` gives them; None where there is no cache.
    """
    keys = [oof[name] for name in name_breast(oof)]
    traits = pd.DataFrame(
        {NUM_IMAGES: oof.groupby(keys)["image_id"].transform("size").astype(float)}, index=oof.index
    )
    if "view" in oof:
        has = {view: oof["view"].eq(view).groupby(keys).transform("any") for view in ("CC", "MLO")}
        traits[BOTH_VIEWS] = np.where(has["CC"] & has["MLO"], "yes", "no")
    traits["laterality"] = oof["laterality"]
    for trait, column in TEXT_COLUMNS.items():
        if column in oof:
            traits[trait] = oof[column].astype("str").where(oof[column].notna(), NOT_RECORDED)
    if "age" in oof:
        traits[AGE] = pd.to_numeric(oof["age"])
    traits[PATIENT_ORDER] = _rank(oof["patient_id"])
    if EXAM_ID in oof:
        traits[EXAM_ORDER] = _rank(oof[EXAM_ID])
    traits[IMAGE_ORDER] = _rank(oof["image_id"])
    if files is not None:
        known = oof[["image_id"]].merge(files, on="image_id", how="left").set_index(oof.index)
        for trait in OF_CACHE:
            if known[trait].notna().any():
                is_text = trait == TRANSFER_SYNTAX
                traits[trait] = (
                    known[trait].fillna(NOT_RECORDED) if is_text else known[trait].astype("float64")
                )
    return traits


def describe_breast_traits(oof: pd.DataFrame, traits: pd.DataFrame, breasts: pd.DataFrame) -> pd.DataFrame:
    """Returns the traits that breasts have, in the order of their table; different texts side by side."""
    breast = name_breast(oof)
    keys = [oof[name] for name in breast]
    order = pd.MultiIndex.from_frame(breasts[breast])
    described = {}
    for trait in [str(name) for name in traits if name not in OF_IMAGES]:
        if pd.api.types.is_numeric_dtype(traits[trait]):
            of_breast = traits[trait].groupby(keys).mean()
        else:
            distinct = oof[breast].assign(text=traits[trait]).drop_duplicates()
            differ = distinct.duplicated(breast, keep=False)
            of_breast = distinct[~differ].set_index(breast)["text"]
            if differ.any():
                several = distinct[differ].sort_values("text").groupby(breast)["text"]
                of_breast = pd.concat([of_breast, several.agg("+".join)])
        described[trait] = of_breast.reindex(order).to_numpy()
    return pd.DataFrame(described, index=breasts.index)


def explain_missing_traits(oof: pd.DataFrame, traits: pd.DataFrame, no_files: str) -> dict[str, str]:
    """Says for each trait that was not looked at why not.

    Args:
        oof: one row per image.
        traits: of its images.
        no_files: why nothing is known of the files; empty where it is.
    """
    columns = {BOTH_VIEWS: "view", **TEXT_COLUMNS, AGE: "age"}
    missing = {
        trait: f"the run's predictions have no column {column}"
        for trait, column in columns.items()
        if column not in oof
    }
    unknown = no_files or "the run's cache does not hold it"
    return missing | {trait: unknown for trait in OF_CACHE if trait not in traits}


def _rank(ids: "pd.Series[str]") -> "pd.Series[float]":
    places = {identifier: place for place, identifier in enumerate(sorted(ids.unique(), key=id_sort_key))}
    return ids.map(places).astype(float)
