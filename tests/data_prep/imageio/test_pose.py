"""What a header says of the way a picture lies: each of the eight ways leads back to the upright one."""

import numpy as np
import pytest

from data_prep.imageio.pose import (
    EXIF_POSES,
    UPRIGHT,
    Directions,
    PixelShape,
    Pose,
    find_pose,
    read_directions,
    read_pixel_shape,
)

USUAL = {("L", "MLO"): ("A", "F"), ("R", "MLO"): ("P", "F"), ("L", "CC"): ("A", "R"), ("R", "CC"): ("P", "L")}
PICTURE = np.arange(12).reshape(3, 4)


@pytest.mark.parametrize(("row", "column"), USUAL.values(), ids=map("-".join, USUAL))
def test_what_hangs_as_usual_is_left_as_it_is(row: str, column: str) -> None:
    laterality = "L" if row == "A" else "R"
    assert find_pose(Directions(row, column), laterality) == UPRIGHT
    assert find_pose(Directions(row, column), None) == UPRIGHT


@pytest.mark.parametrize("view", USUAL, ids="-".join)
@pytest.mark.parametrize("stored", EXIF_POSES.values(), ids=map(str, EXIF_POSES))
def test_a_picture_stored_in_any_way_gets_upright(view: tuple[str, str], stored: Pose) -> None:
    """A mirror alone is left: the chest wall is found in the picture."""
    usual = Directions(*USUAL[view])
    pose = find_pose(usual.after(stored), view[0])
    upright = pose.turn(stored.turn(PICTURE))
    if stored == Pose(0, is_mirrored=True):
        assert pose == UPRIGHT
    else:
        np.testing.assert_array_equal(upright, PICTURE)
        assert usual.after(stored).after(pose) == usual


@pytest.mark.parametrize(
    ("values", "directions"),
    [
        (["A", "F"], Directions("A", "F")),
        (["P", "FL"], Directions("P", "F")),
        (["A", "RF"], Directions("A", "F")),
        ([" a", "r "], Directions("A", "R")),
        (["H", "PL"], Directions("H", "P")),
    ],
)
def test_the_letter_that_counts_is_found(values: list[str], directions: Directions) -> None:
    assert read_directions(values) == directions


@pytest.mark.parametrize(
    "values", [[], ["A"], ["A", ""], ["A", "P"], ["L", "F"], ["A", "HF"], ["CC", "F"], ["A"] * 3]
)
def test_what_no_mammogram_has_is_no_direction(values: list[str]) -> None:
    assert read_directions(values) is None


@pytest.mark.parametrize(
    ("elements", "shape"),
    [
        ({}, PixelShape()),
        ({"PixelAspectRatio": ["5", "4"]}, PixelShape(1.25)),
        ({"ImagerPixelSpacing": ["0.1", "0.2"]}, PixelShape(0.5)),
        ({"NominalScannedPixelSpacing": ["0.2", "0.1"]}, PixelShape(2.0)),
        ({"PixelSpacing": ["0.1", "0.1"], "PixelAspectRatio": ["2", "1"]}, PixelShape(1.0, is_doubtful=True)),
        ({"PixelSpacing": ["0.2", "0.1"], "ImagerPixelSpacing": ["0.2", "0.1"]}, PixelShape(2.0)),
        ({"PixelSpacing": ["-1", "0.1"], "ImagerPixelSpacing": ["0.2", "0.1"]}, PixelShape(2.0)),
        ({"PixelSpacing": ["0.0700", "0.0701"]}, PixelShape()),
    ],
)
def test_the_shape_of_pixels_comes_from_the_first_usable_element(
    elements: dict[str, list[str]], shape: PixelShape
) -> None:
    assert read_pixel_shape(elements) == shape


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["1"],
        ["0", "1"],
        ["-1", "1"],
        ["nan", "1"],
        ["inf", "1"],
        ["1e400", "1"],
        ["11", "1"],
        ["x", "1"],
    ],
)
def test_what_no_pixel_has_is_not_used_and_doubtful(values: list[str]) -> None:
    assert read_pixel_shape({"PixelSpacing": values}) == PixelShape(is_doubtful=True)
