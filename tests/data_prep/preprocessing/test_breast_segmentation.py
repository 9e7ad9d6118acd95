"""The breast is found whatever lies beside it: judged on phantoms with a known truth, and on real images."""

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.imageio.frame import Box, Display
from data_prep.imageio.raster import open_raster
from data_prep.phantom.dataset import make_patient
from data_prep.preprocessing.breast_segmentation import Breast, find_breast
from data_prep.preprocessing.preprocess import open_image, read_search_frame
from data_prep.preprocessing.stray_light import STRIP
from data_prep.preprocessing.windowing import to_display
from tests.data_prep.preprocessing.films import make_film

Mask = NDArray[np.bool_]
ROWS, COLUMNS = 640, 512
EDGES = ("left", "top", "right", "bottom")


@pytest.fixture(scope="module")
def phantoms() -> list[tuple[Display, Mask]]:
    """Pictures and their true tissue."""
    images = [
        image
        for number in range(12)
        for image in make_patient(number, seed=3, rows=ROWS, columns=COLUMNS, cancer_share=0.3)
    ]
    return [(image.phantom.image, image.phantom.tissue) for image in images]


def paint(edges: tuple[float, float, float, float], value: float) -> Callable[[Display], Display]:
    """Paints shares of the frame at the top, bottom, left and right."""

    def painted(image: Display) -> Display:
        top, bottom, left, right = (round(share * ROWS) for share in edges)
        inner = np.full_like(image, value)
        inner[top : ROWS - bottom, left : COLUMNS - right] = image[
            top : ROWS - bottom, left : COLUMNS - right
        ]
        return inner

    return painted


def add_marker(image: Display) -> Display:
    """A large bright plate in the lower corner away from the chest wall, and letters."""
    marked = image.copy()
    is_left = image[:, :20].mean() > image[:, -20:].mean()
    x = 380 if is_left else 40
    cv2.rectangle(marked, (x, 20), (x + 90, 50), (1.0,), -1)
    letters = np.zeros(image.shape, np.uint8)
    cv2.putText(letters, "MLO", (x, 110), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (255,), 4)
    return np.maximum(marked, letters / np.float32(255))


def add_marker_at_skin(image: Display) -> Display:
    """A bright plate that lies partly on the breast."""
    marked = image.copy()
    x = 130 if image[:, :20].mean() > image[:, -20:].mean() else COLUMNS - 200
    cv2.rectangle(marked, (x, 430), (x + 70, 470), (1.0,), -1)
    return marked


def add_noise(image: Display) -> Display:
    """Noise in both directions on a grey background, stronger than the skin's contrast."""
    noise = np.random.default_rng(1).standard_normal(image.shape, np.float32)
    return (np.float32(0.3) + np.float32(0.7) * image + np.float32(0.04) * noise).clip(0, 1)


def add_slanting_blade(image: Display) -> Display:
    """A blade along the edge opposite the chest wall that is not parallel to it."""
    bladed = image.copy()
    is_left = image[:, :20].mean() > image[:, -20:].mean()
    corners = [(0, 0), (25, 0), (6, 500), (0, 500)]
    cv2.fillPoly(bladed, [np.array([(COLUMNS - x if is_left else x, y) for x, y in corners])], (0.9,))
    return bladed


def add_implant(image: Display) -> Display:
    """A smooth bright ellipse inside of the breast, some way from the chest wall."""
    with_implant = image.copy()
    is_left = image[:, :20].mean() > image[:, -20:].mean()
    center = (70, 320) if is_left else (COLUMNS - 70, 320)
    cv2.ellipse(with_implant, center, (50, 90), 0, 0, 360, (0.98,), -1)
    return with_implant


