"""Phantoms look like mammograms, know their own truth, and are written as the encodings they claim."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from data_prep.imageio import codecs
from data_prep.imageio.frame import PhotometricInterpretation, VoiLutFunction
from data_prep.phantom.dataset import TEST_COLUMNS, TRAIN_COLUMNS, PhantomImage, make_patient, write_phantoms
from data_prep.phantom.dicom_writer import CONTAINERS, Encoding, make_dicom
from data_prep.phantom.findings import Finding, draw_finding, lay_out, make_profile
from data_prep.preprocessing.breast_segmentation import find_breast
from data_prep.preprocessing.placement import fit_box, fit_to_square
from data_prep.preprocessing.windowing import to_display
from tests.data_prep.reading import read_frame

ROWS, COLUMNS = 320, 256
DISPLAY_STEP = 2e-3  # the narrowest window has 1000 values; a sigmoid's steepest part has 2.3 times fewer


def make_images(num_patients: int = 2, *, seed: int = 0, cancer_share: float = 0.5) -> list[PhantomImage]:
    size = {"rows": ROWS, "columns": COLUMNS}
    patients = (make_patient(n, seed=seed, cancer_share=cancer_share, **size) for n in range(num_patients))
    return [image for patient in patients for image in patient]


@pytest.fixture(scope="module")
def images() -> list[PhantomImage]:
    return make_images(6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, num_patients=4, rows=ROWS, columns=COLUMNS)
    return folder


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_laid_out_like_rsna(folder: Path) -> None:
    train = pd.read_csv(folder / "train.csv")
    test = pd.read_csv(folder / "test.csv")
    submission = pd.read_csv(folder / "sample_submission.csv")
    assert list(train) == TRAIN_COLUMNS
    assert list(test) == TEST_COLUMNS
    assert list(submission) == ["prediction_id", "cancer"]
    assert set(submission["prediction_id"]) == set(test["prediction_id"])
    assert submission["prediction_id"].is_unique
    for split, rows in {"train": train, "test": test}.items():
        named = {f"{row.patient_id}/{row.image_id}.dcm" for row in rows.itertuples()}
        found = {
            str(path.relative_to(folder / f"{split}_images")) for path in folder.glob(f"{split}_images/*/*")
        }
        assert named == found
        assert rows["image_id"].is_unique


def test_every_patient_has_two_breasts_in_two_views(folder: Path) -> None:
    train = pd.read_csv(folder / "train.csv")
    for _, rows in train.groupby("patient_id"):
        shown = set(zip(rows["laterality"], rows["view"], strict=True))
        assert shown == {("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")}


def test_the_columns_agree_with_one_another() -> None:
    rows = pd.DataFrame([image.row for image in make_images(40)])
    assert not rows.drop_duplicates(["prediction_id", "cancer"])["prediction_id"].duplicated().any()
    assert not (rows["biopsy"].eq(1) & rows["cancer"].eq(0)).any()
    assert not (rows["invasive"].eq(1) & rows["biopsy"].eq(0)).any()
    assert not (rows["difficult_negative_case"] & rows["cancer"].eq(1)).any()
    assert rows.loc[rows["site_id"] == 2, ["density", "BIRADS"]].isna().all(axis=None)
    assert rows.loc[rows["site_id"] == 1, ["density", "BIRADS"]].notna().all(axis=None)


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path, num_patients=4, rows=ROWS, columns=COLUMNS)
    assert read_all(tmp_path) == read_all(folder)


def test_another_seed_writes_other_images(folder: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path, num_patients=1, seed=1, rows=ROWS, columns=COLUMNS)
    assert not set(read_all(tmp_path).values()) & set(read_all(folder).values())


def test_sets_of_two_seeds_have_no_patient_and_no_image_in_common() -> None:
    """A run on one of them can be judged on the other."""
    ids = [
        {image.row[name] for image in make_images(3, seed=seed) for name in ("patient_id", "image_id")}
        for seed in (0, 1, 2)
    ]
    assert len(set.union(*ids)) == sum(map(len, ids)) == 3 * (3 + 12)


def test_a_larger_set_contains_a_smaller_one(folder: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path, num_patients=2, rows=ROWS, columns=COLUMNS)
    larger = read_all(folder / "train_images")
    assert read_all(tmp_path / "train_images").items() <= larger.items()


def test_progress_counts_training_patients(tmp_path: Path) -> None:
    counts: list[int] = []
    write_phantoms(tmp_path, num_patients=3, rows=64, columns=64, progress=counts.append)
    assert counts == [1, 1, 1]


@pytest.mark.parametrize("cancer_share", [0.0, 0.02, 0.3, 1.0])
def test_cancer_has_the_share_that_was_asked_for(cancer_share: float) -> None:
    patients = (make_patient(n, seed=3, rows=64, columns=64, cancer_share=cancer_share) for n in range(25))
    cancer = [image.row["cancer"] for patient in patients for image in patient if image.row["view"] == "CC"]
    assert sum(cancer) == pytest.approx(cancer_share * len(cancer), abs=1.5)


def test_lesions_lie_inside_the_breasts_with_cancer_alone_and_in_both_views(
    images: list[PhantomImage],
) -> None:
    for image in images:
        assert image.phantom.lesions.any() == bool(image.row["cancer"])
        assert not (image.phantom.lesions & ~image.phantom.tissue).any()


def prepare(image: PhantomImage) -> np.ndarray:
    """Returns the square image of 8 bits and 512 px that `mammo prepare` makes."""
    display = image.phantom.image
    breast = find_breast(display, rows=len(display), columns=display.shape[1])
    placement = fit_box(breast.box, is_flipped=breast.chest_wall_on_right, side=512, fit="letterbox")
    return np.rint(255 * fit_to_square(display, placement, side=512)).astype(int)


def test_prepared_breasts_are_as_narrow_as_real_ones() -> None:
    """RSNA files fill 222 to 295 of their 1,024 patches of 16x16, three to six fewer above 8 grey levels."""
    patients = (make_patient(n, seed=7, rows=640, columns=512, cancer_share=0.3) for n in range(5))
    squares = [prepare(image) for patient in patients for image in patient]
    patches = np.stack(squares).reshape(-1, 32, 16, 32, 16)
    ranges = patches.max(axis=(2, 4)) - patches.min(axis=(2, 4))
    num_filled = (ranges > 0).sum(axis=(1, 2))
    assert 0.22 * 1024 < num_filled.mean() < 0.29 * 1024
    assert 190 < num_filled.min() < num_filled.max() < 360
    assert (num_filled - (ranges > 8).sum(axis=(1, 2))).mean() < 15


def test_a_cc_view_shows_the_breast_alone_and_an_mlo_view_goes_on_above_and_below(
    images: list[PhantomImage],
) -> None:
    for image in images:
        tissue = image.phantom.tissue if image.row["laterality"] == "L" else image.phantom.tissue[:, ::-1]
        edge_px = tissue.sum(axis=1)
        is_mlo = image.row["view"] == "MLO"
        assert (edge_px[0] > 0.4 * edge_px.max()) == is_mlo
        assert (edge_px[-1] > 0) == is_mlo
        assert 0.25 < edge_px.max() / np.count_nonzero(edge_px) < 0.55
        assert 0.35 * ROWS < edge_px.argmax() < 0.7 * ROWS
        assert np.array_equal(tissue, np.arange(COLUMNS) < edge_px[:, None])


def test_the_pectoral_muscle_is_bright_in_the_upper_corner_of_mlo_views(images: list[PhantomImage]) -> None:
    """On average; a dense breast may be as bright."""
    mlo = [image for image in images if image.row["view"] == "MLO"]
    pictures = np.stack([i.phantom.image[:, :: -1 if i.row["laterality"] == "R" else 1] for i in mlo])
    along_chest_wall = pictures[:, :, : COLUMNS // 16].mean(axis=(0, 2))
    assert along_chest_wall[: ROWS // 8].mean() > 1.2 * along_chest_wall[ROWS * 5 // 8 : ROWS * 6 // 8].mean()


def test_the_background_is_black(images: list[PhantomImage]) -> None:
    """As in RSNA's files: in 8 bits it is 0 in every pixel, but for the marker in the outer upper corner."""
    for image in images:
        air = np.rint(255 * np.where(image.phantom.tissue, 0, image.phantom.image))
        is_text = np.zeros_like(image.phantom.tissue)
        is_text[: ROWS // 10] = True
        assert not air[~is_text].any()


def test_tissue_is_bright_on_black(images: list[PhantomImage]) -> None:
    for image in images:
        phantom = image.phantom
        assert phantom.image.dtype == np.float32
        assert phantom.image.min() >= 0.0
        assert phantom.image.max() <= 1.0
        assert np.median(phantom.image[phantom.tissue]) > 8 * np.median(phantom.image[~phantom.tissue])


def test_the_chest_wall_is_left_in_left_breasts_and_right_in_right_ones(images: list[PhantomImage]) -> None:
    for image in images:
        tissue = image.phantom.tissue if image.row["laterality"] == "L" else image.phantom.tissue[:, ::-1]
        assert tissue[:, 0].mean() > 0.6
        assert not tissue[:, -1].any()


def test_marker_text_lies_away_from_the_breast(images: list[PhantomImage]) -> None:
    for image in images:
        is_text = ~image.phantom.tissue & (image.phantom.image > 0.5)
        assert 20 < is_text.sum() < 0.01 * is_text.size


def test_the_breast_is_found_where_the_truth_says(images: list[PhantomImage]) -> None:
    for image in images:
        breast = find_breast(image.phantom.image, rows=ROWS, columns=COLUMNS)
        ys, xs = np.nonzero(image.phantom.tissue)
        found = [breast.box.left, breast.box.top, breast.box.right, breast.box.bottom]
        assert breast.is_found
        assert breast.chest_wall_on_right == (image.row["laterality"] == "R")
        assert np.abs(np.subtract(found, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])).max() <= 8


