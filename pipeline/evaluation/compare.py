"""Whether one run is better than another: paired differences of their figures.

All runs are judged on the same breasts, and every bootstrap draw of patients counts for all of them, so that
what makes a draw hard or easy cancels out. One figure was named before anything was seen, and is corrected
for the number of runs that are compared with the first; the others are many, and one of them differs by
chance now and then, so they are corrected among themselves (Holm 1979, Scand. J. Statist. 6:65).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from data_prep.errors import UserError
from data_prep.rsna.exam_table import name_breast
from pipeline.evaluation.audit.shortcuts import does_counting_tell
from pipeline.evaluation.bootstrap import (
    MOST_UNDEFINED,
    NUM_REPLICATES,
    SEED,
    Interval,
    find_interval,
    replicate,
)
from pipeline.evaluation.estimates import (
    AUC_WEIGHTED,
    FEW_CANCERS,
    add_up_patients,
    estimate_auc_of,
    number_patients,
    transfer_thresholds,
    weigh_images,
)
from pipeline.evaluation.evaluate_oof import require_breasts
from pipeline.evaluation.external.carry_over import with_threshold
from pipeline.evaluation.metrics import FIGURES, LOWER_IS_BETTER, NOT_RANKED, measure_sums
from pipeline.evaluation.patient_stats import Floats
from pipeline.evaluation.uncertainty.auc_variance import AucEstimate, find_difference
from pipeline.evaluation.uncertainty.intervals import LARGEST_P, correct_by_holm

COMPARED = [*(name for name in FIGURES if name not in NOT_RANKED), AUC_WEIGHTED]
COMPARISON_COLUMNS = [
    *("run", "reference", "figure", "value", "reference_value"),
    *("difference", "low", "high", "num_undefined", "role", "p", "p_holm", "verdict", "reason"),
]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of a run beside the same of the reference, on the same breasts.

    Attributes:
        difference: value minus reference value; None if one of them is undefined.
        interval: its 95 % interval; None where nothing tells how wide it is.
        is_primary: whether this is the figure that was named beforehand.
        p: two-sided, of there being no difference; None without an interval.
        p_holm: the same with Holm's correction: of the primary figure for the number of runs, of the others
            for the number of all runs' secondary figures.
        reason: why there is no verdict, or empty.
    """

    run: str
    reference: str
    figure: str
    value: float | None
    reference_value: float | None
    difference: float | None
    interval: Interval | None
    is_primary: bool
    p: float | None
    p_holm: float | None = None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """`better` or `worse` beyond chance, else `unclear`; `undefined` without a difference."""
        if self.difference is None:
            return "undefined"
        if self.reason or self.p_holm is None or self.p_holm > LARGEST_P:
            return "unclear"
        return "better" if (self.difference > 0) != (self.figure in LOWER_IS_BETTER) else "worse"


def compare(
    oofs: Mapping[str, pd.DataFrame],
    *,
    thresholds: Mapping[str, float | None] | None = None,
    seed: int = SEED,
    num_replicates: int = NUM_REPLICATES,
) -> list[Difference]:
    """Compares each run with the first, figure by figure, per breast; the primary figure comes first.

    That is the AUC; where the label can be told by counting a breast's images, it is the weighted one of
    images. Which of them depends on the data and not on what the runs predict.

    Args:
        oofs: out-of-fold image predictions by name of the run, as `collect_oof` gives them; or those of an
            external set.
        thresholds: the run's own, for predictions of an external set; None takes the other folds' ones.
        seed: of the bootstrap.
        num_replicates: draws.

    Raises:
        UserError: if there are fewer than two runs, or they are not of the same breasts and labels.
    """
    if len(oofs) < 2:
        raise UserError("a comparison needs two different runs or more: name them one after the other")
    tables = {run: require_breasts(oof) for run, oof in oofs.items()}
    if thresholds is None:
        tables = {run: transfer_thresholds(breasts) for run, breasts in tables.items()}
    else:
        tables = {run: with_threshold(breasts, thresholds[run]) for run, breasts in tables.items()}
    reference, *others = tables
    for run in others:
        _require_same_breasts(reference, tables[reference], run, tables[run])
    sums = add_up_patients(tables)
    replicates = replicate(sums, seed=seed, num_replicates=num_replicates)
    figures = {run: measure_sums(sums[run], tables[run]["threshold"].to_numpy()).figures for run in tables}
    aucs = _estimate_aucs(tables, oofs)
    primary = AUC_WEIGHTED if does_counting_tell(oofs[reference], tables[reference]) else "auc"
    women = tables[reference].loc[tables[reference]["cancer"] == 1, "patient_id"].nunique()
    differences = []
    for run in others:
        found = []
        for name in [primary, *(name for name in COMPARED if name != primary)]:
            if name in aucs[run]:
                first, second = aucs[run][name], aucs[reference][name]
                values, (interval, p) = (first.auc, second.auc), find_difference(first, second)
            else:
                values = figures[run][name], figures[reference][name]
                interval, p = _judge(replicates[run][name] - replicates[reference][name])
            difference = _make_difference(name, *values, interval, p, is_primary=name == primary)
            found.append(replace(difference, run=run, reference=reference))
        differences += [_doubt(each, women, num_replicates) for each in found]
    return _correct(differences)