SCENES: dict[str, Callable[[Display], Display]] = {
    "plain": lambda image: image,
    "dark grey background": lambda image: np.float32(0.2) + np.float32(0.8) * image,
    "grey background": lambda image: np.float32(0.5) + np.float32(0.5) * image,
    "inverted": lambda image: 1 - image,
    "white frame": paint((0.02, 0.02, 0.02, 0.02), 1.0),
    "wide white frame": paint((0.07, 0.07, 0.07, 0.07), 1.0),
    "black frame": paint((0.04, 0.04, 0.04, 0.04), 0.0),
    "collimator above": paint((0.05, 0, 0, 0), 0.9),
    "collimator below and at the left": paint((0, 0.05, 0.03, 0), 0.8),
    "marker": add_marker,
    "marker at the skin": add_marker_at_skin,
    "noise": add_noise,
    "slanting blade": add_slanting_blade,
    "implant": add_implant,
}


def find(display: Display) -> Breast:
    """As `prepare` does: on a frame of a quarter of the size."""
    rows, columns = display.shape
    small = cv2.resize(
        np.ascontiguousarray(display, np.float32), (columns // 4, rows // 4), interpolation=cv2.INTER_AREA
    )
    return find_breast(np.asarray(small, np.float32), rows=rows, columns=columns)


def box_of(mask: Mask) -> Box:
    ys, xs = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return Box(int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)


def visible(tissue: Mask, change: Callable[[Display], Display]) -> Mask:
    """Tissue that a frame or a collimator has not painted over."""
    probe = change(np.full(tissue.shape, 0.37, np.float32))
    return tissue & (probe == probe[ROWS // 2, COLUMNS // 2])


def without_abdomen(tissue: Mask) -> Mask:
    """What must be in the box: a strip of abdomen that a frame has left may look like stray light."""
    is_thin = tissue.sum(axis=1) <= 1.4 * STRIP * ROWS
    is_thin[: int(0.8 * ROWS)] = False
    return tissue & ~is_thin[:, None]


@pytest.mark.parametrize("name", SCENES)
def test_the_box_holds_the_tissue_and_little_else(phantoms: list[tuple[Display, Mask]], name: str) -> None:
    areas = []
    for image, tissue in phantoms:
        change = SCENES[name]
        is_painted = "frame" in name or name.startswith("collimator")
        truth = visible(tissue, change) if is_painted else tissue
        breast = find(change(image))
        box, true_box = breast.box, box_of(truth)
        assert breast.is_found
        needed = without_abdomen(truth) if is_painted else truth
        assert needed[box.top : box.bottom, box.left : box.right].sum() >= 0.99 * needed.sum()
        areas.append(box.width * box.height / (true_box.width * true_box.height))
        assert breast.chest_wall_on_right == bool(tissue[:, -1].any())
        assert breast.has_bright_background == (name == "inverted")
    assert np.mean(areas) < 1.15


def test_a_mirrored_frame_has_a_mirrored_box(phantoms: list[tuple[Display, Mask]]) -> None:
    for image, _ in phantoms:
        plain, mirrored = find(image), find(image[:, ::-1])
        expected = Box(COLUMNS - plain.box.right, plain.box.top, COLUMNS - plain.box.left, plain.box.bottom)
        assert mirrored.box == expected
        assert mirrored.chest_wall_on_right != plain.chest_wall_on_right


def test_a_dim_picture_has_the_box_of_the_bright_one(phantoms: list[tuple[Display, Mask]]) -> None:
    for image, _ in phantoms[:12]:
        bright = find(image)
        for factor in (0.5, 0.3, 0.2, 0.1):
            dim = find(np.float32(factor) * image)
            assert dim.doubts == bright.doubts
            ends = [[getattr(box, name) for name in EDGES] for box in (bright.box, dim.box)]
            assert np.abs(np.subtract(*ends)).max() <= ROWS / 40  # some pixels of the search image


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_an_even_frame_falls_back_to_the_whole(value: float) -> None:
    breast = find_breast(np.full((300, 200), value, np.float32), rows=300, columns=200)
    assert breast == Breast(
        Box(0, 0, 200, 300), is_found=False, chest_wall_on_right=False, has_bright_background=False
    )


def test_a_marker_alone_is_no_breast() -> None:
    display = np.zeros((640, 512), np.float32)
    display[20:50, 420:480] = 1.0
    breast = find(display)
    assert not breast.is_found
    assert breast.box == Box(0, 0, 512, 640)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 500), (500, 1), (3, 3), (7, 5)])
