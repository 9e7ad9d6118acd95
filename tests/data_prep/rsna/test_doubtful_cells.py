"""Cells that would mislead: what a spreadsheet has changed, and what stands for an unknown value."""

import pandas as pd
import pytest

from data_prep.rsna.doubtful_cells import find_doubtful_cells


def doubts(*patient_ids: str, image_ids: tuple[str, ...] = (), ages: tuple[str, ...] = ()) -> list[str]:
    columns = {
        "patient_id": list(patient_ids),
        "image_id": list(image_ids) or [f"i{row}" for row in range(len(patient_ids))],
        "age": list(ages) or [""] * len(patient_ids),
    }
    table = pd.DataFrame(columns, index=range(2, len(patient_ids) + 2), dtype="str")
    return [f"row {problem.row}: {problem.what}" for problem in find_doubtful_cells(table)]


@pytest.mark.parametrize(
    ("first", "second"),
    [("0001", "1"), ("1", "01"), ("007", "7.0"), ("abc", "ABC"), ("p-1", "P-1"), ("0", "00")],
)
def test_two_ids_that_a_spreadsheet_or_a_file_system_takes_for_one_are_named(first: str, second: str) -> None:
    (doubt,) = doubts(first, first, second)
    shown = second.removesuffix(".0")
    assert doubt.startswith(
        f"row 4: patient_id {shown!r} but {first!r} in an earlier row: write one patient's id"
    )


@pytest.mark.parametrize(
    "ids", [("0001", "0002", "0001"), ("1", "10", "100"), ("a01", "a1"), ("1", "1.0", "1 ")]
)
def test_ids_that_differ_in_more_and_equal_ones_are_not(ids: tuple[str, ...]) -> None:
    assert doubts(*ids) == []


def test_a_power_of_ten_among_numbers_is_a_rounded_number_and_elsewhere_a_name() -> None:
    (doubt,) = doubts("100", "1E5", "")
    assert doubt.startswith("row 3: patient_id '1E5' is a number in scientific notation")
    assert doubts("3e8", "a41", "77f") == []
    assert "image_id '12e3'" in doubts("1", "2", image_ids=("12e3", "5"))[0]


@pytest.mark.parametrize("age", ["0", "0.0", "0.5", "999", "121", "150"])
def test_ages_that_nobody_has_are_refused_with_the_way_out(age: str) -> None:
    (doubt,) = doubts("1", ages=(age,))
    assert f"age {age.removesuffix('.0')!r} must be from 1 to 120 years: leave the cell empty" in doubt


@pytest.mark.parametrize("age", ["1", "26", "61.5", "89", "120", "", "nan"])
def test_ages_that_women_have_and_unknown_ones_are_not(age: str) -> None:
    assert doubts("1", ages=(age,)) == []