def test_gathered_and_spread_out_findings_have_the_same_values() -> None:
    values = make_profile(60)
    inside = np.ones((40, 30), bool)
    gathered, spread = np.zeros((2, 40, 30), bool)
    gathered[20, 15] = True
    spread[30, 3:27] = True
    pictures = [lay_out(values, middles, inside=inside) for middles in (gathered, spread)]
    assert np.array_equal(np.sort(pictures[0], axis=None), np.sort(pictures[1], axis=None))
    assert pictures[0][20, 15] == 1.0
    assert pictures[1][30, 3:27].min() > pictures[1][29, 3:27].max()


def test_findings_stay_inside_the_breast() -> None:
    inside = np.zeros((40, 30), bool)
    inside[:, :10] = True
    middles = np.zeros((40, 30), bool)
    middles[20, :] = True
    assert not lay_out(make_profile(200), middles, inside=inside)[~inside].any()


@pytest.mark.parametrize("diameter", [0.03, 0.06])
def test_a_mass_has_the_diameter_that_was_asked_for(diameter: float) -> None:
    finding = Finding(is_cancer=True, has_calcifications=False, depth=0.5, diameter=diameter, brightness=0.9)
    edge_px = np.full(640, 300.0)
    cover = draw_finding(np.random.default_rng(0), finding, edge_px=edge_px, inside=np.ones((640, 512), bool))
    assert np.sqrt((cover > 0.5).sum() * 4 / np.pi) == pytest.approx(diameter * 640, rel=0.05)


