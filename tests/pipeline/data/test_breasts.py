"""Which images a breast is judged by, and which of them a training sees when."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.breasts import (
    CC_LIKE,
    MLO_LIKE,
    OTHER_VIEW,
    BreastTable,
    ViewDraw,
    classify_view,
    make_places,
)
from pipeline.models.breast_transformer import EMPTY
from pipeline.runs.recipe import ModelSettings

VIEWS = ["CC", "MLO", "AT", "CC", None]


def settings(fusion="views", **changes) -> ModelSettings:
    return ModelSettings(fusion=fusion, **changes)


tables = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from("LR"), st.sampled_from(VIEWS)), min_size=1, max_size=20
).map(lambda rows: pd.DataFrame(rows, columns=["patient_id", "laterality", "view"]))


@given(exams=tables)
@pytest.mark.parametrize("fusion", ["views", "exam"])
def test_every_image_is_of_one_breast_and_every_breast_of_one_unit(exams: pd.DataFrame, fusion: str) -> None:
    table = BreastTable.of(exams, settings(fusion))
    assert sorted(row for breast in table.breasts for row in breast.own) == [*range(len(exams))]
    assert sorted(breast for unit in table.units for breast in unit) == [*range(len(table.breasts))]
    for number, breast in enumerate(table.breasts):
        assert {table.breast_of[row] for row in breast.own} == {number}
        own, other = (exams.iloc[rows] for rows in breast)
        assert len(own[["patient_id", "laterality"]].drop_duplicates()) == 1
        same = exams["patient_id"] == own["patient_id"].iloc[0]
        beside = exams.index[same & (exams["laterality"] != own["laterality"].iloc[0])]
        assert sorted(other.index) == (sorted(beside) if fusion == "exam" else [])


def test_a_womans_exams_are_kept_apart() -> None:
    exams = pd.DataFrame(
        {"patient_id": ["1"] * 4, "exam_id": [*"aabb"], "laterality": [*"LRLR"], "view": ["CC"] * 4}
    )
    table = BreastTable.of(exams, settings("exam"))
    assert [breast.other for breast in table.breasts] == [[1], [0], [3], [2]]
    assert table.units == [[0, 1], [2, 3]]


def test_one_view_at_a_time_judges_each_image_alone_and_trains_on_breasts() -> None:
    exams = pd.DataFrame({"patient_id": ["1", "1"], "laterality": ["L", "L"], "view": ["CC", "MLO"]})
    one = settings(views_per_breast=1)
    assert [*BreastTable.of(exams, one, judges_images=True).units] == [[0], [1]]
    assert BreastTable.of(exams, one).breasts[0].own == [0, 1]


@pytest.mark.parametrize(
    ("view", "expected"),
    [("CC", CC_LIKE), ("xccl", CC_LIKE), ("MLO", MLO_LIKE), ("LMO", MLO_LIKE), ("LM", MLO_LIKE)]
    + [(view, OTHER_VIEW) for view in ("AT", "", None, np.nan)],
)
def test_views_have_classes(view: object, expected: int) -> None:
    assert classify_view(view) == expected


def make_draw(views: list[str], *, drop_view=0.0, between=10.0, one_view=False, sides="L") -> ViewDraw:
    exams = pd.DataFrame([("1", side, view) for side in sides for view in views])
    exams.columns = ["patient_id", "laterality", "view"]
    table = BreastTable.of(exams, settings("exam"))
    return ViewDraw(table, np.full(len(table.breasts), between), 3, drop_view, one_view)


def test_a_draw_shows_one_image_of_each_class_and_duplicates_take_turns() -> None:
    draw = make_draw(["CC", "CC", "MLO", "CC"])
    shown = [draw.choose(10 * turn + 4, 0).own for turn in range(6)]
    assert all(len(rows) == 2 and rows[1] == 2 for rows in shown)
    assert Counter(rows[0] for rows in shown) == {0: 2, 1: 2, 3: 2}
    assert next(zip(*shown, strict=True)) == (0, 1, 3, 0, 1, 3)
    assert draw.choose(4, 0) == draw.choose(4, 0)


def test_one_view_shows_all_images_in_turn() -> None:
    draw = make_draw(["CC", "CC", "MLO"], one_view=True)
    assert [draw.choose(10 * turn, 0).own for turn in range(3)] == [[0], [1], [2]]


def test_views_are_left_out_as_often_as_asked_and_never_all() -> None:
    """Whatever the breast: the lot depends on the draw alone, and labels are not known to it."""
    draw = make_draw(["CC", "MLO"], drop_view=0.3, sides="LR")
    drawn = [draw.choose(number, 0) for number in range(4000)]
    assert all(rows.own for rows in drawn)
    both = np.mean([len(rows.own) == 2 for rows in drawn])
    assert both == pytest.approx(0.7**2, abs=0.03)
    assert np.mean([len(rows.other) for rows in drawn]) == pytest.approx(1.4, abs=0.05)
    assert np.mean([len(rows.other) == 0 for rows in drawn]) == pytest.approx(0.09, abs=0.02)
    assert [len(rows.own) for rows in drawn[:50]] == [len(draw.choose(n, 1).own) for n in range(50)]


@given(data=st.data())
def test_slots_that_are_left_are_those_of_images_that_are_there(data: st.DataObject) -> None:
    exams = data.draw(tables)
    table = BreastTable.of(exams, settings("exam"))
    rows = sorted(data.draw(st.sets(st.integers(0, len(exams) - 1), min_size=1)))
    places = table.place(rows)
    names = exams[["patient_id", "laterality"]].apply(tuple, axis=1)
    assert len(places.images) == names.iloc[rows].nunique()
    for images, sides in zip(places.images.tolist(), places.sides.tolist(), strict=True):
        filled = [(rows[image], side) for image, side in zip(images, sides, strict=True) if image != EMPTY]
        own = {names[row] for row, side in filled if side == 0}
        assert len(own) == 1
        assert {row for row, _ in filled} == {row for row in rows if names[row][0] == next(iter(own))[0]}


def test_places_are_filled_up_with_empty_slots() -> None:
    places = make_places([[(0, 1, 0)], [(1, 0, 0), (2, 2, 1)]])
    assert places.images.tolist() == [[0, EMPTY], [1, 2]]
    assert places.views.tolist() == [[1, 0], [0, 2]]
    assert places.is_own.tolist() == [[True, False], [True, False]]
