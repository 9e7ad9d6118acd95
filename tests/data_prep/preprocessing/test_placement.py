"""Geometry: the square shows the box where `Placement` says, at every level, and every point maps back."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_prep.imageio.codecs import JPEG_2000_LOSSLESS, Layout, decode, encode
from data_prep.imageio.downsample import reduce_pixels
from data_prep.imageio.frame import Box, Display, Grid
from data_prep.preprocessing.placement import Fit, Placement, find_level, find_support, fit_box, fit_to_square
from data_prep.storage.byte_source import Span

ROWS, COLUMNS = 600, 480


def box_of(mask: NDArray[np.bool_]) -> Box:
    ys, xs = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return Box(int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)


def make_picture(rows: int = ROWS, columns: int = COLUMNS) -> Display:
    """Smooth, 0.1 to 0.9, different everywhere."""
    y, x = np.mgrid[:rows, :columns]
    return (0.5 + 0.2 * np.sin(x / 37) + 0.2 * np.cos(y / 53)).astype(np.float32)


turns = st.sampled_from([0, 90, 180, 270])
fits = st.sampled_from(["letterbox", "stretch"])
boxes = st.builds(
    lambda left, top, width, height: Box(left, top, left + width, top + height),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(2, 150),
    st.integers(2, 150),
)


@given(box=boxes, side=st.integers(16, 96), flipped=st.booleans(), level=st.integers(0, 2), fit=fits)
@settings(max_examples=80, deadline=None)
def test_the_square_shows_the_box_and_pads_with_zero(
    box: Box, side: int, flipped: bool, level: int, fit: Fit
) -> None:
    display = np.ones((200 >> level, 200 >> level), np.float32)
    placement = fit_box(box, is_flipped=flipped, side=side, fit=fit)
    image = fit_to_square(display, placement, side=side, grid=Grid(level, is_even=True))
    assert image.shape == (side, side)
    assert image.dtype == np.float32
    assert np.isin(np.round(image, 4), [0, 1]).all()
    shown = box_of(image > 0)
    assert (shown.width, shown.height) == (placement.width, placement.height)
    assert max(shown.width, shown.height) == side
    assert shown.left == 0
    assert abs(shown.top - (side - shown.bottom)) <= 1
    if fit == "stretch":
        assert shown == Box(0, 0, side, side)
    else:
        longer = max(box.width, box.height)
        assert abs(shown.width - max(1, box.width * side / longer)) <= 0.5
        assert abs(shown.height - max(1, box.height * side / longer)) <= 0.5


@given(
    box=boxes,
    side=st.integers(16, 1024),
    flipped=st.booleans(),
    fit=fits,
    turned=turns,
    aspect=st.floats(0.1, 10.0),
    x=st.floats(-10, 2000),
    y=st.floats(-10, 2000),
)
def test_every_point_maps_back_also_from_the_manifest(
    box: Box, side: int, flipped: bool, fit: Fit, turned: int, aspect: float, x: float, y: float
) -> None:
    placement = fit_box(box, is_flipped=flipped, side=side, fit=fit, turned=turned, pixel_aspect=aspect)
    assert placement.to_full_matrix(*placement.to_image(x, y)) == pytest.approx((x, y), abs=1e-5)
    written = {name: str(value) for name, value in placement.as_record().items()}
    assert Placement.from_record(written) == placement
    assert Placement.from_record(written | {"flipped": flipped}) == placement
    assert Placement.from_record(written | {"flipped": np.bool_(flipped)}) == placement
    corners = [placement.to_image(box.left, box.top), placement.to_image(box.right, box.bottom)]
    assert sorted(corner[0] for corner in corners) == pytest.approx([0, placement.width])
    assert sorted(corner[1] for corner in corners) == pytest.approx(
        [placement.top, placement.top + placement.height]
    )


def test_a_placement_of_an_older_manifest_does_not_turn() -> None:
    record = fit_box(Box(0, 0, 9, 9), is_flipped=True, side=16, fit="letterbox").as_record()
    del record["turned"]
    assert Placement.from_record(record).turned == 0
    with pytest.raises(ValueError, match="turned is 45"):
        Placement.from_record(record | {"turned": 45})


@given(box=boxes, flipped=st.booleans(), turned=turns, fit=fits)
@settings(max_examples=40, deadline=None)
def test_a_turned_box_shows_what_turning_the_frame_first_shows(
    box: Box, flipped: bool, turned: int, fit: Fit
) -> None:
    display = make_picture(200, 200)
    placement = fit_box(box, is_flipped=flipped, side=48, fit=fit, turned=turned)
    part = np.ascontiguousarray(placement.pose.turn(display[box.top : box.bottom, box.left : box.right]))
    whole = Box(0, 0, part.shape[1], part.shape[0])
    expected = fit_to_square(part, fit_box(whole, is_flipped=False, side=48, fit=fit), side=48)
    image = fit_to_square(display, placement, side=48)
    inner = np.s_[4:-4, 4:-4]  # beyond the box the part has no neighbours
    np.testing.assert_allclose(image[inner], expected[inner], atol=0.02)


@pytest.mark.parametrize("flipped", ["", "false", "0", 1, None, float("nan"), pd.NA])
def test_a_cell_that_is_no_truth_value_is_refused(flipped: Any) -> None:
    record = fit_box(Box(0, 0, 9, 9), is_flipped=False, side=16, fit="letterbox").as_record()
    with pytest.raises(ValueError, match=r"flipped is .*; it is True or False"):
        Placement.from_record(record | {"flipped": flipped})


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_dot_is_where_the_placement_says(fit: Fit, flipped: bool, level: int) -> None:
    """A smooth bright dot at a known place is found there in the image, to a fraction of a pixel."""
    x0, y0 = 210.5, 341.5  # pixel edges at whole numbers: the centre of pixel (210, 341)
    y, x = np.mgrid[:ROWS, :COLUMNS] + 0.5
    dot = np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * 12.0**2)).astype(np.float32)
    step = 2**level
    placement = fit_box(Box(30, 100, 390, 580), is_flipped=flipped, side=128, fit=fit)
    image = fit_to_square(
        np.ascontiguousarray(dot[::step, ::step]), placement, side=128, grid=Grid(level, is_even=True)
    )
    ys, xs = np.mgrid[:128, :128] + 0.5
    found = (image * xs).sum() / image.sum(), (image * ys).sum() / image.sum()
    assert found == pytest.approx(placement.to_image(x0, y0), abs=0.1)
    assert placement.to_full_matrix(*found) == pytest.approx((x0, y0), abs=0.4)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_reduced_decode_gives_nearly_the_image_of_the_full_one(level: int, flipped: bool) -> None:
    stored = np.rint(make_picture() * 4095).astype(np.uint16)
    encoded = Span.of(encode(stored, JPEG_2000_LOSSLESS, bits_stored=12))
    layout = Layout(ROWS, COLUMNS, 16, 12, is_signed=False)
    placement = fit_box(Box(1, 83, 247, 517), is_flipped=flipped, side=96, fit="letterbox")
    images = [
        fit_to_square(
            (decode(encoded, JPEG_2000_LOSSLESS, layout, at) / 4095).astype(np.float32),
            placement,
            side=96,
            grid=Grid(at, is_even=True),
        )
        for at in (0, level)
    ]
    inside = box_of(images[0] > 0)
    error = (images[0] - images[1])[inside.top : inside.bottom, inside.left : inside.right]
    assert -10 * np.log10(np.mean(error**2)) >= 45


@given(box=boxes, side=st.integers(16, 96), flipped=st.booleans(), level=st.integers(0, 2), fit=fits)
@settings(max_examples=80, deadline=None)
def test_only_the_support_is_needed(box: Box, side: int, flipped: bool, level: int, fit: Fit) -> None:
    display = np.ascontiguousarray(make_picture(230, 260)[:: 2**level, :: 2**level])
    placement = fit_box(box, is_flipped=flipped, side=side, fit=fit)
    grid = Grid(level, is_even=True)
    rows, columns = find_support(placement, display.shape, grid)
    image = fit_to_square(
        display[rows, columns], placement, side=side, grid=grid, origin=(rows.start, columns.start)
    )
    np.testing.assert_allclose(
        image, fit_to_square(display, placement, side=side, grid=grid), rtol=0, atol=1e-5
    )


def test_the_image_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), (400, 200))
    placement = fit_box(Box(0, 0, 400, 400), is_flipped=False, side=50, fit="letterbox")
    image = fit_to_square(stripes, placement, side=50)
    np.testing.assert_allclose(image[:, 1:-1], 0.5, atol=0.05)


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("flipped", [False, True])
def test_averaged_blocks_give_nearly_the_image_of_the_full_frame(level: int, flipped: bool) -> None:
    display = make_picture(603, 481)
    placement = fit_box(Box(1, 83, 481, 603), is_flipped=flipped, side=96, fit="letterbox")
    exact = fit_to_square(display, placement, side=96)
    quick = fit_to_square(reduce_pixels(display, level), placement, side=96, grid=Grid(level))
    assert -10 * np.log10(np.mean((exact - quick) ** 2)) >= 45


@given(box=boxes, side=st.integers(16, 96), oversampling=st.floats(0.5, 4), max_level=st.integers(0, 6))
def test_the_level_is_the_lowest_that_leaves_enough_pixels(
    box: Box, side: int, oversampling: float, max_level: int
) -> None:
    level = find_level(box, side=side, oversampling=oversampling, max_level=max_level)
    longer, needed = max(box.width, box.height), side * oversampling
    assert 0 <= level <= max_level
    assert level == 0 or longer / 2**level >= needed
    assert level == max_level or longer / 2 ** (level + 1) < needed
