"""Who and what of an external set a run has learned from: by patient id, and by the checksums of pictures.

Two images are one picture as `data_prep.cache.shared_pictures` has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from data_prep.cache.shared_pictures import CHECKSUMS
from data_prep.cache.tables import select_prepared
from data_prep.errors import UserError, count
from data_prep.rsna.exam_table import sort_by_id
from pipeline.runs.ancestry import find_first_pretraining, list_ancestors
from pipeline.runs.recipe import load_recipe
from pipeline.runs.records import find_cache
from pipeline.runs.run_folder import Run, read_table

PICTURE_COLUMNS = ["patient_id", "image_id", *CHECKSUMS]
LEFT_OUT_COLUMNS = ["patient_id", "reason", "image_id", "run_patient_id", "run_image_id"]
SAME_ID, SAME_PICTURE = "the same patient id", "the same picture"
MOST_NAMED = 3
WAY_OUT = "leave them out with --skip-seen"


@dataclass(frozen=True)
class Learned:
    """Whom and what a run has learned from, by itself or by the weights that it started from.

    Attributes:
        patients: their ids.
        pictures: the columns of `PICTURE_COLUMNS`, a row per picture that shows something.
        unknown: why some are not known; empty where all are.
    """

    patients: list[str]
    pictures: pd.DataFrame
    unknown: str = ""


def tabulate_pictures(manifest: pd.DataFrame) -> pd.DataFrame:
    """Returns ids and checksums of the images that were prepared and show something."""
    prepared = select_prepared(manifest).dropna(subset=CHECKSUMS)
    return prepared.loc[pd.to_numeric(prepared["contrast"]) > 0, PICTURE_COLUMNS].reset_index(drop=True)


def read_learned(run: Run, oof: pd.DataFrame) -> Learned:
    """Reads whom a run has learned from, and those before it whose weights it has started from.

    Args:
        run: the run.
        oof: its predictions of all images that it has learned from.

    Raises:
        UserError: if a table of one of the runs is damaged.
    """
    try:
        init = load_recipe(run.settings).train.init
        ancestors, unknown = list_ancestors(init)
        pretraining = find_first_pretraining(init)
    except UserError as error:
        ancestors, unknown, pretraining = [], str(error), None
    patients = set(oof["patient_id"]).union(*(each.read_folds()["patient_id"] for each in ancestors))
    found = [_read_pictures(run, oof["image_id"]), *(_read_pictures(each) for each in ancestors)]
    reasons = dict.fromkeys(reason for reason in (unknown, *(reason for _, reason in found)) if reason)
    if pretraining is not None:
        seen = pretraining.read_seen()
        if not pretraining.knows_its_patients:
            folder = pretraining.folder
            reasons[f"nobody knows of whom the pictures are that {folder} was pretrained on"] = None
        patients |= set(seen["patient_id"])
        found.append((seen.loc[(seen[CHECKSUMS] != "").all(axis=1), PICTURE_COLUMNS], ""))
    pictures = pd.concat([table for table, _ in found], ignore_index=True)
    return Learned(sorted(patients), pictures, "; ".join(reasons))


def _read_pictures(run: Run, image_ids: "pd.Series[str] | None" = None) -> tuple[pd.DataFrame, str]:
    """Reads `pictures.csv`, or for a run of an older version the manifest of its cache.

    Returns:
        Those of the ids, or all, and why they are not known; empty where they are.
    """
    if run.pictures.exists():
        return read_table(run.pictures, PICTURE_COLUMNS, dtype="str")[PICTURE_COLUMNS], ""
    nothing = pd.DataFrame(columns=PICTURE_COLUMNS, dtype="str")
    try:
        manifest = find_cache(run).read_manifest()
    except UserError as error:
        return nothing, f"{run.name} keeps no {run.pictures.name}, and {error}"
    learned = tabulate_pictures(manifest)
    if image_ids is None:
        return learned, ""
    if not set(image_ids) <= set(manifest["image_id"]):
        return nothing, f"{run.name} keeps no {run.pictures.name}, and its cache holds other images now"
    return learned[learned["image_id"].isin(image_ids)].reset_index(drop=True), ""


def find_seen_patients(exams: pd.DataFrame, learned: Sequence[str]) -> pd.DataFrame:
    """Returns the columns of `LEFT_OUT_COLUMNS` for each patient with the id of one of the run's."""
    seen = exams[exams["patient_id"].isin([*learned])][["patient_id"]].drop_duplicates()
    seen = seen.assign(reason=SAME_ID, image_id="", run_patient_id=seen["patient_id"], run_image_id="")
    return sort_by_id(seen[LEFT_OUT_COLUMNS], ["patient_id"])


def find_seen_pictures(manifest: pd.DataFrame, learned: Learned) -> pd.DataFrame:
    """Returns the columns of `LEFT_OUT_COLUMNS` for each image that is one of the run's pictures.

    Args:
        manifest: what a manifest says of the external set's images.
        learned: of the run.
    """
    pictures = tabulate_pictures(manifest)
    names = {"patient_id": "run_patient_id", "image_id": "run_image_id"}
    pairs = [
        pictures.merge(learned.pictures[[*names, checksum]].rename(columns=names), on=checksum)
        for checksum in CHECKSUMS
    ]
    seen = pd.concat(pairs).drop_duplicates("image_id").assign(reason=SAME_PICTURE)
    return sort_by_id(seen[LEFT_OUT_COLUMNS], ["patient_id", "image_id"])


def refuse_seen(seen: pd.DataFrame, run: Run) -> None:
    """Refuses a set of which the run has learned from somebody.

    Raises:
        UserError: naming the first of them.
    """
    if seen.empty:
        return
    patients = seen.drop_duplicates("patient_id")
    if (patients["reason"] == SAME_ID).all():
        named = patients["patient_id"].head(MOST_NAMED).tolist()
        others = ", or, if these are other women who happen to have the same ids, change the ids in train.csv"
    else:
        named = [
            f"{row['patient_id']}, whose image {row['image_id']} is {row['run_patient_id']}'s "
            f"{row['run_image_id']}"
            for row in patients.head(MOST_NAMED).to_dict("records")
        ]
        others = ""
    more = f" and {len(patients) - MOST_NAMED:,} more" if len(patients) > MOST_NAMED else ""
    raise UserError(
        f"{run.folder} has learned from {count(len(patients), 'patient')} of this set ({'; '.join(named)}"
        f"{more}), and its figures on them would flatter it: {WAY_OUT}{others}"
    )
