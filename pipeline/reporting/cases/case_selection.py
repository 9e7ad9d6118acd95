"""Which breasts a reader should look at: the most confident right and wrong ones.

Patients, and their exams, are told apart by their ids alone.
"""

from dataclasses import dataclass

import pandas as pd

from data_prep.rsna.exam_table import EXAM_ID, name_breast
from pipeline.evaluation.age.age_regression import BY_PIXELS
from pipeline.evaluation.evaluate_oof import Evaluation
from pipeline.reporting.wording import wording_of
from pipeline.runs.run_folder import IMAGE_PROBABILITY

NUM_CASES = 3
"""Breasts of each kind."""


@dataclass(frozen=True)
class CaseView:
    """One image of a breast.

    Attributes:
        view: such as CC; empty where it is not recorded.
        probability: the held-out fold's.
        by_pixels: the same without age, and of the image by itself.
    """

    image_id: str
    view: str
    probability: float
    by_pixels: float


@dataclass(frozen=True)
class Case:
    """One breast.

    Attributes:
        exam_id: of the exam; empty where exams are not told apart.
        probability: the mean over its images.
        threshold: that it was held against.
    """

    patient_id: str
    exam_id: str
    laterality: str
    fold: int
    cancer: int
    probability: float
    threshold: float
    views: list[CaseView]

    @property
    def is_recalled(self) -> bool:
        """Whether the probability reaches the threshold."""
        return self.probability >= self.threshold


@dataclass(frozen=True)
class CaseGroup:
    """Cases that were right or wrong in the same way.

    Attributes:
        num_all: breasts of this kind in the run; the cases are the most confident of them.
    """

    title: str
    note: str
    num_all: int
    cases: list[Case]


@dataclass(frozen=True)
class CaseSelection:
    """All groups.

    Attributes:
        held_against: which threshold decided.
    """

    groups: list[CaseGroup]
    held_against: str


KINDS = {
    "Cancers found": (1, True, "Breasts with cancer, the highest probabilities."),
    "Cancers missed": (1, False, "Breasts with cancer, the lowest probabilities."),
    "False alarms": (0, True, "Breasts without cancer, the highest probabilities."),
    "Rightly not recalled": (0, False, "Breasts without cancer, the lowest probabilities."),
}
"""Label, whether recalled, and what is shown of each group."""


def select_cases(evaluation: Evaluation, *, num_cases: int = NUM_CASES) -> CaseSelection:
    """Returns the most confident breasts of each kind; no group where there is no threshold."""
    breasts, held_against = evaluation.breasts.table, wording_of(evaluation).transferred
    if breasts["threshold"].isna().any():
        if evaluation.threshold is None:
            return CaseSelection([], "")
        breasts, held_against = breasts.assign(threshold=evaluation.threshold), "the best pooled threshold"
    breast = name_breast(breasts)
    is_recalled = breasts["probability"] >= breasts["threshold"]
    groups = []
    for title, (cancer, wanted, note) in KINDS.items():
        found = breasts[(breasts["cancer"] == cancer) & (is_recalled == wanted)]
        ordered = found.sort_values(["probability", *breast], ascending=[not wanted, *[True] * len(breast)])
        cases = [_describe(row, evaluation.oof) for _, row in ordered.head(num_cases).iterrows()]
        groups.append(CaseGroup(title, note, len(found), cases))
    return CaseSelection(groups, held_against)


def _describe(breast: pd.Series, oof: pd.DataFrame) -> Case:
    names = name_breast(oof)
    images = oof[(oof[names] == breast[names]).all(axis=1)]
    view_names = images["view"].fillna("") if "view" in images else pd.Series("", index=images.index)
    own = next(name for name in (IMAGE_PROBABILITY, BY_PIXELS, "probability") if name in images)
    views = [
        CaseView(str(image_id), str(view), float(probability), float(by_pixels))
        for image_id, view, probability, by_pixels in zip(
            images["image_id"], view_names, images["probability"], images[own], strict=True
        )
    ]
    return Case(
        patient_id=str(breast["patient_id"]),
        exam_id=str(breast.get(EXAM_ID, "")),
        laterality=str(breast["laterality"]),
        fold=int(breast["fold"]),
        cancer=int(breast["cancer"]),
        probability=float(breast["probability"]),
        threshold=float(breast["threshold"]),
        views=sorted(views, key=lambda view: (view.view, view.image_id)),
    )