def test_tiny_and_thin_frames_have_a_box(shape: tuple[int, int]) -> None:
    display = np.random.default_rng(0).random(shape).astype(np.float32)
    box = find_breast(display, rows=shape[0], columns=shape[1]).box
    assert 0 <= box.left < box.right <= shape[1]
    assert 0 <= box.top < box.bottom <= shape[0]


def test_a_picture_without_background_falls_back_to_the_whole() -> None:
    """A magnified view may show nothing but tissue; a part of that is not a breast."""
    texture = cv2.GaussianBlur(np.random.default_rng(0).standard_normal((300, 240)), (0, 0), 4)
    tissue = (0.5 + 0.15 * texture / texture.std()).clip(0, 1).astype(np.float32)
    breast = find_breast(tissue, rows=600, columns=480)
    assert breast.box == Box(0, 0, 480, 600)
    assert not breast.is_found


def measure_overlap(box: Box, truth: Box) -> tuple[float, float]:
    """Returns intersection over union, and the share of the truth that the box holds."""
    width = min(box.right, truth.right) - max(box.left, truth.left)
    height = min(box.bottom, truth.bottom) - max(box.top, truth.top)
    common, whole = max(0, width) * max(0, height), truth.width * truth.height
    return common / (box.width * box.height + whole - common), common / whole


def test_the_breast_is_found_on_films_with_stray_light_labels_and_an_uneven_background() -> None:
    overlaps, shares = [], []
    for seed in range(120):
        film = make_film(seed)
        rows, columns = film.display.shape
        breast = find_breast(film.display, rows=rows, columns=columns)
        overlaps.append(measure_overlap(breast.box, box_of(film.tissue))[0])
        inside = film.tissue[breast.box.top : breast.box.bottom, breast.box.left : breast.box.right]
        shares.append(inside.sum() / film.tissue.sum())
        if breast.is_found:
            assert breast.chest_wall_on_right == film.chest_wall_on_right
            assert not breast.has_bright_background
    assert np.mean(np.array(overlaps) >= 0.85) > 0.92
    assert np.mean(np.array(shares) >= 0.98) > 0.95
    assert np.mean(overlaps) > 0.9


