"""Folders of images with classes: both layouts, every kind of file, and each mistake as one sentence."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from data_prep.errors import UserError
from pipeline.classification.image_folder import read_image_folder
from pipeline.data.square_images import read_square
from tests.pipeline.tiny import COLOURS, coloured, write_class_folder, write_pets

SIDE = 32


def gradient(width: int, height: int) -> np.ndarray:
    """Red rises to the right, green downwards; smooth, so that filters and JPEG change little."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 90)], axis=2).astype(
        np.uint8
    )


def names(images: pd.DataFrame, split: str) -> list[str]:
    return images["image"][images["split"] == split].tolist()


# Oxford-IIIT Pet


def test_the_official_lists_give_splits_classes_and_their_order(tmp_path: Path) -> None:
    """Class ids order the labels: not the alphabet, in which capitals come first."""
    folder = read_image_folder(write_pets(tmp_path / "pets"), seed=0)
    assert folder.labels == ["Abyssinian", "american_bulldog", "Bengal"]
    assert list(folder.images) == ["image", "label", "split"]
    assert names(folder.images, "train")[:2] == ["images/Abyssinian_1.jpg", "images/Abyssinian_2.jpg"]
    assert folder.images.groupby(["label", "split"]).size().to_dict() == {
        (label, split): count for label in folder.labels for split, count in (("test", 2), ("train", 3))
    }
    for image, label in zip(folder.images["image"], folder.images["label"], strict=True):
        assert Path(image).stem.rpartition("_")[0] == label
    assert folder.split("test")["image"].tolist() == names(folder.images, "test")
    assert folder.split("test").index.tolist() == list(range(6))
    assert folder.origin == "the official lists"


def test_comments_and_empty_lines_of_a_list_are_left_out(tmp_path: Path) -> None:
    pets = write_pets(tmp_path / "pets")
    expected = read_image_folder(pets, seed=0).images
    path = pets / "annotations/trainval.txt"
    path.write_text("#Image CLASS-ID SPECIES BREED ID\n\n" + path.read_text() + "\n")
    pd.testing.assert_frame_equal(read_image_folder(pets, seed=0).images, expected)


# A folder per class


def test_sub_folders_are_classes_and_a_fifth_of_each_is_drawn_for_the_test(tmp_path: Path) -> None:
    folder = read_image_folder(write_class_folder(tmp_path / "colours", per_class=15), seed=0)
    assert folder.labels == sorted(COLOURS)
    counts = folder.images.groupby(["label", "split"]).size()
    assert (counts.xs("test", level="split") == 3).all()
    assert (counts.xs("train", level="split") == 12).all()
    assert folder.images["image"].is_unique
    assert all(image.startswith(f"{label}/") for image, label in folder.images[["image", "label"]].to_numpy())


