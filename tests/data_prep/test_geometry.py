"""Geometry: the breast is found whatever lies beside it, and the square shows it where `Placement` says."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_prep.codecs import JPEG_2000_LOSSLESS, Layout, decode, encode
from data_prep.frame import Box, Display
from data_prep.geometry import Breast, Placement, find_breast, find_level, fit_to_square, place

ROWS, COLUMNS = 600, 480


@dataclass(frozen=True)
class Scene:
    """A synthetic frame and where its breast truly is."""

    display: Display
    mask: NDArray[np.bool_]


def draw_breast(
    *, background: float = 0.0, brightness: float = 0.6, reach: float = 0.5, seed: int = 0
) -> Scene:
    """A half-ellipse with its chest wall at the left edge, some texture and noise."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    mask = (x / (reach * COLUMNS)) ** 2 + ((y - 0.5 * ROWS) / (0.35 * ROWS)) ** 2 < 1
    generator = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(generator.normal(0, 1, (ROWS, COLUMNS)), (0, 0), 8)
    values = np.where(mask, brightness + texture, background) + generator.normal(0, 0.004, (ROWS, COLUMNS))
    return Scene(np.clip(values, 0, 1).astype(np.float32), mask)


def with_marker(scene: Scene) -> Scene:
    marker = np.zeros((ROWS, COLUMNS), np.uint8)
    cv2.putText(marker, "R CC", (330, 80), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 255, 4)
    cv2.rectangle(marker, (330, 500), (400, 560), 230, -1)
    return Scene(np.maximum(scene.display, marker.astype(np.float32) / 255), scene.mask)


def with_collimator(scene: Scene) -> Scene:
    """Bright lines along two edges of the frame, as the collimator leaves them."""
    display = scene.display.copy()
    display[:2, :] = 0.8
    display[:, -2:] = 0.8
    return Scene(display, scene.mask)


SCENES = {
    "plain": draw_breast(),
    "text markers": with_marker(draw_breast()),
    "collimator lines": with_collimator(draw_breast()),
    "grey background": draw_breast(background=0.25),
    "grey background and marker": with_marker(draw_breast(background=0.2)),
    "faint": draw_breast(brightness=0.2),
    "small": draw_breast(reach=0.2),
    "wide": draw_breast(reach=0.9),
}
each_scene = pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)


def find(display: Display) -> Breast:
    return find_breast(display, rows=display.shape[0], columns=display.shape[1])


def box_of(mask: NDArray[np.bool_]) -> Box:
    ys, xs = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return Box(int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)


@each_scene
def test_the_box_holds_the_breast_and_little_else(scene: Scene) -> None:
    breast = find(scene.display)
    box, truth = breast.box, box_of(scene.mask)
    assert breast.is_found
    assert not breast.chest_wall_on_right
    inside = scene.mask[box.top : box.bottom, box.left : box.right].sum()
    assert inside >= 0.99 * scene.mask.sum()
    assert box.width * box.height <= 1.15 * truth.width * truth.height
    assert 0 <= box.left < box.right <= COLUMNS
    assert 0 <= box.top < box.bottom <= ROWS


@each_scene
def test_a_mirrored_frame_gives_the_same_image(scene: Scene) -> None:
    images, sides = [], []
    for display in (scene.display, np.ascontiguousarray(scene.display[:, ::-1])):
        breast = find(display)
        images.append(fit_to_square(display, place(breast, 128), side=128))
        sides.append(breast.chest_wall_on_right)
    assert sides == [False, True]
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_an_even_frame_falls_back_to_the_whole(value: float) -> None:
    breast = find(np.full((300, 200), value, np.float32))
    assert breast == Breast(Box(0, 0, 200, 300), is_found=False, chest_wall_on_right=False)


def test_a_marker_alone_is_no_breast() -> None:
    display = np.zeros((600, 480), np.float32)
    display[20:60, 400:450] = 1.0
    breast = find(display)
    assert not breast.is_found
    assert breast.box == Box(0, 0, 480, 600)
    assert breast.chest_wall_on_right


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 500), (500, 1), (3, 3)])
def test_tiny_and_thin_frames_have_a_box_and_an_image(shape: tuple[int, int]) -> None:
    display = np.random.default_rng(0).random(shape).astype(np.float32)
    breast = find(display)
    image = fit_to_square(display, place(breast, 32), side=32)
    assert image.shape == (32, 32)
    assert 0 <= image.min() <= image.max() <= 1