def draw_breast(fat: float, dense: float) -> tuple[Display, Mask]:
    """A breast of fat, a bright disc of dense tissue in it, at the left edge."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    tissue = (x / 300) ** 2 + ((y - 320) / 260) ** 2 < 1
    picture = np.where((x / 120) ** 2 + ((y - 320) / 120) ** 2 < 1, dense, np.where(tissue, fat, 0.0))
    return picture.astype(np.float32), tissue


@pytest.mark.parametrize("dense", [0.4, 0.95])
@pytest.mark.parametrize("fat", [0.02, 0.03, 0.05, 0.1])
@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_a_fatty_breast_is_not_lost(fat: float, dense: float, noise: float) -> None:
    """Its fat may be all but black; what is not found deserves a warning at least."""
    picture, tissue = draw_breast(fat, dense)
    noisy = picture + noise * np.random.default_rng(0).standard_normal(picture.shape)
    breast = find(noisy.clip(0, 1).astype(np.float32))
    inside = tissue[breast.box.top : breast.box.bottom, breast.box.left : breast.box.right]
    assert inside.sum() > 0.98 * tissue.sum()


def test_two_breasts_are_both_shown_with_a_warning() -> None:
    one = draw_breast(0.2, 0.6)[0][:, :300]
    gap = np.zeros((ROWS, 60), np.float32)
    breast = find(np.hstack([one, gap, one[:, ::-1]]))
    assert breast.doubts == ("two_breasts",)
    assert breast.box.width == 660
    assert breast.box.height > 500


def test_a_wide_blade_at_the_other_edge_is_no_second_breast() -> None:
    picture, tissue = draw_breast(0.2, 0.6)
    picture[:, -90:] = np.linspace(0.3, 0.8, ROWS)[:, None]
    breast = find(picture)
    assert breast.doubts == ()
    assert measure_overlap(breast.box, box_of(tissue))[0] > 0.85


def test_letters_that_touch_the_skin_are_cut_off_with_a_warning() -> None:
    picture, tissue = draw_breast(0.2, 0.6)
    letters = np.zeros(picture.shape, np.uint8)
    cv2.putText(letters, "L MLO", (265, 300), cv2.FONT_HERSHEY_SIMPLEX, 1.9, (1,), 7)
    breast = find(np.maximum(picture, letters))
    assert breast.doubts == ("attached",)
    overlap, share = measure_overlap(breast.box, box_of(tissue))
    assert overlap > 0.8
    assert share == 1


def test_a_long_nipple_is_not_cut_off(phantoms: list[tuple[Display, Mask]]) -> None:
    picture, _ = draw_breast(0.2, 0.6)
    cv2.ellipse(picture, (300, 320), (32, 12), 0, 0, 360, (0.1,), -1)
    breast = find(picture)
    assert breast.box.right >= 332
    assert breast.doubts == ()
    assert all(find(image).doubts == () for image, _ in phantoms)


def find_in_file(path: Path) -> tuple[Display, Breast]:
    frame = open_raster(path).read_frame()
    display = (frame.pixels / 255).astype(np.float32)
    return display, find_breast(display, rows=frame.rows, columns=frame.columns)


def test_real_crops_stay_nearly_whole(real_data: Path) -> None:
    """They hold nothing but the breast, so a small box is a fragment of it."""
    shares = []
    for path in sorted((real_data / "rsna_png256").rglob("*.png"))[::7]:
        display, breast = find_in_file(path)
        shares.append(breast.box.width * breast.box.height / display.size)
    assert len(shares) > 200
    assert np.mean(np.array(shares) > 0.9) > 0.98
    assert min(shares) > 0.5


def test_real_frames_show_no_more_than_background_and_text_outside_of_the_box(real_data: Path) -> None:
    """But for one frame, where two blades stand far from the breast."""
    shares = []
    for path in sorted((real_data / "rsna_png512").rglob("*.png")):
        display, breast = find_in_file(path)
        assert breast.is_found, path.name
        assert not breast.has_bright_background, path.name
        outside = display.copy()
        outside[breast.box.top : breast.box.bottom, breast.box.left : breast.box.right] = 0
        shares.append((outside > 0.05).mean())
    assert len(shares) == 39
    assert sorted(shares)[-2] < 0.025


def test_the_chest_wall_of_real_frames_and_crops_is_where_the_edge_is_bright(real_data: Path) -> None:
    """The laterality would be no oracle: one of RSNA's machines stores many images mirrored."""
    crops = sorted((real_data / "rsna_png256").rglob("*.png"))[::7]
    for path in [*sorted((real_data / "rsna_png512").rglob("*.png")), *crops]:
        display, breast = find_in_file(path)
        assert breast.chest_wall_on_right == (display[:, -1].mean() > display[:, 0].mean()), path.name


def test_real_films_have_the_box_that_was_drawn_by_eye(real_data: Path) -> None:
    folder = real_data / "cbis_ddsm"
    with (folder / "boxes.csv").open() as table:
        truths = list(csv.DictReader(table))
    for row in truths:
        truth = Box(*(int(row[edge]) for edge in ("left", "top", "right", "bottom")))
        file = open_image(folder / row["file"])
        overview = to_display(read_search_frame(file))
        breast = find_breast(overview, rows=file.rows, columns=file.columns)
        overlap, share = measure_overlap(breast.box, truth)
        assert overlap > 0.92, row["file"]
        assert share > 0.98, row["file"]
        assert breast.doubts == ()
        assert breast.chest_wall_on_right == (truth.left > 0)
    assert len(truths) == 5


def test_real_frames_and_crops_hardly_ever_raise_a_doubt(real_data: Path) -> None:
    paths = sorted((real_data / "rsna_png256").rglob("*.png"))[::7]
    paths += sorted((real_data / "rsna_png512").rglob("*.png"))
    assert sum(bool(find_in_file(path)[1].doubts) for path in paths) <= 0.01 * len(paths)
