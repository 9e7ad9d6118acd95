"""The same picture under two patients: a leak between folds, found by the checksums of a cache's manifest.

Two images are one picture where their prepared pixels are the same, or what was read of their files. An image
without contrast shows nothing, so it is nobody's picture. Another encoding whose pixels differ is not found.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_prep.cache.tables import select_prepared
from data_prep.errors import count
from data_prep.rsna.exam_table import id_sort_key, sort_by_id

CHECKSUMS = ["image_sha256", "source_sha256"]
SHARED = "shared_picture"
"""The code in the manifest's `warnings`."""
MAX_SHOWN = 10  # of the groups in a sentence
MAX_NAMED = 3  # of the patients in a group


@dataclass(frozen=True)
class SharedPictures:
    """Pictures that stand under several patients.

    Attributes:
        images: one row for each image of such a picture, sorted by id: patient_id, image_id, the number
            `picture`, and `group`, the first id of the patients who are tied together by such pictures.
        contradictions: the same with `cancer` for `group`, for each image of a picture that is said to show
            cancer and not to; the images may be one patient's.
    """

    images: pd.DataFrame
    contradictions: pd.DataFrame

    @property
    def is_labelled(self) -> bool:
        """Whether the exams have labels."""
        return "cancer" in self.contradictions

    def group_patients(self, patient_ids: "pd.Series[str]") -> "pd.Series[str]":
        """Returns the group of each patient: of one who shares nothing, the own id."""
        group_of = dict(zip(self.images["patient_id"], self.images["group"], strict=True))
        return patient_ids.map(lambda patient_id: group_of.get(patient_id, patient_id))

    def describe(self) -> list[str]:
        """Returns a sentence that names the patients, and one that names contradicting labels."""
        sentences = []
        if len(self.images):
            num_pictures, num_patients = self.images["picture"].nunique(), self.images["patient_id"].nunique()
            groups = [_describe_group(group) for _, group in self.images.groupby("group", sort=False)]
            sentences.append(
                f"the same picture stands under several patients, {count(num_pictures, 'picture')} of "
                f"{num_patients:,} patients: {_shorten(groups, 'group')}; check which patient it belongs to"
                + ("; until then `mammo train` keeps them in one fold" if self.is_labelled else "")
            )
        if len(self.contradictions):
            pictures = [
                _describe_labels(each) for _, each in self.contradictions.groupby("picture", sort=False)
            ]
            sentences.append(
                f"the same picture has contradicting labels, {count(len(pictures), 'picture')}: "
                f"{_shorten(pictures, 'picture')}; correct them in the table"
            )
        return sentences


def find_shared_pictures(manifest: pd.DataFrame, exams: pd.DataFrame) -> SharedPictures:
    """Looks for pictures that several patients of an exam table share, and for contradicting labels.

    Args:
        manifest: with status, checksums and contrast; rows of other images take no part.
        exams: patient_id, image_id, and `cancer` where it is known.
    """
    prepared = select_prepared(manifest).dropna(subset=CHECKSUMS)
    prepared = prepared[pd.to_numeric(prepared["contrast"]) > 0].drop_duplicates("image_id")
    columns = [name for name in ("patient_id", "image_id", "cancer") if name in exams]
    images = exams[columns].merge(prepared[["image_id", *CHECKSUMS]], on="image_id")
    images = sort_by_id(images.assign(picture=_connect(images[CHECKSUMS])), ["patient_id", "image_id"])
    by_picture = images.groupby("picture")
    shared = images[by_picture["patient_id"].transform("nunique") > 1][["patient_id", "image_id", "picture"]]
    ties = pd.Series(_connect(shared[["patient_id", "picture"]]), index=shared.index)
    shared = shared.assign(group=shared.groupby(ties)["patient_id"].transform("first"))
    if "cancer" not in images:
        return SharedPictures(shared, images.iloc[:0])
    return SharedPictures(
        shared, images[by_picture["cancer"].transform("nunique") > 1].drop(columns=CHECKSUMS)
    )


def mark_shared_pictures(records: dict[str, dict[str, Any]]) -> None:
    """Sets the warning `shared_picture` of each record that deserves it, and takes it from all others."""
    table = pd.DataFrame(
        [{"contrast": None} | dict.fromkeys(CHECKSUMS) | record for record in records.values()],
        columns=["patient_id", "image_id", "contrast", *CHECKSUMS, "reason"],
    )
    table["status"] = np.where(table["reason"].isna(), "prepared", "failed")
    marked = set(find_shared_pictures(table, table[["patient_id", "image_id"]]).images["image_id"])
    for image_id, record in records.items():
        if not record.get("reason"):
            codes = [code for code in str(record.get("warnings") or "").split() if code != SHARED]
            record["warnings"] = " ".join([*codes, *([SHARED] if image_id in marked else [])])


def _connect(keys: pd.DataFrame) -> NDArray[np.int32]:
    """Numbers the rows so that rows with the same value in any of the columns have the same number."""
    num_rows = num_nodes = len(keys)
    edges = []  # from each row to a node for each of its values
    for name in keys:
        codes, values = pd.factorize(keys[name])
        edges.append(codes + num_nodes)
        num_nodes += len(values)
    rows, ends = np.tile(np.arange(num_rows), len(edges)), np.concatenate(edges)
    graph = coo_array((np.ones(len(rows), bool), (rows, ends)), shape=(num_nodes, num_nodes))
    return connected_components(graph, directed=False)[1][:num_rows]


def _describe_group(images: pd.DataFrame) -> str:
    """Names patients who are tied together, with two images that are one picture."""
    patients = sorted(images["patient_id"].unique(), key=id_sort_key)
    first = images[images["picture"] == images["picture"].iloc[0]].drop_duplicates("patient_id")
    named = " and ".join(patients[:MAX_NAMED])
    more = f" and {len(patients) - MAX_NAMED} more" if len(patients) > MAX_NAMED else ""
    return f"{named}{more} (image {first['image_id'].iloc[0]} is {first['image_id'].iloc[1]})"


def _describe_labels(images: pd.DataFrame) -> str:
    """Names an image of each label."""
    rows = images.drop_duplicates("cancer").sort_values("cancer")
    columns = (rows["patient_id"], rows["image_id"], rows["cancer"])
    return " but ".join(
        f"{patient_id}/{image_id} cancer {cancer}"
        for patient_id, image_id, cancer in zip(*columns, strict=True)
    )


def _shorten(parts: list[str], noun: str) -> str:
    more = len(parts) - MAX_SHOWN
    return "; ".join(parts[:MAX_SHOWN]) + (f"; and {count(more, noun)} more" if more > 0 else "")