def test_nothing_but_the_finding_depends_on_the_label() -> None:
    healthy, ill = make_images(4, cancer_share=0.0), make_images(4, cancer_share=1.0)
    outcome = {"cancer", "biopsy", "invasive", "BIRADS", "difficult_negative_case"}
    for without, with_cancer in zip(healthy, ill, strict=True):
        assert without.encoding == with_cancer.encoding
        assert {k: v for k, v in without.row.items() if k not in outcome} == {
            k: v for k, v in with_cancer.row.items() if k not in outcome
        }


def test_all_encodings_occur() -> None:
    encodings = [image.encoding for image in make_images(40)]
    assert {(e.transfer_syntax, e.has_jp2_box) for e in encodings} == set(CONTAINERS)
    assert {e.bits_stored for e in encodings} == {12, 16}
    assert {e.photometric_interpretation for e in encodings} == set(PhotometricInterpretation)
    assert {e.window_function for e in encodings} == {None, VoiLutFunction.LINEAR, VoiLutFunction.SIGMOID}
    assert {e.num_windows for e in encodings} == {1, 2, 4}


def make_encoding(container: tuple[str, bool], **changes: object) -> Encoding:
    syntax, has_jp2_box = container
    encoding = Encoding(
        transfer_syntax=syntax,
        has_jp2_box=has_jp2_box,
        bits_stored=12,
        photometric_interpretation=PhotometricInterpretation.MONOCHROME2,
        window_function=None,
        window_center=2000,
        window_width=1000,
        num_windows=2,
    )
    return replace(encoding, **changes)


