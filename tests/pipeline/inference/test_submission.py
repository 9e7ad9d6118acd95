"""Submissions: exactly the required ids, once each, as probabilities; every kind of damage is told."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.storage.atomic import require_replaceable, write_csv
from pipeline.evaluation.aggregate import Views
from pipeline.inference.predict_test_set import predict_folder
from pipeline.inference.run_metrics import RecallBy, RecallRule, read_recall_rule
from pipeline.inference.submission import predict_submission
from pipeline.inference.submission_file import (
    SUBMISSION_COLUMNS,
    check_submission,
    make_submission,
    write_submission,
)
from pipeline.runs.run_folder import Run
from tests.pipeline.tiny import make_exams, quiet, write_test_data

IDS = ["7_R", "7_L", "12_L"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set whose test.csv has two images of one breast."""
    rows = ["7,1,R", "7,2,L", "7,3,R", "12,4,L"]
    (tmp_path / "test.csv").write_text("\n".join(["patient_id,image_id,laterality", *rows]))
    return tmp_path


def breasts(**probabilities: float) -> pd.DataFrame:
    table = {"7_L": 0.25, "7_R": 0.5, "12_L": 1.0} | {
        f"{key[1:]}": value for key, value in probabilities.items()
    }
    return pd.DataFrame(
        {"prediction_id": list(table), "probability": list(table.values()), "patient_id": "x"}
    )


def problems_of(folder: Path, *lines: str, header: str = "prediction_id,cancer") -> list[str]:
    path = folder / "submission.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return check_submission(path, folder)


# Making


def test_rows_come_in_the_required_order_with_the_two_columns_of_the_competition(folder: Path) -> None:
    path = folder / "submission.csv"
    write_submission(breasts(), path, required_ids=IDS)
    assert path.read_text() == "prediction_id,cancer\n7_R,0.5\n7_L,0.25\n12_L,1.0\n"
    assert check_submission(path, folder) == []


def test_probabilities_survive_the_file_exactly(folder: Path) -> None:
    path = folder / "submission.csv"
    write_submission(breasts(p7_L=1 / 3), path, required_ids=IDS)
    assert pd.read_csv(path)["cancer"].tolist() == [0.5, 1 / 3, 1.0]


@pytest.mark.parametrize(
    "table",
    [breasts().iloc[1:], breasts(p9_L=0.5), pd.concat([breasts(), breasts().iloc[:1]])],
    ids=["missing", "unknown", "twice"],
)
def test_breasts_that_are_not_exactly_the_required_ones_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"1 ids are not there exactly as required, such as '(7|9)_L'"):
        make_submission(table, IDS)


@pytest.mark.parametrize("probability", [float("nan"), -0.01, 1.01, float("inf")])
def test_values_that_are_no_probabilities_are_never_written(folder: Path, probability: float) -> None:
    with pytest.raises(ValueError, match=r"the probability of 7_R is .* which is not in 0\.\.1"):
        write_submission(breasts(p7_R=probability), folder / "submission.csv", required_ids=IDS)
    assert not (folder / "submission.csv").exists()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 1))
def test_with_a_threshold_the_answers_are_0_and_1(probabilities: list[float], threshold: float) -> None:
    """A breast that just reaches it counts, as in the choice of the threshold."""
    ids = [f"{number}_L" for number in range(len(probabilities))]
    table = pd.DataFrame({"prediction_id": ids, "probability": probabilities})
    submission = make_submission(table, ids, threshold=threshold)
    assert submission["cancer"].tolist() == [int(value >= threshold) for value in probabilities]
    assert submission["cancer"].dtype == np.int64


def test_answers_are_written_as_whole_numbers(folder: Path) -> None:
    path = folder / "submission.csv"
    write_submission(breasts(), path, required_ids=IDS, threshold=0.5)
    assert path.read_text() == "prediction_id,cancer\n7_R,1\n7_L,0\n12_L,1\n"
    assert check_submission(path, folder) == []