def tabulate_differences(differences: list[Difference]) -> pd.DataFrame:
    """Makes a table of them; what is undefined is an empty cell."""
    rows = []
    for found in differences:
        interval = asdict(found.interval) if found.interval else {"low": None, "high": None}
        role = "primary" if found.is_primary else "secondary"
        rows.append({**asdict(found), **interval, "role": role, "verdict": found.verdict})
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def _estimate_aucs(
    tables: Mapping[str, pd.DataFrame], oofs: Mapping[str, pd.DataFrame]
) -> dict[str, dict[str, AucEstimate]]:
    """Returns the AUCs of each run, of which the patients' parts tell how sure their differences are."""
    numbers, num_patients = number_patients(tables)
    of_images, _ = number_patients(oofs)
    return {
        run: {
            "auc": estimate_auc_of(breasts, numbers[run], num_patients),
            "auc_pooled": estimate_auc_of(breasts.assign(fold=0), numbers[run], num_patients),
            AUC_WEIGHTED: estimate_auc_of(
                oofs[run], of_images[run], num_patients, weights=weigh_images(oofs[run])
            ),
        }
        for run, breasts in tables.items()
    }


def _judge(paired_R: Floats) -> tuple[Interval | None, float | None]:
    """Returns interval and two-sided p value of a difference; neither where the replicates do not differ."""
    interval = find_interval(paired_R)
    if interval is None or not interval.has_width:
        return None, None
    known_R = paired_R[~np.isnan(paired_R)]
    rarer = min((known_R <= 0).sum(), (known_R >= 0).sum())
    return interval, float(min(1.0, 2 * (rarer + 1) / (len(known_R) + 1)))


def _make_difference(
    figure: str,
    value: float | None,
    reference_value: float | None,
    interval: Interval | None,
    p: float | None,
    *,
    is_primary: bool,
) -> Difference:
    is_known = value is not None and reference_value is not None
    return Difference(
        run="",
        reference="",
        figure=figure,
        value=value,
        reference_value=reference_value,
        difference=value - reference_value if value is not None and reference_value is not None else None,
        interval=interval if is_known else None,
        is_primary=is_primary,
        p=p if is_known else None,
    )


def _doubt(found: Difference, num_cancer_patients: int, num_replicates: int) -> Difference:
    """Adds why a difference cannot be judged."""
    if found.difference is None:
        return found
    if num_cancer_patients < FEW_CANCERS:
        return replace(found, reason=f"fewer than {FEW_CANCERS} women with cancer")
    if found.interval is None:
        return replace(found, reason="the difference has no spread")
    share = found.interval.num_undefined / num_replicates
    if share > MOST_UNDEFINED:
        return replace(found, reason=f"undefined in {share:.0%} of the replicates")
    return found


def _correct(differences: list[Difference]) -> list[Difference]:
    """Adds Holm's p values: of all runs' primary figures, and of all their secondary ones.

    Those that nothing is known of count as 1.
    """
    corrected: dict[tuple[str, str], float] = {}
    for is_primary in (True, False):
        family = [found for found in differences if found.is_primary == is_primary]
        p_values = correct_by_holm([1.0 if found.p is None else found.p for found in family])
        corrected |= {(found.run, found.figure): p for found, p in zip(family, p_values, strict=True)}
    return [
        found if found.p is None else replace(found, p_holm=corrected[found.run, found.figure])
        for found in differences
    ]


def _require_same_breasts(first: str, expected: pd.DataFrame, second: str, found: pd.DataFrame) -> None:
    labels, other_labels = (table.set_index(name_breast(table))["cancer"] for table in (expected, found))
    ids, other_ids = set(labels.index), set(other_labels.index)
    for here, there, lacking in [(first, second, ids - other_ids), (second, first, other_ids - ids)]:
        if lacking:
            raise UserError(
                f"{first} and {second} cannot be compared: {there} has no prediction of {len(lacking)} "
                f"breasts of {here}, {'_'.join(min(lacking))} for one; compare runs of the same patients and "
                "images"
            )
    differing = labels.index[labels != other_labels.reindex(labels.index)]
    if len(differing):
        raise UserError(
            f"{first} and {second} cannot be compared: they give {len(differing)} breasts different labels, "
            f"{'_'.join(differing[0])} for one; compare runs that learned from the same train.csv"
        )
