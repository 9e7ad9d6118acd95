"""The report of a class run: complete, self-contained, and readable from 2 to 37 classes."""

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.classification import plots
from pipeline.classification.class_run import ClassRun
from pipeline.classification.metrics import evaluate_classes
from pipeline.classification.report import describe_accuracy, write_class_report
from pipeline.reporting.plots.svg import INK
from tests.browser import open_page
from tests.pipeline.class_run import make_labels, make_predictions, write_class_run
from tests.pipeline.reporting.test_report import Page


def write_page(run: ClassRun) -> str:
    return write_class_report(run, evaluate_classes(run)).read_text("utf-8")


@pytest.fixture(params=[2, 6, 37], ids="{} classes".format)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> ClassRun:
    return write_class_run(tmp_path / "pets", make_predictions(request.param))


def test_the_page_is_self_contained_and_well_formed(run: ClassRun) -> None:
    text = write_page(run)
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert all(address.removeprefix("#") in page.ids for address in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    assert all(name in page.ids for name in re.findall(r"url\(#([^)]+)\)", text))
    assert INK not in text
    assert len(text.encode()) < 1_000_000


def test_the_page_says_what_a_reader_needs(tmp_path: Path) -> None:
    run = write_class_run(tmp_path / "pets", make_predictions(37))
    evaluation = evaluate_classes(run)
    page = Page(write_page(run)).text.replace("\u00a0", " ")
    low, high = evaluation.accuracy_interval
    for expected in (
        f"Accuracy {100 * evaluation.accuracy:.1f} % 95 % interval {100 * low:.1f} % to {100 * high:.1f} %",
        "Top-5 accuracy",
        "guessing evenly: 3.611",
        f"names the class of {evaluation.num_right} of 437 test images rightly",
        "Always answering breed_36, the most common class in training",
        "37 classes, 112 images for training, 437 for the test. Test split: the official lists.",
        "The test figures of each epoch were written down and chose nothing",
        "image_size = 224",
        "/data/pets",
    ):
        assert expected in page
    assert all(page.count(label) >= 1 for label in make_labels(37))


def test_the_same_run_gives_the_same_bytes(run: ClassRun) -> None:
    assert write_page(run) == write_page(run)


def test_the_matrix_has_a_square_for_each_pair_that_occurs(run: ClassRun) -> None:
    evaluation = evaluate_classes(run)
    drawing = plots.draw_confusion(evaluation.confusion, evaluation.labels)
    assert re.match(r'<svg role="img" aria-label="[^"]{20,}"', drawing)
    num_squares = len(re.findall(r'<path d="[^"]*"[^>]*fill: #3987e5', drawing))
    assert num_squares == (evaluation.confusion > 0).sum()
    for label in evaluation.labels:
        assert drawing.count(f">{label}</text>") == 2
    counts = {f">{count:,}</text>" for count in evaluation.confusion[evaluation.confusion > 0]}
    assert all((count in drawing) == (len(evaluation.labels) <= 12) for count in counts)


def test_a_long_name_is_shortened_in_the_matrix_and_stands_in_full_in_the_table(tmp_path: Path) -> None:
    long = "W" * 120
    table = make_predictions(3).rename(columns={"p_breed_00": f"p_{long}"}).replace("breed_00", long)
    run = write_class_run(tmp_path / "run", table)
    labels = evaluate_classes(run).labels
    drawing = plots.draw_confusion(evaluate_classes(run).confusion, labels)
    assert long in labels
    assert drawing.count(f">{29 * 'W'}\N{HORIZONTAL ELLIPSIS}</text>") == 2
    assert 31 * "W" not in drawing
    assert long in Page(write_page(run)).text
    thirty = 30 * "W"
    assert plots.draw_confusion(np.eye(2, dtype=np.int64), [thirty, "b"]).count(f">{thirty}</text>") == 2


def test_names_are_escaped(tmp_path: Path) -> None:
    table = make_predictions(2, num_images=20).rename(columns={"p_breed_00": "p_<script>$x^2$&"})
    table = table.replace("breed_00", "<script>$x^2$&")
    page = Page(write_page(write_class_run(tmp_path / "<img src=x>", table)))
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count("<script>$x^2$&") >= 4


@pytest.mark.parametrize(
    ("skill", "verdict"),
    [
        (3.0, r"of them\.$"),
        (0.0, "from which the model cannot be told"),
        (-5.0, "the model is worse than that"),
    ],
)
def test_the_headline_says_whether_the_model_beats_one_answer(
    tmp_path: Path, skill: float, verdict: str
) -> None:
    run = write_class_run(tmp_path / "run", make_predictions(4, skill=skill))
    assert re.search(verdict, describe_accuracy(evaluate_classes(run)))


def test_what_was_not_recorded_is_said(tmp_path: Path) -> None:
    run = write_class_run(tmp_path / "run", make_predictions(3))
    for path in (run.settings, run.environment, run.training.history):
        path.unlink()
    page = Page(write_page(run))
    for name in ("settings.toml", "environment.json", "history.csv"):
        assert re.search(rf"Not recorded: [a-z ]+ {name}", page.text)
    assert "Test split: not recorded." in page.text


def test_a_model_without_a_mistake_has_a_report(tmp_path: Path) -> None:
    run = write_class_run(tmp_path / "run", make_predictions(3, skill=50))
    assert "Most frequent mistakes There are none." in Page(write_page(run)).text


@pytest.mark.parametrize("width", [500, 1200])
def test_a_browser_shows_every_picture_without_a_sideways_scroll_bar(
    run: ClassRun, tmp_path: Path, width: int
) -> None:
    question = """({
      heights: [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect().height),
      fits: document.documentElement.scrollWidth <= document.documentElement.clientWidth,
    })"""
    write_page(run)
    opened = open_page(run.report, question, tmp_path, width=width)
    assert len(opened.answer["heights"]) == 3
    assert min(opened.answer["heights"]) > 150
    assert opened.answer["fits"]
    assert opened.console == []