METRICS = {"threshold": 0.2, "recall_rate": 0.02, "threshold_of_mean": 0.125, "breast_is": "mean of logits"}


def test_the_threshold_is_that_of_the_evaluation(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics.write_text(json.dumps(METRICS))
    assert read_recall_rule(run) == RecallRule(0.125)
    assert read_recall_rule(run, "rate") == RecallRule(0.125, 0.02)


@pytest.mark.parametrize("by", ["threshold", "rate"])
def test_an_evaluation_without_a_threshold_of_the_mean_has_to_be_made_once_more(
    tmp_path: Path, by: RecallBy
) -> None:
    run = Run(tmp_path)
    run.metrics.write_text('{"threshold": 0.125, "breast_is": "mean of logits", "folds": []}')
    with pytest.raises(UserError, match=r"is of an older mammo, .* run `mammo evaluate .* once more, or"):
        read_recall_rule(run, by)


def test_a_share_is_counted_off_where_it_comes_to_a_breast() -> None:
    rule = RecallRule(threshold=0.5, rate=0.1)
    probabilities = pd.Series(np.arange(100) / 1_000)
    assert rule.decide(probabilities) == (0.09, "the highest 10 %, from 0.09 on")
    assert rule.decide(probabilities[:10])[0] == 0.009
    assert rule.decide(probabilities[:9]) == (0.5, "threshold 0.5: 10 % of 9 is less than one")
    assert RecallRule(0.5).decide(probabilities) == (0.5, "threshold 0.5")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"has no metrics\.json and thus no threshold: run `mammo evaluate .*--probabilities"),
        ('{"threshold": null}', "found no threshold, since none of its breasts has cancer: ask for --prob"),
        ("{}", r"metrics\.json is damaged: run `mammo evaluate"),
        ("[]", r"metrics\.json is damaged: run `mammo evaluate"),
        ('{"threshold": ', r"metrics\.json is damaged: run `mammo evaluate"),
        ('{"threshold": 0.5}', r"is of an older mammo, .* run `mammo evaluate .* once more"),
        *(
            (
                json.dumps(METRICS | {name: value}),
                f"is damaged, its {name} is {float(value)}: run `mammo evaluate",
            )
            for name in ("threshold_of_mean", "recall_rate")
            for value in (float("nan"), 7, -1)
        ),
        (
            json.dumps(METRICS | {"threshold_of_mean": "high"}),
            r"metrics\.json is damaged: run `mammo evaluate",
        ),
    ],
)
def test_without_a_threshold_one_sentence_says_what_to_do(
    tmp_path: Path, content: str | None, sentence: str
) -> None:
    if content is not None:
        Run(tmp_path).metrics.write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_recall_rule(Run(tmp_path))


def test_nothing_but_a_submission_is_overwritten(folder: Path) -> None:
    with pytest.raises(UserError, match=r"test\.csv is not a table of prediction_id, cancer and would be"):
        require_replaceable(folder / "test.csv", SUBMISSION_COLUMNS)
    path = folder / "submission.csv"
    require_replaceable(path, SUBMISSION_COLUMNS)
    write_submission(breasts(), path, required_ids=IDS)
    require_replaceable(path, SUBMISSION_COLUMNS)


# Checking


@pytest.mark.parametrize(
    "lines",
    [["7_R,0.1", "7_L,0", "12_L,1"], ["12_L,1e-3", "7_L,1.0", "7_R,0.5"]],
    ids=["in order", "other order"],
)
def test_a_valid_submission_has_no_problems(folder: Path, lines: list[str]) -> None:
    assert problems_of(folder, *lines) == []