def test_the_seed_draws_the_test_images_and_nothing_else_does(tmp_path: Path) -> None:
    colours = write_class_folder(tmp_path / "colours", per_class=15)
    drawn = [names(read_image_folder(colours, seed=seed).images, "test") for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({tuple(images) for images in drawn}) == 3
    moved = Path(shutil.copytree(colours, tmp_path / "moved"))
    assert names(read_image_folder(moved, seed=0).images, "test") == drawn[0]


@pytest.mark.parametrize(("per_class", "num_test"), [(2, 1), (3, 1), (7, 1), (8, 2), (12, 2)])
def test_small_classes_have_an_image_on_both_sides(tmp_path: Path, per_class: int, num_test: int) -> None:
    images = read_image_folder(write_class_folder(tmp_path / "colours", per_class=per_class), seed=0).images
    counts = images.groupby(["label", "split"]).size()
    assert (counts.xs("test", level="split") == num_test).all()
    assert (counts.xs("train", level="split") == per_class - num_test).all()


def test_train_and_test_folders_are_the_splits(tmp_path: Path) -> None:
    """The test may lack a class; what lies beside the two is left alone."""
    folder = tmp_path / "data"
    write_class_folder(folder / "train", per_class=3)
    write_class_folder(folder / "test", per_class=2)
    write_class_folder(folder / "more", per_class=2)
    shutil.rmtree(folder / "test/green")
    found = read_image_folder(folder, seed=0)
    assert found.labels == sorted(COLOURS)
    assert names(found.images, "test") == [
        f"test/{label}/{row:03d}.png" for label in ("blue", "red") for row in (0, 1)
    ]
    assert len(names(found.images, "train")) == 9
    assert found.origin == "the folders train and test"


def test_images_are_found_at_any_depth_by_their_suffix_and_hidden_files_are_not(tmp_path: Path) -> None:
    colours = write_class_folder(tmp_path / "colours", per_class=2)
    expected = set(read_image_folder(colours, seed=0).images["image"])
    (colours / "red/more/deep").mkdir(parents=True)
    added = {"red/more/deep/a.JPEG", "red/b.Webp", "red/c.gif", "red/d.bmp"}
    for name in (*added, "red/.e.png", "red/f.txt"):
        (colours / name).write_bytes(b"")
    for hidden in ("red/.thumbnails", ".cache"):
        (colours / hidden).mkdir()
        (colours / hidden / "g.png").write_bytes(b"")
    (colours / "labels.csv").write_text("")
    assert set(read_image_folder(colours, seed=0).images["image"]) == expected | added


# Pixels


def test_the_middle_square_is_scaled_to_the_side(tmp_path: Path) -> None:
    """As if cropped first and scaled then, but for the edge, where the file's own neighbours count."""
    path = tmp_path / "wide.png"
    Image.fromarray(gradient(120, 80)).save(path)
    square = read_square(path, side=SIDE, channels=3)
    assert (square.shape, square.dtype) == ((SIDE, SIDE, 3), np.uint8)
    expected = Image.fromarray(gradient(120, 80)[:, 20:100]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(square.astype(int), np.asarray(expected).astype(int), atol=3)


def test_scaling_averages(tmp_path: Path) -> None:
    """A checkerboard of single pixels becomes its mean, not a pattern of its own."""
    path = tmp_path / "board.png"
    board = np.indices((320, 320)).sum(axis=0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(path)
    assert np.abs(read_square(path, side=SIDE, channels=1).astype(int) - 127).max() <= 2


def test_small_images_grow_and_large_jpegs_are_read_faithfully(tmp_path: Path) -> None:
    for size in (20, 1200):
        path = tmp_path / f"{size}.jpg"
        Image.fromarray(gradient(size, size)).save(path, quality=95, subsampling=0)
        ideal = np.asarray(
            Image.fromarray(gradient(size, size)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        )
        np.testing.assert_allclose(
            read_square(path, side=SIDE, channels=3).astype(int), ideal.astype(int), atol=6
        )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """All eight of them; EXIF 2.3, tag 274."""
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(gradient(96, 64)).save(path, quality=95, exif=exif)
    turn = {
        1: lambda pixels: pixels,
        2: lambda pixels: pixels[:, ::-1],
        3: lambda pixels: pixels[::-1, ::-1],
        4: lambda pixels: pixels[::-1],
        5: lambda pixels: pixels.swapaxes(0, 1),
        6: lambda pixels: np.rot90(pixels, -1),
        7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
        8: lambda pixels: np.rot90(pixels, 1),
    }[orientation]
    upright = tmp_path / "upright.png"
    Image.fromarray(np.ascontiguousarray(turn(gradient(96, 64)))).save(upright)
    np.testing.assert_allclose(
        read_square(path, side=SIDE, channels=3).astype(int),
        read_square(upright, side=SIDE, channels=3).astype(int),
        atol=6,
    )


def save_palette(picture: Image.Image, path: Path) -> None:
    picture.quantize(64).save(path, format="GIF")


def save_png_as_jpg(picture: Image.Image, path: Path) -> None:
    picture.save(path, format="PNG")


def save_opaque_alpha(picture: Image.Image, path: Path) -> None:
    picture.convert("RGBA").save(path, format="PNG")


def save_cmyk(picture: Image.Image, path: Path) -> None:
    picture.convert("CMYK").save(path, format="JPEG", quality=95)


def save_palette_with_a_transparent_colour(picture: Image.Image, path: Path) -> None:
    picture.quantize(64).save(path, format="PNG", transparency=bytes(64 * [255]))


def save_webp(picture: Image.Image, path: Path) -> None:
    picture.save(path, format="WEBP", lossless=True)


def save_bmp(picture: Image.Image, path: Path) -> None:
    picture.save(path, format="BMP")


def save_animation(picture: Image.Image, path: Path) -> None:
    frames = [picture.quantize(64), ImageOps.invert(picture).quantize(64)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    "save",
    [
        save_palette,
        save_png_as_jpg,
        save_opaque_alpha,
        save_cmyk,
        save_palette_with_a_transparent_colour,
        save_webp,
        save_bmp,
        save_animation,
    ],
)
def test_every_kind_of_colour_file_gives_the_same_picture_whatever_its_suffix(
    tmp_path: Path, save: Callable[[Image.Image, Path], None]
) -> None:
    picture = Image.fromarray(gradient(96, 96))
    picture.save(tmp_path / "plain.png")
    save(picture, tmp_path / "odd.jpg")
    plain, odd = (
        read_square(tmp_path / name, side=SIDE, channels=3).astype(int) for name in ("plain.png", "odd.jpg")
    )
    assert odd.shape == (SIDE, SIDE, 3)
    assert np.abs(odd - plain).mean() < 6  # 64 colours, or CMYK through JPEG


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
def test_grey_files_of_every_depth_have_three_equal_channels(tmp_path: Path, mode: str) -> None:
    grey = gradient(96, 96)[..., 0]
    path = tmp_path / "grey.png"
    if mode == "I;16":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(grey).convert(mode).save(path)
    with Image.open(path) as file:
        assert file.mode == mode
    square = read_square(path, side=SIDE, channels=3)
    assert (square == square[..., :1]).all()
    expected = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
    if mode == "1":  # dithered: right on the average
        assert abs(square.mean() - expected.mean()) < 5
    else:
        np.testing.assert_allclose(square[..., 0].astype(int), expected, atol=1)


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, 16:] = (10, 20, 30, 255)
    path = tmp_path / "cut.png"
    Image.fromarray(pixels).save(path)
    square = read_square(path, side=SIDE, channels=3)
    assert (square[:, 0] == 255).all()
    assert (square[:, -1] == (10, 20, 30)).all()


def test_one_channel_is_the_grey_version(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    picture = Image.fromarray(gradient(SIDE, SIDE))
    picture.save(path)
    np.testing.assert_array_equal(read_square(path, side=SIDE, channels=1), np.asarray(picture.convert("L")))


# Mistakes


def absent(folder: Path) -> Path:
    return folder / "absent"


def nothing_inside(folder: Path) -> Path:
    return folder


def images_without_classes(folder: Path) -> Path:
    coloured(COLOURS["red"], 0).save(folder / "a.png")
    return folder


def one_class(folder: Path) -> Path:
    write_class_folder(folder / "data")
    for label in ("blue", "green"):
        shutil.rmtree(folder / "data" / label)
    return folder / "data"


def one_image_in_a_class(folder: Path) -> Path:
    write_class_folder(folder / "data", per_class=3)
    for row in (0, 2):
        (folder / f"data/green/{row:03d}.png").unlink()
    return folder / "data"


def an_empty_class(folder: Path) -> Path:
    (write_class_folder(folder / "data") / "yellow").mkdir()
    return folder / "data"


def a_class_in_the_test_alone(folder: Path) -> Path:
    for split in ("train", "test"):
        write_class_folder(folder / split)
    shutil.rmtree(folder / "train/red")
    return folder


def no_test_list(folder: Path) -> Path:
    (write_pets(folder / "pets") / "annotations/test.txt").unlink()
    return folder / "pets"


def an_empty_test_list(folder: Path) -> Path:
    (write_pets(folder / "pets") / "annotations/test.txt").write_text("# nothing\n")
    return folder / "pets"


def empty_lists(folder: Path) -> Path:
    an_empty_test_list(folder)
    (folder / "pets/annotations/trainval.txt").write_text("")
    return folder / "pets"


def listed_images_missing(folder: Path) -> Path:
    pets = write_pets(folder / "pets")
    for name in ("Bengal_2", "Bengal_5"):
        (pets / f"images/{name}.jpg").unlink()
    return pets


def a_line_cut_short(folder: Path) -> Path:
    path = write_pets(folder / "pets") / "annotations/test.txt"
    path.write_text("\n".join(["Bengal_4 3 1 2", "Bengal_5 3"]))
    return folder / "pets"


def a_line_that_leads_elsewhere(folder: Path) -> Path:
    path = write_pets(folder / "pets") / "annotations/test.txt"
    path.write_text("../../secret/Bengal_1 3 1 2")
    return folder / "pets"


def an_image_in_both_lists(folder: Path) -> Path:
    pets = write_pets(folder / "pets")
    with (pets / "annotations/test.txt").open("a") as stream:
        stream.write("Bengal_1 3 1 2\n")
    return pets


def a_class_of_two_ids(folder: Path) -> Path:
    path = write_pets(folder / "pets") / "annotations/test.txt"
    path.write_text(path.read_text().replace("Bengal_5 3", "Bengal_5 4"))
    return folder / "pets"


def two_classes_of_one_id(folder: Path) -> Path:
    pets = write_pets(folder / "pets")
    for path in (pets / "annotations").iterdir():
        path.write_text(path.read_text().replace(" 3 1 2", " 1 1 1"))
    return pets


def a_list_in_another_encoding(folder: Path) -> Path:
    with (write_pets(folder / "pets") / "annotations/test.txt").open("ab") as stream:
        stream.write("Bengal_é 3 1 2\n".encode("latin-1"))
    return folder / "pets"


def no_lists(folder: Path) -> Path:
    for path in (write_pets(folder / "pets") / "annotations").iterdir():
        path.unlink()
    return folder / "pets"


def train_and_val(folder: Path) -> Path:
    return divided_into(folder, "train", "val")


def train_alone(folder: Path) -> Path:
    return divided_into(folder, "train")


def three_splits(folder: Path) -> Path:
    return divided_into(folder, "test", "train", "val")


def capital_splits(folder: Path) -> Path:
    return divided_into(folder, "Test", "Train")


def longer_names(folder: Path) -> Path:
    return divided_into(folder, "testing", "training", "Validation")


def a_split_among_classes(folder: Path) -> Path:
    return write_class_folder(divided_into(folder, "valid"))


def divided_into(folder: Path, *splits: str) -> Path:
    for split in splits:
        write_class_folder(folder / "data" / split, per_class=3)
    return folder / "data"


def mammograms(folder: Path) -> Path:
    (folder / "train_images/1").mkdir(parents=True)
    (folder / "train.csv").write_text("")
    return folder


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (absent, "absent is not a folder: name one with a sub-folder of images per class"),
        (nothing_inside, "holds no images: put them into one sub-folder per class, as .jpg, .jpeg"),
        (images_without_classes, "holds no images: put them into one sub-folder per class"),
        (one_class, "data holds one class, red: to learn, at least two are needed"),
        (one_image_in_a_class, "the class green has one image, green/001.png: it needs two or more"),
        (
            an_empty_class,
            "yellow holds no images (.jpg, .jpeg, .png, .gif, .bmp, .webp): fill it or remove it",
        ),
        (a_class_in_the_test_alone, "has the class red in the test split alone: a model cannot learn it"),
        (no_test_list, "annotations/test.txt is missing: Oxford-IIIT Pet has trainval.txt and test.txt"),
        (an_empty_test_list, "pets holds no images for the test split"),
        (empty_lists, "pets holds no images: its lists in annotations/ are empty"),
        (
            listed_images_missing,
            "2 of the 15 images listed in {folder}/pets/annotations are missing, the first is images/Benga",
        ),
        (a_line_cut_short, "test.txt, line 2 reads 'Bengal_5 3' and must read `NAME_NUMBER CLASS-ID SPECIES"),
        (a_line_that_leads_elsewhere, "test.txt, line 1 reads '../../secret/Bengal_1 3 1 2' and must read"),
        (an_image_in_both_lists, "images/Bengal_1.jpg is listed twice in {folder}/pets/annotations"),
        (a_class_of_two_ids, "knows the class Bengal as 3, 4: a class has one id and one name"),
        (two_classes_of_one_id, "knows the class 1 as Abyssinian, Bengal: a class has one id and one name"),
        (a_list_in_another_encoding, "annotations/test.txt is not text in UTF-8: save it as that, or unpack"),
        (no_lists, "annotations/trainval.txt is missing: Oxford-IIIT Pet has trainval.txt and test.txt"),
        (
            train_and_val,
            "data has train, val where train and test are needed, or classes alone: call what",
        ),
        (train_alone, "data has train where train and test are needed"),
        (three_splits, "data has test, train, val where train and test are needed"),
        (capital_splits, "data has Test, Train where train and test are needed"),
        (longer_names, "data has Validation, testing, training where train and test are needed"),
        (a_split_among_classes, "data has valid where train and test are needed, or classes alone"),
        (mammograms, "holds mammograms: make a cache with `mammo prepare` and train with --cache"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_mistake_is_one_sentence(tmp_path: Path, mistake: Callable[[Path], Path], sentence: str) -> None:
    folder = mistake(tmp_path)
    with pytest.raises(UserError) as caught:
        read_image_folder(folder, seed=0)
    assert sentence.format(folder=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        Path(__file__).read_bytes()[:500],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
    ids=["empty", "text", "longer text", "a program that Ghostscript would run"],
)
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"broken\.png cannot be read as an image \(\w+\): remove it, and its"
    ):
        read_square(path, side=SIDE, channels=3)


def test_an_image_of_more_pixels_than_fit_into_memory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (9000, 9000)).save(path)
    with pytest.raises(UserError, match=r"huge\.png has 9000 x 9000 pixels, and at most 67,108,864 are read"):
        read_square(path, side=SIDE, channels=3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp"])
def test_a_file_cut_in_half_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"half.{suffix}"
    coloured(COLOURS["red"], 0, height=200, width=200).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"half\.{suffix} cannot be read as an image"):
        read_square(path, side=SIDE, channels=3)