def write_first(images: list[PhantomImage], encoding: Encoding) -> tuple[np.ndarray, bytes]:
    display = images[0].phantom.image
    return display, make_dicom(display, encoding, patient_id="10000", image_id="7", laterality="L")


@pytest.mark.parametrize("function", [None, VoiLutFunction.LINEAR, VoiLutFunction.SIGMOID])
@pytest.mark.parametrize("photometric_interpretation", list(PhotometricInterpretation))
@pytest.mark.parametrize("bits_stored", [12, 16])
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_encoding_shows_the_same_picture(
    images: list[PhantomImage],
    tmp_path: Path,
    container: tuple[str, bool],
    bits_stored: int,
    photometric_interpretation: PhotometricInterpretation,
    function: VoiLutFunction | None,
) -> None:
    encoding = make_encoding(
        container,
        bits_stored=bits_stored,
        photometric_interpretation=photometric_interpretation,
        window_function=function,
    )
    display, payload = write_first(images, encoding)
    path = tmp_path / "image.dcm"
    path.write_bytes(payload)
    frame = read_frame(path)
    assert frame.transfer_syntax == encoding.transfer_syntax
    assert frame.bits_stored == bits_stored
    assert np.abs(to_display(frame) - display).max() < DISPLAY_STEP


@pytest.mark.parametrize("function", [VoiLutFunction.LINEAR, VoiLutFunction.SIGMOID])
@pytest.mark.parametrize("syntax", [codecs.EXPLICIT_VR_LITTLE_ENDIAN, codecs.RLE_LOSSLESS])
def test_pydicom_shows_the_same_picture(
    images: list[PhantomImage], syntax: str, function: VoiLutFunction
) -> None:
    display, payload = write_first(images, make_encoding((syntax, False), window_function=function))
    dataset = pydicom.dcmread(BytesIO(payload))
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset) / (2**12 - 1)
    assert np.abs(shown - display).max() < DISPLAY_STEP


def test_a_jp2_box_stands_where_it_was_asked_for(images: list[PhantomImage]) -> None:
    for has_jp2_box, first_bytes in {True: b"\x00\x00\x00\x0cjP  ", False: b"\xff\x4f\xff\x51"}.items():
        encoding = make_encoding((codecs.JPEG_2000_LOSSLESS, has_jp2_box))
        dataset = pydicom.dcmread(BytesIO(write_first(images, encoding)[1]))
        frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
        assert frame.startswith(first_bytes)


def test_the_header_is_as_bare_as_rsnas(folder: Path) -> None:
    for path in folder.glob("*_images/*/*.dcm"):
        dataset = pydicom.dcmread(path)
        assert 24 <= len(dataset) <= 28
        assert "Modality" not in dataset
        assert not {"PN", "DA", "TM", "DT"} & {element.VR for element in dataset}
        assert dataset.PatientID == path.parent.name
        assert dataset.InstanceNumber == int(path.stem)