def test_the_real_test_table_needs_two_rows(real_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_text("prediction_id,cancer\n10008_L,0.02\n10008_R,0.02\n")
    assert check_submission(path, real_data / "rsna_csv") == []


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["7_R,0.1", "7_L,0"], ["1 of 3 required ids are missing, first '12_L'"]),
        (["7_R,0.1", "7_L,0", "12_L,1", "9_L,1"], ["1 id not in test.csv, first '9_L' in row 5"]),
        (
            ["7_R,0.1", "7_L,0", "12_L,1", "7_R,1"],
            ["1 id standing in an earlier row too, first '7_R' in row 5"],
        ),
        (["7_R,0.1", "7_L,", "12_L,nan"], ["2 values of cancer other than a number, first '' in row 3"]),
        (["7_R,high", "7_L,0", "12_L,1"], ["1 value of cancer other than a number, first 'high' in row 2"]),
        (["7_R,0.1", "7_L,1.5", "12_L,-1"], ["2 values of cancer outside 0..1, first '1.5' in row 3"]),
        (["7_R,0.1", "7_L,inf", "12_L,1"], ["1 value of cancer outside 0..1, first 'inf' in row 3"]),
        ([], ["there are no rows", "3 of 3 required ids are missing, first '7_R'"]),
        (
            ["7_R,0.02", "7_L,0.020", "12_L,2e-2"],
            ["all 3 values of cancer are 0.02, which tells nothing apart"],
        ),
        (
            ["8_R,0.1", "8_L,0"],
            ["none of its 2 ids is in test.csv, whose first is '7_R': it is made for another test set"],
        ),
    ],
)
def test_each_problem_is_counted_and_its_first_row_shown(
    folder: Path, lines: list[str], expected: list[str]
) -> None:
    assert problems_of(folder, *lines) == expected


@pytest.mark.parametrize("damaged", ["7_R ", " 7_R", "7 R", "7R", "7-R", "7__R", "7_r"])
def test_a_damaged_id_is_told_with_the_one_that_is_meant(folder: Path, damaged: str) -> None:
    problems = problems_of(folder, f"{damaged},0.1", "7_L,0", "12_L,1")
    expected = f"1 id with other blanks, dashes or case than '7_R' and its like, first {damaged!r} in row 2"
    assert problems == [expected]


@pytest.mark.parametrize(
    ("header", "row", "advice"),
    [(",prediction_id,cancer", "0,7_R,1", True), ("cancer,prediction_id", "1,7_R", False)],
)
def test_wrong_columns_are_named_and_the_rest_still_checked(
    folder: Path, header: str, row: str, advice: bool
) -> None:
    problems = problems_of(folder, row, header=header)
    assert problems[0].startswith("the columns must be prediction_id, cancer, but are ")
    assert ("leave the index column out" in problems[0]) is advice
    assert problems[1:] == ["2 of 3 required ids are missing, first '7_L'"]


