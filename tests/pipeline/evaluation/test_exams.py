"""Exam ids keep a woman's screening rounds apart, and leave her one patient."""

import numpy as np
import pandas as pd
import pytest

from data_prep.errors import UserError
from data_prep.rsna.exam_table import EXAM_ID
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.artifacts import evaluate_run
from pipeline.evaluation.audit.traits import EXAM_ORDER, NUM_IMAGES, describe_image_traits
from pipeline.evaluation.compare import compare
from pipeline.evaluation.estimates import estimate_all, transfer_thresholds, weigh_images
from pipeline.evaluation.evaluate_oof import evaluate_oof
from pipeline.evaluation.metrics import largest_sensitivity
from pipeline.evaluation.operating_point import CELLS, describe_operating_point
from pipeline.evaluation.slices import describe_images
from pipeline.reporting.cases.case_selection import select_cases
from tests.pipeline.synthetic_run import make_oof, write_run

BREAST = ["patient_id", EXAM_ID, "laterality"]


def make_rounds(num_patients=60, *, num_cancers=25, seed=0):
    """One to three exams a woman, each of two breasts with two images and labels of their own."""
    oof = make_oof(2 * num_patients, num_folds=1, num_cancers=num_cancers, seed=seed)
    number = oof["patient_id"].astype(int)
    patient = number % num_patients
    exam = np.where(patient % 3 == 0, number, number // num_patients)  # of every third woman the ids differ
    oof = oof.assign(patient_id=patient.astype(str), exam_id=exam.astype(str), fold=patient % 3)
    return oof[(patient % 4 != 1) | (number < num_patients)].reset_index(drop=True)


def to_women(oof):
    """Makes a woman of each exam."""
    return oof.assign(patient_id=oof["patient_id"] + "x" + oof[EXAM_ID]).drop(columns=EXAM_ID)


def figures_of(table):
    """All figures, without intervals."""
    table = transfer_thresholds(table)
    return estimate_all({"all": table}, num_replicates=3)["all"].metrics.figures


def test_a_breast_is_one_of_an_exam():
    oof = make_rounds()
    breasts = to_breasts(oof)
    as_women = to_breasts(to_women(oof)).set_index("prediction_id")
    assert (
        len(breasts)
        == len(oof[BREAST].drop_duplicates())
        > len(oof[["patient_id", "laterality"]].drop_duplicates())
    )
    assert list(breasts)[:4] == ["prediction_id", *BREAST]
    for row in breasts.itertuples():
        other = as_women.loc[f"{row.patient_id}x{row.exam_id}_{row.laterality}"]
        assert row.prediction_id == f"{row.patient_id}_{row.exam_id}_{row.laterality}"
        assert (row.probability, row.cancer, row.num_images) == tuple(
            other[["probability", "cancer", "num_images"]]
        )


def test_without_exam_ids_the_rounds_contradict_each_other():
    oof = make_rounds()
    with pytest.raises(ValueError, match="has images of different cancer"):
        to_breasts(oof.drop(columns=EXAM_ID))


@pytest.mark.parametrize("level", ["breast", "image"])
def test_every_figure_is_that_of_exams_as_women(level):
    """A recall rate is a share of the exams; no other figure asks whose they are."""
    oof = make_rounds()
    tables = [to_breasts(each) if level == "breast" else each for each in (oof, to_women(oof))]
    found, expected = map(figures_of, tables)
    assert found == pytest.approx(expected, nan_ok=True)


def test_of_each_fold_exams_are_recalled_and_not_women():
    """Counted exam by exam: the highest of an exam's two breasts recalls it."""
    breasts = to_breasts(make_rounds())
    by_exam = breasts.groupby(["fold", "patient_id", EXAM_ID])["probability"].max().reset_index()
    sizes = by_exam.groupby("fold").size()
    for percent, rate in {5: 0.05, 10: 0.1}.items():
        shares = rate * sizes
        allowed = np.floor(shares)
        left = int(np.floor(rate * len(by_exam) + 1e-9) - allowed.sum())
        for fold in (shares - allowed).sort_values(ascending=False, kind="stable").index[:left]:
            allowed[fold] += 1
        found = 0
        for fold, own in by_exam.groupby("fold"):
            threshold = own["probability"].sort_values(ascending=False).iloc[int(allowed[fold]) - 1]
            cancers = breasts[(breasts["fold"] == fold) & (breasts["cancer"] == 1)]
            found += (cancers["probability"] >= threshold).sum()
        value = figures_of(breasts)[f"sensitivity_at_recall_rate_{percent}"]
        assert value == pytest.approx(found / breasts["cancer"].sum())
        women = figures_of(breasts.drop(columns=EXAM_ID))[f"sensitivity_at_recall_rate_{percent}"]
        assert value > women  # there are fewer women than exams to be recalled


def test_exams_are_counted_at_the_operating_point():
    """In plain loops over women and their exams."""
    breasts = transfer_thresholds(to_breasts(make_rounds()))
    counts = dict.fromkeys(CELLS, 0)
    for _, exam in breasts.groupby(["patient_id", EXAM_ID]):
        recalled = any(exam["probability"] >= exam["threshold"])
        sick = any(exam["cancer"] == 1)
        counts[f"{'true' if recalled == sick else 'false'}_{'positives' if recalled else 'negatives'}"] += 1
    of_breasts, of_exams = describe_operating_point(breasts, num_replicates=50).tables
    assert (of_breasts.unit, of_exams.unit) == ("breast", "exam")
    assert of_exams.cells == counts
    assert sum(counts.values()) == 105
    rate = (counts["true_positives"] + counts["false_positives"]) / 105
    assert of_exams.figures["recall_rate"] == pytest.approx(rate)
    assert "screening_ppv" in of_exams.figures


def test_the_same_exam_three_times_makes_nothing_surer():
    """Intervals are drawn by woman: three equal rounds of each tell as much as one."""
    once = to_breasts(make_oof(num_cancers=25, num_patients=80).assign(exam_id="1"))
    copies = [once.assign(exam_id=number, prediction_id=once["prediction_id"] + number) for number in "123"]
    thrice = pd.concat(copies, ignore_index=True)
    tables = [transfer_thresholds(table) for table in (once, thrice)]
    first, second = (estimate_all({"all": table}, num_replicates=200)["all"] for table in tables)
    for name in ("auc", "average_precision", "brier", "pf1", "pf1_transferred"):
        ends = [(each.intervals[name].low, each.intervals[name].high) for each in (first, second)]
        assert ends[1] == pytest.approx(ends[0]), name
    assert (first.num_cancer_patients, second.num_breasts) == (second.num_cancer_patients, 480)
    cells = [describe_operating_point(table, num_replicates=200).tables[1] for table in tables]
    for name, interval in cells[0].intervals.items():
        again = cells[1].intervals[name]
        assert (again.low, again.high) == pytest.approx((interval.low, interval.high)), name


def test_one_exam_a_woman_changes_nothing_but_the_names():
    oof = make_oof(num_cancers=25)
    without, with_ids = (evaluate_oof(each) for each in (oof, oof.assign(exam_id="7")))
    for level in ("breasts", "images"):
        first, second = getattr(without, level), getattr(with_ids, level)
        assert first.pooled == second.pooled
        assert first.folds == second.folds
        assert first.slices == second.slices
    assert [table.cells for table in without.operating_point.tables] == [
        table.cells for table in with_ids.operating_point.tables
    ]
    pd.testing.assert_frame_equal(without.fold_table, with_ids.fold_table)
    assert without.ceilings == with_ids.ceilings


def test_images_are_counted_and_weighed_by_exam():
    oof = make_rounds()
    assert set(describe_images(oof)["views"]) == {"2"}
    assert set(describe_images(oof.drop(columns=EXAM_ID))["views"]) == {"2", "4"}
    traits = describe_image_traits(oof, None)
    assert set(traits[NUM_IMAGES]) == {2.0}
    assert EXAM_ORDER in traits
    assert set(weigh_images(oof)) == {0.5}


def test_no_model_can_find_more_than_the_exams_that_are_recalled():
    """One woman with ten exams: a fifth of them is two, which have four of the nine cancers at most."""
    labels, exams = [1] * 9 + [0] * 11, np.repeat(np.arange(10), 2)
    assert largest_sensitivity(labels, exams, np.zeros(20), 0.2) == pytest.approx(4 / 9)
    table = pd.DataFrame({"patient_id": "1", "exam_id": exams.astype(str), "laterality": list("LR") * 10})
    oof = table.assign(image_id=[str(row) for row in range(20)], fold=np.arange(20) // 10, cancer=labels)
    assert evaluate_oof(oof.assign(probability=0.5)).ceilings[10] == pytest.approx(2 / 9)


def test_a_case_shows_the_images_of_its_exam_alone():
    oof = make_rounds()
    cases = [case for group in select_cases(evaluate_oof(oof)).groups for case in group.cases]
    assert len(cases) == 12
    for case in cases:
        own = oof[(oof[BREAST] == [case.patient_id, case.exam_id, case.laterality]).all(axis=1)]
        assert sorted(view.image_id for view in case.views) == sorted(own["image_id"])


def test_exam_ids_survive_the_run_folder_and_must_be_in_all_of_it(tmp_path):
    oof = make_rounds().assign(view="CC")
    oof[EXAM_ID] = "00" + oof[EXAM_ID]
    run = write_run(tmp_path / "run", oof)
    evaluation = evaluate_run(run)
    assert set(evaluation.oof[EXAM_ID]) == set(oof[EXAM_ID])
    assert list(evaluation.oof)[-2:] == [EXAM_ID, "view"]
    part = oof[oof["fold"] == 1]
    part.drop(columns=EXAM_ID).to_csv(run.fold(1).oof, index=False)
    with pytest.raises(UserError, match=r"some folds' oof\.csv have a column exam_id and others have none"):
        evaluate_run(run)
    part.assign(exam_id=[None, *part[EXAM_ID].iloc[1:]]).to_csv(run.fold(1).oof, index=False)
    with pytest.raises(UserError, match="has exam_id nan, which must be an exam's id"):
        evaluate_run(run)


def test_runs_are_compared_exam_by_exam():
    oof = make_rounds()
    for found in compare({"a": oof, "b": oof.iloc[::-1]}, num_replicates=5):
        assert found.difference in {0, None}
    with pytest.raises(UserError, match="has no prediction of 210 breasts of a"):
        compare({"a": oof, "b": to_women(oof)})
