"""`mammo explain`: the folds' probabilities, the overlay's place, the picture, and how the command ends."""

import io
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from data_prep.errors import ImageError, UserError
from data_prep.imageio.frame import Box
from pipeline.cli.app import app
from pipeline.inference.predict_test_set import predict_folder
from pipeline.models.attention import AttentionMaps
from pipeline.models.normalization import to_tensor
from pipeline.models.weights_file import load_weights
from pipeline.reporting import explain as explain_module
from pipeline.reporting.explain import MAP_TITLES, Explanation, draw_explanation, explain
from pipeline.reporting.heatmap import make_overlay_colours
from pipeline.runs.run_folder import Run
from tests.data_prep.dicom_files import make_breast, write_dicom
from tests.data_prep.reading import prepare_image
from tests.pipeline.tiny import MODEL, PREPARE, make_exams, quiet, write_test_data

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12}


@pytest.fixture
def mammogram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a patient's data, in a folder of its own; the current folder is another."""
    monkeypatch.chdir(tmp_path)
    return write_dicom(
        tmp_path / "files/one.dcm",
        make_breast(400, 300),
        **WINDOW,
        PatientName="Weiherer^Annegret",
        PatientID="4711-0815",
        PatientBirthDate="19561231",
        InstitutionName="Klinikum Nordhang",
    )


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)], env={"COLUMNS": "160"})


def make_explanation(**changes: Any) -> Explanation:
    """A grey mammogram whose maps are 5 in the box's upper left quarter and 0 elsewhere in it."""
    values = np.full((80, 60), np.nan)
    values[20:60, 20:60] = 0.0
    values[20:40, 20:40] = 5.0
    parts: dict[str, Any] = {
        "name": "one.dcm",
        "pixel_aspect": 1.0,
        "mammogram": np.full((80, 60), 0.5, np.float32),
        "box": Box(20, 20, 60, 60),
        "probabilities": {0: 0.25, 1: 0.75},
        "maps": dict.fromkeys(MAP_TITLES, values),
    }
    return Explanation(**(parts | changes))


def read_picture(explanation: Explanation) -> np.ndarray[Any, Any]:
    """The drawing as [H, W, 3], red first."""
    with Image.open(io.BytesIO(draw_explanation(explanation))) as picture:
        return np.asarray(picture.convert("RGB"), int)


# What the folds say


def test_the_probabilities_are_those_of_predict(unbroken: Run, tmp_path: Path) -> None:
    folder = write_test_data(tmp_path / "data", make_exams(2, split="test"))
    predicted = predict_folder(unbroken, folder, workers=0, reporter=quiet()).images
    expected = predicted.set_index("image_id")["probability"]
    for path in (folder / "test_images").rglob("*.png"):
        explanation = explain(unbroken, path)
        assert list(explanation.probabilities) == [0, 1]
        assert explanation.probability == pytest.approx(expected[path.stem], rel=1e-6)
        for fold, probability in explanation.probabilities.items():
            model, shift = load_weights(unbroken.fold(fold), MODEL)
            with torch.no_grad():
                logit = model(to_tensor(prepare_image(path, PREPARE)[0])[None]).item()
            assert probability == pytest.approx(1 / (1 + np.exp(-logit - shift)), rel=1e-5)


# Where the overlay lies


@pytest.mark.parametrize("is_flipped", [False, True])
def test_a_patch_that_weighs_most_is_shown_where_it_lies_in_the_file(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_flipped: bool
) -> None:
    """Models that look at what is brightest find a spot again, in a left and in a right breast."""

    def look_at_the_brightest(model: object, images: torch.Tensor) -> AttentionMaps:
        patches = torch.nn.functional.avg_pool2d(images + 2, 8)[:, 0]
        return AttentionMaps(patches, patches, patches**8, torch.zeros(1, 1))

    monkeypatch.setattr(explain_module, "find_maps", look_at_the_brightest)
    row, column = 250, 60
    pixels = make_breast(400, 300) // 4
    pixels[row - 30 : row + 30, column - 30 : column + 30] = 4095
    if is_flipped:
        pixels, column = np.ascontiguousarray(pixels[:, ::-1]), 299 - column
    found = explain(unbroken, write_dicom(tmp_path / "a.dcm", pixels, **WINDOW))
    height, width = found.mammogram.shape
    assert height / width == pytest.approx(400 / 300, rel=0.01)
    y, x = round(row * height / 400), round(column * width / 300)
    assert found.mammogram[y, x] > 0.9
    for values in found.maps.values():
        assert values.shape == found.mammogram.shape
        assert values[y, x] == np.nanmax(values)
    box = found.box
    seen = np.isfinite(found.maps["rollout"])
    assert seen[box.top + 1 : box.bottom - 1, box.left + 1 : box.right - 1].all()
    assert seen.sum() <= (box.width + 2) * (box.height + 2)