def test_the_box_is_given_in_full_matrix_pixels_at_every_level() -> None:
    scene = draw_breast()
    full = find(scene.display).box
    for level in (1, 2):
        reduced = np.ascontiguousarray(scene.display[:: 2**level, :: 2**level])
        box = find_breast(reduced, rows=ROWS, columns=COLUMNS, level=level).box
        offsets = np.subtract(
            (box.left, box.top, box.right, box.bottom), (full.left, full.top, full.right, full.bottom)
        )
        assert np.abs(offsets).max() <= 12


boxes = st.builds(
    lambda left, top, width, height: Box(left, top, left + width, top + height),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(2, 150),
    st.integers(2, 150),
)


@given(box=boxes, side=st.integers(16, 96), flipped=st.booleans(), level=st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_the_square_keeps_the_aspect_and_pads_with_zero(
    box: Box, side: int, flipped: bool, level: int
) -> None:
    display = np.ones((200 >> level, 200 >> level), np.float32)
    placement = place(Breast(box, is_found=True, chest_wall_on_right=flipped), side)
    image = fit_to_square(display, placement, side=side, level=level)
    assert image.shape == (side, side)
    assert image.dtype == np.float32
    shown = box_of(image > 0)
    assert set(np.unique(image > 0.999)) <= {False, True}
    assert np.isin(np.round(image, 4), [0, 1]).all()
    assert max(shown.width, shown.height) == side
    assert abs(shown.width - max(1, box.width * placement.scale)) <= 0.5
    assert abs(shown.height - max(1, box.height * placement.scale)) <= 0.5
    assert shown.left == 0
    assert abs(shown.top - (side - shown.bottom)) <= 1


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_placement_says_where_a_full_matrix_point_lies(flipped: bool, level: int) -> None:
    """A smooth bright dot at a known place is found there in the image, to a fraction of a pixel."""
    x0, y0 = 210.5, 341.5  # pixel edges at whole numbers: the centre of pixel (210, 341)
    y, x = np.mgrid[:ROWS, :COLUMNS] + 0.5
    dot = np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * 12.0**2)).astype(np.float32)
    step = 2**level
    placement = place(Breast(Box(30, 100, 390, 580), is_found=True, chest_wall_on_right=flipped), 128)
    image = fit_to_square(np.ascontiguousarray(dot[::step, ::step]), placement, side=128, level=level)
    ys, xs = np.mgrid[:128, :128] + 0.5
    found = (image * xs).sum() / image.sum(), (image * ys).sum() / image.sum()
    assert found == pytest.approx(locate(placement, x0, y0), abs=0.1)


def locate(placement: Placement, x: float, y: float) -> tuple[float, float]:
    """The mapping of the docstring of `Placement`."""
    box = placement.box
    across = box.right - x if placement.is_flipped else x - box.left
    return across * placement.scale, placement.top + (y - box.top) * placement.scale


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_reduced_decode_gives_nearly_the_image_of_the_full_one(level: int, flipped: bool) -> None:
    stored = np.rint(cv2.GaussianBlur(draw_breast().display, (0, 0), 5) * 4095).astype(np.uint16)
    encoded = encode(stored, JPEG_2000_LOSSLESS, bits_stored=12)
    layout = Layout(ROWS, COLUMNS, 16, 12, is_signed=False)
    placement = place(Breast(Box(1, 83, 247, 517), is_found=True, chest_wall_on_right=flipped), 96)
    images = [
        fit_to_square(
            (decode(encoded, JPEG_2000_LOSSLESS, layout, at) / 4095).astype(np.float32),
            placement,
            side=96,
            level=at,
        )
        for at in (0, level)
    ]
    inside = box_of(images[0] > 0)
    error = (images[0] - images[1])[inside.top : inside.bottom, inside.left : inside.right]
    assert -10 * np.log10(np.mean(error**2)) >= 45


def test_the_image_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), (400, 200))
    image = fit_to_square(
        stripes, place(Breast(Box(0, 0, 400, 400), is_found=True, chest_wall_on_right=False), 50), side=50
    )
    np.testing.assert_allclose(image[:, 1:-1], 0.5, atol=0.05)


@given(box=boxes, side=st.integers(16, 96), oversampling=st.floats(0.5, 4), max_level=st.integers(0, 6))
def test_the_level_is_the_lowest_that_leaves_enough_pixels(
    box: Box, side: int, oversampling: float, max_level: int
) -> None:
    level = find_level(box, side=side, oversampling=oversampling, max_level=max_level)
    longer, needed = max(box.width, box.height), side * oversampling
    assert 0 <= level <= max_level
    assert level == 0 or longer / 2**level >= needed
    assert level == max_level or longer / 2 ** (level + 1) < needed