def test_an_exam_of_two_breasts_may_have_equal_answers(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("patient_id,image_id,laterality\n7,1,R\n7,2,L\n")
    assert problems_of(tmp_path, "7_R,0", "7_L,0") == []


def test_a_column_that_is_there_is_checked_though_the_other_is_not(folder: Path) -> None:
    assert len(problems_of(folder, "7_R,1", header="id,target")) == 1
    problems = problems_of(folder, "7_R,2", header="id,cancer")
    assert problems[1:] == ["1 value of cancer outside 0..1, first '2' in row 2"]
    problems = problems_of(folder, "7-R,1", "7-L,0", "12-L,1", header="prediction-id,cancer")
    assert problems[1].startswith("3 ids with other blanks, dashes or case than '7_R'")


def test_ragged_rows_are_one_problem_and_the_others_are_checked(folder: Path) -> None:
    problems = problems_of(folder, "7_R,0,5", "7_L,2", "12_L,1")
    assert problems[0] == (
        "1 row with more or fewer cells than the header, first row 2; a decimal comma makes two cells of one"
    )
    assert problems[1:] == [
        "1 of 3 required ids are missing, first '7_R'",
        "1 value of cancer outside 0..1, first '2' in row 3",
    ]


@pytest.mark.parametrize(
    "header", ["\ufeffprediction_id,cancer", "prediction_id, cancer", "Prediction_id,cancer"], ids=repr
)
def test_names_are_taken_as_kaggle_takes_them(folder: Path, header: str) -> None:
    (problem,) = problems_of(folder, "7_R,0.1", "7_L,0", "12_L,1", header=header)
    assert problem.startswith("the columns must be prediction_id, cancer, but are ")


def test_names_that_nobody_knows_are_not_repeated(folder: Path) -> None:
    (problem, *_) = problems_of(folder, "7_R,0.1", header="Weiherer^Annegret,cancer")
    assert problem == "the columns must be prediction_id, cancer, but are 'cancer' and 1 other name"


def test_a_row_of_empty_cells_is_a_row(folder: Path) -> None:
    problems = problems_of(folder, "7_R,0.1", "7_L,0", "12_L,1", ",")
    assert problems == [
        "1 id not in test.csv, first '' in row 5",
        "1 value of cancer other than a number, first '' in row 5",
    ]


def test_semicolons_are_told(folder: Path) -> None:
    assert (
        "the cells are separated by semicolons: separate them by commas"
        in problems_of(folder, "7_R;1", header="prediction_id;cancer")[0]
    )


def test_all_problems_are_told_at_once(folder: Path) -> None:
    assert len(problems_of(folder, "7_R,2", "7_R,x", "9_L,0")) == 5


def test_an_absent_submission_and_an_absent_test_table_are_user_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no submission at"):
        check_submission(folder / "other.csv", folder)
    with pytest.raises(UserError, match=r"has no test\.csv"):
        check_submission(folder / "other.csv", tmp_path / "empty")


@pytest.mark.parametrize(("views", "tells"), [("max", True), ("max", False), ("mean", True)])
def test_the_highest_of_the_views_is_warned_of_where_counting_tells_the_label(
    finished: Run, tmp_path: Path, views: Views, tells: bool
) -> None:
    data = write_test_data(tmp_path / "data", make_exams(2, split="test"))
    finished.metrics.write_text(json.dumps({"shortcut_audit": {"counting_tells_the_label": tells}}))
    made = predict_submission(
        [finished], data, tmp_path / "a.csv", workers=0, reporter=quiet(), views=views, probabilities=True
    )
    warnings = [problem for problem in made.problems if "--views mean" in problem]
    assert len(warnings) == (views == "max" and tells)
    for warning in warnings:
        assert "the highest of a breast's images grows with their number" in warning


def test_each_exam_of_a_woman_has_a_row(unbroken: Run, tmp_path: Path) -> None:
    """Of breast 1_L one image is of an earlier exam; both get what their own image has."""
    exams = make_exams(2, split="test").drop(columns="prediction_id")
    exams["exam_id"] = ["2020", "2022", "2022", "2022", *["2021"] * 4]
    data = write_test_data(tmp_path / "data", exams)
    made = predict_submission(
        [unbroken], data, tmp_path / "a.csv", workers=0, reporter=quiet(), probabilities=True
    )
    ids = ["1_2020_L", "1_2022_L", "1_2022_R", "2_2021_L", "2_2021_R"]
    assert made.table["prediction_id"].tolist() == ids
    assert made.problems == []
    predictions = predict_folder(unbroken, data, workers=0, reporter=quiet())
    alone = predictions.images.set_index("image_id")["probability"]
    assert made.table["cancer"].tolist()[:2] == alone[["100", "101"]].tolist()
    own = dict(zip(ids, "abcde", strict=True))
    exams["prediction_id"] = exams["patient_id"] + "_" + exams["exam_id"] + "_" + exams["laterality"]
    write_csv(data / "test.csv", exams.assign(prediction_id=exams["prediction_id"].map(own)))
    again = predict_submission(
        [unbroken], data, tmp_path / "b.csv", workers=0, reporter=quiet(), probabilities=True
    )
    assert again.table["prediction_id"].tolist() == list("abcde")
    assert again.table["cancer"].tolist() == made.table["cancer"].tolist()