def test_maps_are_in_units_of_their_mean_over_the_box_and_each_fold_counts_alike(
    unbroken: Run, mammogram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of a fold's values; a gradient of 0 stays 0."""
    sizes = iter([1.0, 1000.0])

    def look_up_or_down(model: object, images: torch.Tensor) -> AttentionMaps:
        size = next(sizes)
        values = torch.zeros(1, 4, 4)
        values[:, : 2 if size == 1.0 else 4, :] = size
        return AttentionMaps(values, values, torch.zeros(1, 4, 4), torch.zeros(1, 1))

    monkeypatch.setattr(explain_module, "find_maps", look_up_or_down)
    maps = explain(unbroken, mammogram).maps
    assert np.nanmean(maps["rollout"]) == pytest.approx(1.0, rel=0.02)
    assert np.nanmax(maps["rollout"]) == pytest.approx((2.0 + 1.0) / 2, rel=0.02)
    assert np.nanmin(maps["rollout"]) == pytest.approx((0.0 + 1.0) / 2, rel=0.02)
    assert np.nanmax(maps["gradient_rollout"]) == 0.0


# The picture


def test_the_picture_has_colour_where_the_maps_are_above_their_mean_and_nowhere_else() -> None:
    plain = make_explanation(
        maps={
            name: np.where(np.isnan(values), values, 1.0) for name, values in make_explanation().maps.items()
        }
    )
    with_colour, without = read_picture(make_explanation()), read_picture(plain)
    top = np.asarray(make_overlay_colours()(1.0))
    expected = np.rint(255 * (top[3] * top[:3] + (1 - top[3]) * 128 / 255))
    is_top = (np.abs(with_colour - expected) <= 2).all(axis=2)
    is_top[:, : with_colour.shape[1] // 4] &= False
    columns = np.nonzero(is_top.sum(axis=0) > 100)[0]
    assert len(np.split(columns, np.nonzero(np.diff(columns) > 1)[0] + 1)) == 3  # once per map
    assert not (np.abs(without - expected) <= 2).all(axis=2).sum(axis=0).max() > 100


def test_attention_that_is_nearly_even_does_not_look_as_if_it_were_not() -> None:
    """A scale that ended at 1.01 would show the noise of an untrained model in the strongest colour."""
    even = make_explanation(maps={"rollout": np.where(np.arange(60) < 30, 1.01, 0.99) * np.ones((80, 1))})
    flat = make_explanation(maps={"rollout": np.ones((80, 60))})
    assert np.abs(read_picture(even) - read_picture(flat)).max() < 10


def test_the_same_explanation_gives_the_same_bytes() -> None:
    assert draw_explanation(make_explanation()) == draw_explanation(make_explanation())


@pytest.mark.parametrize("name", ["$\\nonsense$.dcm", "a\nb\x07.png", "乳腺.dcm", "ä" * 300, "$"])
def test_any_file_name_can_stand_above_the_picture(name: str) -> None:
    assert draw_explanation(make_explanation(name=name)).startswith(b"\x89PNG")


@pytest.mark.parametrize("shape", [(80, 600), (900, 60)])
def test_any_aspect_and_many_folds_give_a_picture_of_a_sensible_size(shape: tuple[int, int]) -> None:
    explanation = make_explanation(
        mammogram=np.full(shape, 0.5, np.float32),
        box=Box(5, 0, 45, 40),
        maps={"rollout": np.ones(shape)},
        probabilities=dict.fromkeys(range(30), 0.5),
    )
    height, width, _ = read_picture(explanation).shape
    assert 300 < height < 1500
    assert 1000 < width < 2500


# The command


def test_it_prints_each_fold_and_writes_the_picture(finished: Run, mammogram: Path) -> None:
    ended = call(finished.folder, mammogram)
    assert ended.exit_code == 0, ended.output
    explanation = explain(finished, mammogram)
    numbers = re.findall(r"│\s*(0|1|mean)\s*│\s*(0\.\d{4})", ended.output)
    expected = [
        ("0", explanation.probabilities[0]),
        ("1", explanation.probabilities[1]),
        ("mean", explanation.probability),
    ]
    assert numbers == [(name, f"{value:.4f}") for name, value in expected]
    assert "picture: one_explain.png" in ended.output
    assert cv2.imread("one_explain.png") is not None


def test_nothing_that_identifies_a_patient_is_printed_or_written(finished: Run, mammogram: Path) -> None:
    ended = call(finished.folder, mammogram)
    written = Path("one_explain.png").read_bytes()
    for value in ("Weiherer", "4711-0815", "19561231", "Nordhang"):
        assert value not in ended.output
        assert value.encode() not in written


def test_a_file_that_cannot_be_used_ends_with_1_and_the_reason(finished: Run, mammogram: Path) -> None:
    mammogram.write_bytes(mammogram.read_bytes()[:-50])
    ended = call(finished.folder, mammogram)
    assert ended.exit_code == 1
    assert ended.stderr.startswith(f"{mammogram}: truncated: ")
    assert ended.stderr.count("\n") == 1
    assert not Path("one_explain.png").exists()
    with pytest.raises(ImageError):
        explain(finished, mammogram)


def test_mistakes_in_the_command_are_one_sentence_and_change_nothing(finished: Run, mammogram: Path) -> None:
    before = mammogram.read_bytes()
    mistakes = {
        (finished.folder, "absent.dcm"): "absent.dcm is not a file: name one mammogram",
        (finished.folder, mammogram, "--out", "files/../files/one.dcm"): "is the mammogram itself",
        ("nowhere", mammogram): "nowhere is not a run folder: it has no folds.csv",
    }
    for arguments, sentence in mistakes.items():
        ended = call(*arguments)
        assert isinstance(ended.exception, UserError)
        assert sentence in str(ended.exception)
    assert mammogram.read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["files", "finished"]


def test_a_run_that_is_not_finished_explains_nothing(finished: Run, mammogram: Path) -> None:
    finished.fold(1).oof.unlink()
    with pytest.raises(UserError, match="is not finished: fold 1 of 2 still to be trained"):
        explain(finished, mammogram)


def test_a_run_of_an_image_folder_explains_nothing(tmp_path: Path, mammogram: Path) -> None:
    folder = tmp_path / "pets"
    folder.mkdir()
    pd.DataFrame({"image": ["a/1.png"], "label": ["a"], "split": ["train"]}).to_csv(folder / "images.csv")
    with pytest.raises(UserError, match="is not a cross-validation on mammograms and has no folds"):
        explain(Run(folder), mammogram)
