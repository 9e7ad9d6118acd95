"""What a report says of repeats: the mean, how sure it is, and what is not known."""

from dataclasses import replace

import pytest

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.evaluate_oof import require_breasts
from pipeline.evaluation.uncertainty.repeats import ExpectedAuc, Repeats, summarise_repeats
from pipeline.reporting.sections.repeats_text import describe_repeats, tabulate_repeats
from tests.pipeline.synthetic_run import make_oof


@pytest.fixture(scope="module")
def repeats() -> Repeats:
    oofs = {number: make_oof(skill=1 + number) for number in range(3)}
    breasts = {number: require_breasts(oof) for number, oof in oofs.items()}
    return summarise_repeats(oofs, breasts, {0: 0, 1: 1234567, 2: None}, figure="auc")


def test_the_sentence_names_mean_spread_interval_and_the_part_of_training(repeats: Repeats) -> None:
    expected = ExpectedAuc(0.8123, 0.0101, 0.03, 0.04, Interval(0.7501, 0.8502, 0))
    text = describe_repeats(replace(repeats, expected=expected))
    for part in ("In 3 cross-validations", "AUC is 0.812 on", "deviation of 0.010", "0.750 to 0.850"):
        assert part in text
    assert "36.0\u00a0% of its variance come from training" in text  # 9 of 25


@pytest.mark.parametrize(
    ("expected", "sentence"),
    [
        (ExpectedAuc(None, None, None, None, None), "undefined in one of 3 cross-validations"),
        (ExpectedAuc(0.8, 0.01, 0.01, None, None), "Nothing tells how sure that average is"),
    ],
)
def test_what_is_not_known_is_said(repeats: Repeats, expected: ExpectedAuc, sentence: str) -> None:
    assert sentence in describe_repeats(replace(repeats, expected=expected))


def test_repeats_that_do_not_differ_owe_nothing_to_training(repeats: Repeats) -> None:
    expected = ExpectedAuc(0.8, 0.0, 0.0, 0.04, Interval(0.75, 0.85, 0))
    assert "0.0\u00a0% of its variance" in describe_repeats(replace(repeats, expected=expected))


def test_the_table_ends_with_mean_and_deviation(repeats: Repeats) -> None:
    table = tabulate_repeats(repeats)
    assert [row[:2] for row in table.rows] == [["0", "0"], ["1", "1234567"], ["2", "not known"]]
    column = table.columns.index("AUC")
    assert [row[column] for row in table.feet] == [
        f"{repeats.table['auc'].mean():.3f}",
        f"{repeats.table['auc'].std():.3f}",
    ]
    assert {len(row) for row in [*table.rows, *table.feet]} == {len(table.columns)}
