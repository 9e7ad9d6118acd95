"""The report: self-contained, complete, honest where something is missing, and fit for a browser."""

import base64
import html
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import expit, logit
from typer.testing import CliRunner

from data_prep.errors import UserError
from data_prep.storage.atomic import write_csv
from pipeline.cli.app import app
from pipeline.evaluation.artifacts import evaluate_run
from pipeline.evaluation.evaluate_oof import evaluate_oof
from pipeline.evaluation.oof import collect_oof
from pipeline.models.attention import ATTENTION_COLUMNS
from pipeline.models.vit import VisionTransformer
from pipeline.reporting.formatting import FIGURE_NAMES, format_figure, format_interval
from pipeline.reporting.plots import curves, vit_plots
from pipeline.reporting.plots.svg import FOLD_COLOURS, INK
from pipeline.reporting.report import HISTORY_COLUMNS, write_report
from pipeline.reporting.sections.calibration_text import describe_loss, describe_offset
from pipeline.reporting.tables import tabulate_slices
from pipeline.reporting.text import (
    describe_auc,
    describe_ceilings,
    describe_pf1,
    describe_ties,
    explain_undefined,
)
from pipeline.reporting.vit_figures import draw_vit_figures
from pipeline.runs.recipe import ModelSettings
from pipeline.runs.run_folder import Run
from tests.browser import open_page, photograph, print_page
from tests.pipeline.synthetic_run import add_exam_columns, make_history, make_oof, write_run
from tests.pipeline.tiny import quiet

README = Path(__file__).parents[3] / "reports/README.md"
VOID_TAGS = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """Collects ids, addresses, tags and text; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.addresses, self.tags, self.words, self.open = [], [], [], [], []
        self.feed(text)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.words))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.note(dict(attrs))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.note(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "script"}:
            self.words.append(data)

    def note(self, attributes):
        self.ids += [value for name, value in attributes.items() if name == "id"]
        self.addresses += [
            value for name, value in attributes.items() if name in {"href", "src", "xlink:href"}
        ]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run of random numbers; no test changes it."""
    return write_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def reported(unbroken, tmp_path_factory):
    """A run that has everything, with its report; no test changes it."""
    run = Run(Path(shutil.copytree(unbroken.folder, tmp_path_factory.mktemp("reported") / "run")))
    write_whole_page(run)
    return run


@pytest.fixture
def own(reported, tmp_path):
    """A copy, to do with as a test likes."""
    return Run(Path(shutil.copytree(reported.folder, tmp_path / "own")))


def write_page(tmp_path, **options):
    run = write_run(tmp_path / "night run", make_oof(**options))
    return write_report(run, evaluate_run(run), reporter=quiet()).read_text("utf-8")


def write_distances(run, folds=(0, 1)):
    """What training leaves of attention: the deeper, the farther."""
    for fold in folds:
        rows = [(layer, head, 3.0 * layer + head + 0.5 * fold) for layer in (1, 2) for head in (1, 2)]
        write_csv(run.fold(fold).attention, pd.DataFrame(rows, columns=ATTENTION_COLUMNS))


def write_whole_page(run):
    """The page of a run that has everything."""
    write_distances(run)
    return write_report(run, evaluate_run(run), reporter=quiet()).read_text("utf-8")


def look(run, folds=(0, 1)):
    return draw_vit_figures(run.settings, {f"fold {fold}": run.fold(fold) for fold in folds})


@pytest.mark.parametrize("is_whole", [False, True])
def test_the_page_is_self_contained_and_well_formed(page, reported, is_whole):
    """One script of its own, no address but those inside the page, no id twice, under 3 MB."""
    text = reported.report.read_text("utf-8") if is_whole else page
    page = Page(text)
    assert not {"link", "iframe"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert page.addresses
    drawn = [address for address in page.addresses if address.startswith("data:image/png;base64,")]
    photographs = [address for address in page.addresses if address.startswith("data:image/jpeg;base64,")]
    num_shown = page.tags.count("figure") - text.count('<svg role="img"')
    # Filters, positions and the scale of the positions; and what lies over each mammogram.
    assert len(drawn) == (3 + num_shown if is_whole else 0)
    assert len(photographs) == (num_shown if is_whole else 0)
    within = set(page.addresses) - {*drawn, *photographs}
    assert all(address.removeprefix("#") in page.ids for address in within)
    assert len(page.ids) == len(set(page.ids))
    assert all(name in page.ids for name in re.findall(r"url\(#([^)]+)\)", text))
    assert len(text.encode()) < 3_000_000


def test_the_page_says_what_a_reader_needs(page):
    page = Page(page)
    for expected in (
        "night run",
        "60 patients, 120 breasts (15 with cancer), 240 images, 3 folds",
        "Only 15 breasts with cancer",
        "Here 12.5 % of the breasts have it, and answering 1 for every breast scores 0.222",
        "Not a medical device",
        "percentile of 2,000 bootstrap replicates. All count a patient once",
        "embed_dim = 64",
        "packages.torch 2.13.0",
    ):
        assert expected in page.text.replace("\u00a0", " ")


def test_all_drawings_with_alternative_texts_and_a_line_per_fold(page):
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 11
    for drawing in drawings:
        assert re.match(r'<svg role="img" aria-label="[^"]{20,}"', drawing)
        assert INK not in drawing
    by_fold = [drawing for drawing in drawings if ">fold 0</text>" in drawing]
    assert all(drawing.count(f">fold {fold}</text>") == 1 for drawing in by_fold for fold in range(3))
    for number, name in enumerate(["mean of folds", "all folds", "pooled"]):
        counts = [drawing.count(f">{name}</text>") for drawing in by_fold]
        assert counts == [int(place == number) for place in range(5)]


def test_the_same_run_gives_the_same_bytes(page, tmp_path):
    assert write_page(tmp_path) == page


def test_names_and_settings_are_escaped(tmp_path):
    run = write_run(tmp_path / "<script>alert(1)<", make_oof())
    run.settings.write_text('note = "</pre><script>alert(2)</script>"')
    run.environment.write_text('{"device": "<img src=x>"}')
    page = Page(write_report(run, evaluate_run(run), reporter=quiet()).read_text("utf-8"))
    assert "img" not in page.tags
    assert page.tags.count("script") == 1
    assert "<script>alert(1)<" in page.text
    assert "<img src=x>" in page.text


def test_what_was_not_recorded_is_said(tmp_path):
    run = write_run(tmp_path / "run", make_oof())
    for path in (run.settings, run.environment, *(run.fold(fold).history for fold in range(3))):
        path.unlink()
    page = Page(write_report(run, evaluate_run(run), reporter=quiet()).read_text("utf-8"))
    for name in ("settings.toml", "environment.json", "history.csv"):
        assert re.search(rf"Not recorded: [a-z ]+ {name}", page.text)


def spoil(name, text):
    """Returns what puts a text into a file of the run."""

    def do(run):
        path = run.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return do


DAMAGES = {
    "an empty history": spoil("fold_0/history.csv", ""),
    "a history without an epoch": spoil("fold_1/history.csv", ",".join(HISTORY_COLUMNS) + "\n"),
    "a history of words": spoil(
        "fold_0/history.csv", ",".join(HISTORY_COLUMNS) + "\n" + "high," * 5 + "high\n"
    ),
    "a history of other columns": spoil("fold_0/history.csv", "epoch,loss\n1,0.5\n"),
    "a torn throughput": spoil("fold_1/throughput.csv", "epoch,images,seconds\n1,12"),
    "bytes for attention distances": spoil("fold_0/attention.csv", b"\xff\x00\xfe"),
    "half an environment": spoil("environment.json", '{"cache": '),
}


@pytest.fixture(scope="module")
def even(reported):
    """An evaluation of the same run with other figures."""
    return evaluate_oof(collect_oof(reported).assign(probability=0.5))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_one_sentence_with_a_way_out_and_no_report_is_touched(own, even, damage):
    """Figures, pages and card stay those of the report before; the way out is a way out."""
    path = damage(own)
    before = {
        file: (file.read_bytes(), file.stat().st_mtime_ns) for file in own.folder.iterdir() if file.is_file()
    }
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} is damaged") as caught:
        write_report(own, even, reporter=quiet())
    assert "\n" not in str(caught.value)
    assert "remove it" in str(caught.value)
    assert all((file.read_bytes(), file.stat().st_mtime_ns) == was for file, was in before.items())
    path.unlink()
    write_report(own, even, reporter=quiet())


def test_settings_that_are_no_text_are_shown_as_far_as_they_are(tmp_path):
    run = write_run(tmp_path / "run", make_oof())
    run.settings.write_bytes(b"[model]\nname = '\xff'\n")
    assert "name = &#39;\ufffd&#39;" in write_report(run, evaluate_run(run), reporter=quiet()).read_text(
        "utf-8"
    )


def test_a_fold_without_cancer_is_explained_and_leaves_no_curve(tmp_path):
    oof = make_oof()
    oof.loc[oof["fold"] == 1, "cancer"] = 0
    run = write_run(tmp_path / "run", oof)
    evaluation = evaluate_run(run)
    (sentence,) = explain_undefined(evaluation)
    assert sentence.startswith("Fold 1: there is no breast with cancer, so there is no pF1")
    page = html.unescape(write_report(run, evaluation, reporter=quiet()).read_text("utf-8"))
    assert sentence in page
    roc = re.search(r"<svg.*?</svg>", page, re.DOTALL)[0]
    assert ">fold 0</text>" in roc
    assert ">fold 1</text>" not in roc


def test_a_run_without_cancer_has_a_report_without_curves(tmp_path):
    page = Page(write_page(tmp_path, num_cancers=0))
    assert "There are no curves" in page.text
    assert "The AUC is undefined: there is no breast with cancer." in page.text
    assert "pF1 is undefined: there is no breast with cancer." in page.text


def test_the_model_is_shown_in_three_pictures(finished):
    text = write_whole_page(finished)
    section = re.search(r">The model</h2>.*?</section>", text, re.DOTALL)[0]
    assert re.findall(r"<h3>(.*?)</h3>", section) == [
        "Patch filters",
        "Position embeddings",
        "Attention distance",
    ]
    drawings = re.findall(r"<svg.*?</svg>", section, re.DOTALL)
    assert all(re.match(r'<svg role="img" aria-label="[^"]{20,}"', drawing) for drawing in drawings)
    assert all(INK not in drawing for drawing in drawings)
    assert section.count("Fold 0: ") == 2
    assert text.index(">Learning curves</h2>") < text.index(">The model</h2>") < text.index(">Settings</h2>")
    assert "<p>" not in section


def test_what_the_model_lacks_is_said_and_the_rest_is_shown(finished):
    titles = ["Patch filters", "Position embeddings", "Attention distance"]
    for fold in (0, 1):
        finished.fold(fold).attention.unlink()
    seen = look(finished)
    assert [picture.title for picture in seen.pictures] == titles[:2]
    assert seen.missing == ["No attention distance: fold 0 and fold 1 have no attention.csv."]
    write_distances(finished, folds=[1])
    finished.fold(0).weights.write_bytes(b"damaged")
    seen = look(finished)
    assert [picture.title for picture in seen.pictures] == titles[2:]
    assert ">fold 1</text>" in seen.pictures[0].svg
    assert ">fold 0</text>" not in seen.pictures[0].svg
    assert seen.missing == ["No patch filters and positions: fold 0 has no readable model.safetensors."]
    finished.settings.unlink()
    seen = look(finished)
    assert not seen.pictures
    assert seen.missing == ["Not drawn: the run's settings.toml does not describe a model."]
    page = Page(write_report(finished, evaluate_run(finished), reporter=quiet()).read_text("utf-8"))
    assert seen.missing[0] in page.text


def test_positions_that_were_not_learned_are_not_shown(finished, monkeypatch):
    fixed = VisionTransformer(
        ModelSettings(image_size=32, patch_size=8, width=16, depth=2, num_heads=2, pos_embed="sincos2d")
    )
    monkeypatch.setattr("pipeline.reporting.vit_figures.load_weights", lambda folder, settings: (fixed, 0.0))
    settings = finished.settings.read_text("utf-8")
    finished.settings.write_text(settings.replace('pos_embed = "learned"', 'pos_embed = "sincos2d"'), "utf-8")
    for fold in (0, 1):
        finished.fold(fold).attention.unlink()
    seen = look(finished)
    assert [picture.title for picture in seen.pictures] == ["Patch filters"]
    assert "No positions: the position embeddings are fixed waves, not learned." in seen.missing


def read_pixels(drawing):
    """The first embedded picture of a drawing as [H, W, 4], 0..255."""
    encoded = re.search(r'href="data:image/png;base64,([^"]+)"', drawing)[1]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        return np.asarray(picture.convert("RGBA"), int)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_filter_is_a_tile_around_middle_grey(channels):
    """Nine filters of 8 x 8 pixels in rows of seven: a gap of one pixel, nothing where there is no filter."""
    filters = np.zeros((9, channels, 8, 8))
    filters[8, :, 2, 3], filters[8, :, 4, 4] = 0.5, -0.5
    pixels = read_pixels(vit_plots.draw_patch_filters(filters))
    assert pixels.shape == (17, 62, 4)
    assert set(pixels[0, 0, :3]) <= {127, 128}
    assert pixels[9 + 2, 9 + 3].tolist() == [255, 255, 255, 255]
    assert pixels[9 + 4, 9 + 4].tolist() == [0, 0, 0, 255]
    assert (pixels[8, :, 3] == 0).all()
    assert (pixels[:8, 8, 3] == 0).all()
    assert (pixels[9:, 18:, 3] == 0).all()


def test_a_filter_of_three_channels_is_coloured():
    filters = np.zeros((1, 3, 8, 8))
    filters[0, 0], filters[0, 2] = 1.0, -1.0
    colours = read_pixels(vit_plots.draw_patch_filters(filters))[..., :3].reshape(-1, 3)
    assert np.abs(colours - [255, 127.5, 0]).max() <= 0.5


@pytest.mark.parametrize(("grid_size", "num_tiles", "first"), [(4, 4, 1), (8, 8, 1), (14, 7, 1), (32, 8, 2)])
def test_each_tile_of_the_positions_shows_the_place_that_its_row_and_column_name(grid_size, num_tiles, first):
    """A position is like itself alone; of many positions, every second, third, ... has a tile."""
    drawing = vit_plots.draw_position_similarity(np.eye(grid_size**2).reshape(4 * [grid_size]))
    pixels, gap = read_pixels(drawing), max(1, grid_size // 16)
    step = grid_size + gap
    assert len(pixels) == num_tiles * step - gap
    is_like = (pixels[..., 0] > 200) & (pixels[..., 3] > 0)  # viridis is yellow at 1 and green at 0
    rows, columns = np.nonzero(is_like)
    assert len(rows) == num_tiles**2
    shown = np.arange(first - 1, grid_size, -(-grid_size // 8))
    np.testing.assert_array_equal(rows % step, shown[rows // step])
    np.testing.assert_array_equal(columns % step, shown[columns // step])
    assert all(drawing.count(f">{place + 1}</text>") == 2 for place in shown)


def test_attention_distances_have_a_dot_per_head_and_all_lie_within_the_axes():
    distances = {"layer": [1, 1, 2], "head": [1, 2, 1], "distance_px": [0.0, 50.0, 900.0]}
    tables = {f"fold {fold}": pd.DataFrame(distances) for fold in range(3)}
    drawing = vit_plots.draw_attention_distance(tables, 267.0)
    assert all(drawing.count(f">fold {fold}</text>") == 1 for fold in range(3))
    dots = re.findall(r'<use [^>]*? x="([\d.]+)" y="([\d.]+)" style="fill: #(4c6bbf|f0761f|46a8af)', drawing)
    assert len(dots) == 3 * (3 + 1)  # and one each in the legend
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing).groups())
    assert all(0 < float(x) < width and 0 < float(y) < height for x, y, _ in dots)
    assert len({x for x, _, _ in dots}) >= 6  # the folds stand side by side


@pytest.mark.parametrize(
    ("skill", "verdict"),
    [(2.0, "; a coin would in"), (0.0, "which cannot be told from a coin"), (-2.0, "worse than a coin")],
)
def test_the_headline_says_whether_the_model_beats_a_coin(tmp_path, skill, verdict):
    evaluation = evaluate_run(write_run(tmp_path / "run", make_oof(skill=skill)))
    assert verdict in describe_auc(evaluation)
    assert "recalling every breast would give 0.222" in describe_pf1(evaluation)


@pytest.mark.parametrize("value", [None, math.nan, np.float64("nan")])
def test_a_figure_that_is_no_number_is_a_word(value):
    assert format_figure(value) == "undefined"


def test_one_figure_has_one_name_wherever_people_read_it(tmp_path):
    """pF1 at the threshold of the other folds, in page, text, card and terminal."""
    run = write_run(tmp_path / "run", make_oof())
    ended = CliRunner().invoke(app, ["evaluate", str(run.folder)], env={"COLUMNS": "200"})
    name = FIGURE_NAMES["pf1_transferred"]
    page = Page(run.report.read_text("utf-8")).text
    texts = {"page": page, "terminal": ended.stdout}
    texts |= {path.name: path.read_text("utf-8") for path in (run.report_text, run.model_card)}
    for place, text in texts.items():
        assert name in text, place
        assert not re.search(r"transferred (F1|threshold)|F1 transferred|F1 at the transferred", text), place
    assert f"<dt>{html.escape(name).replace('&#x27;', '&#39;')}</dt>" in run.report.read_text("utf-8")
    assert f"`pf1_transferred`, `threshold_transferred` | {name}" in README.read_text("utf-8")


def test_what_no_model_could_find_is_said_beside_what_was_found(tmp_path):
    """15 of 60 women have cancer in one breast, 12 in the other too; 10 % of 60 are 6 women with 12 of 27."""
    oof = make_oof(num_cancers=0)
    left, right = (
        (oof["laterality"] == side) & (oof["patient_id"].astype(int) < n)
        for side, n in (("L", 15), ("R", 12))
    )
    oof["cancer"] = (left | right).astype(int)
    run = write_run(tmp_path / "run", oof)
    evaluation = evaluate_run(run)
    assert evaluation.ceilings == {
        2: 2 / 27,
        5: 6 / 27,
        10: 12 / 27,
    }  # 2 % of 60 women is one, of the first fold
    page = Page(write_report(run, evaluation, reporter=quiet()).read_text("utf-8")).text.replace(
        "\u00a0", " "
    )
    assert "If at most 10 % of the women were recalled" not in page
    assert "At a threshold that recalls at most 10 % of the breasts without cancer in each fold" in page
    sentence = (
        "2 %, 5 %, 10 % of these 60 women are 1, 3, 6, of whom each fold recalls its part. Where a fold has "
        "more women with cancer than that, some are missed: no model can find"
    )
    tiles = re.findall(r"<dt>(.*?)</dt>", run.report.read_text("utf-8"))
    assert tiles[2].replace("\u00a0", " ") == "sensitivity at specificity 90 %", (
        "no figure that has a ceiling"
    )
    texts = [page, *(path.read_text("utf-8") for path in (run.report_text, run.model_card))]
    assert all(f"{sentence} more than 7.4 %, 22.2 %, 44.4 %" in text.replace("\u00a0", " ") for text in texts)


def test_a_report_names_no_folder_of_the_machine(finished, cache):
    """It may be shared, and is the same wherever run and cache lie."""
    write_report(finished, evaluate_run(finished), reporter=quiet())
    for path in (finished.report, finished.model_card):
        text = path.read_text("utf-8")
        assert str(cache.folder) not in text
        assert "cache_from_run" in text.replace("\\", "")


def test_slices_of_images_count_images_and_few_cancers_are_of_patients():
    evaluation = evaluate_oof(add_exam_columns(make_oof()))
    rows = {(row[0], row[1]): row[2:4] for row in tabulate_slices(evaluation).rows}
    assert rows["all", ""][0] == "120"
    assert rows["all (images)", ""][0] == "240"
    for view in ("CC", "MLO"):
        counts = evaluation.oof[evaluation.oof["view"] == view]["cancer"]
        assert rows["view (images)", view] == [str(len(counts)), f"{counts.sum()} (under 20 women)"]


def test_no_model_is_told_to_have_found_more_than_could_be_found():
    """The ceiling is reached by the truth itself, and where all can be found nothing is said."""
    oof = make_oof(num_patients=200, num_cancers=30)
    perfect = evaluate_oof(
        oof.assign(probability=oof["cancer"] * (0.5 + 0.4 * oof["patient_id"].astype(int) / 200))
    )
    for rate, ceiling in perfect.ceilings.items():
        assert perfect.breasts.pooled.metrics.figures[f"sensitivity_at_recall_rate_{rate}"] <= ceiling < 1
    rare = make_oof(num_patients=200, num_cancers=1)
    assert describe_ceilings(evaluate_oof(rare)) == ""
    assert describe_ceilings(evaluate_oof(make_oof(num_cancers=0))) == ""


@pytest.mark.parametrize(("num_tied", "is_said"), [(0, False), (11, False), (12, True), (120, True)])
def test_probabilities_that_tie_heavily_are_a_warning(num_tied, is_said):
    """Of 120 breasts a tenth is 12."""
    oof = make_oof()
    breasts = oof.groupby(["patient_id", "laterality"], sort=False).ngroup()
    oof.loc[breasts < num_tied, "probability"] = 0.25
    sentence = describe_ties(evaluate_oof(oof))
    assert bool(sentence) == is_said
    if is_said:
        assert sentence.startswith(f"{100 * num_tied / 120:.1f}\u00a0% of the breasts have the very same")


@pytest.mark.parametrize(
    ("cancer", "said"),
    [
        (
            0,
            ["No breast has cancer: nothing here says", "There is no threshold to move, since no breast has"],
        ),
        (
            1,
            [
                "Every breast has cancer: nothing here says",
                "The threshold was not moved, since every breast has",
            ],
        ),
    ],
)
def test_where_all_breasts_are_alike_the_texts_say_so_and_promise_nothing(tmp_path, cancer, said):
    run = write_run(tmp_path / "run", make_oof().assign(cancer=cancer))
    write_report(run, evaluate_run(run), reporter=quiet())
    for path in (run.report, run.report_text):
        text = path.read_text("utf-8")
        assert all(sentence in text for sentence in said)
        for wrong in (
            "Only 0 breasts",
            "100.0\u00a0% of the breasts have it",
            "a little too high",
            "see how calibration",
            "nan",
        ):
            assert wrong not in text, wrong
    assert said[0] in run.model_card.read_text("utf-8")


def test_what_the_probabilities_are_worth_and_what_calibration_is_for_stand_in_page_text_and_card(tmp_path):
    run = write_run(tmp_path / "run", make_oof())
    evaluation = evaluate_run(run)
    write_report(run, evaluation, reporter=quiet())
    found = evaluation.calibration
    raw = found.recalibrations["raw"]
    shown = [
        f"{raw.figures['slope']:.3f}",
        format_interval(raw.intervals["slope"]),
        f"{found.errors['platt'].perfect:.4f}",
        f"slope {found.by_model[0]['slope']:.3f}, intercept {found.by_model[0]['intercept']:.3f}",
        "calibration error of a constant",
        "not the mean of all folds' models",
    ]
    assert f"{evaluation.threshold_of_mean:.3f} instead" in run.report_text.read_text("utf-8")
    assert f"{evaluation.threshold_of_mean:.3f} instead" in run.report.read_text("utf-8")
    for path in (run.report, run.report_text, run.model_card):
        text = html.unescape(path.read_text("utf-8"))
        assert all(part in text for part in shown), path


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ("positive_weight = 3", ["(train.positive_weight 3) is undone"], ["Not undone"]),
        (
            "focal_gamma = 2\nmixup = 0.4",
            ["Not undone: the focal loss (train.focal_gamma 2) and mixup"],
            ["is und"],
        ),
        ("epochs = 8", [], ["undone"]),
        ("no_setting = 8", [], ["undone"]),
    ],
)
def test_what_the_loss_does_to_the_probabilities_is_said_beside_them(tmp_path, settings, said, unsaid):
    run = write_run(tmp_path / "run", make_oof())
    run.settings.write_text(f"[train]\n{settings}\n")
    sentence = describe_loss(run)
    assert all(part in sentence for part in said)
    assert not any(part in sentence for part in unsaid)
    write_report(run, evaluate_run(run), reporter=quiet())
    for path in (run.report, run.report_text, run.model_card):
        assert sentence in html.unescape(path.read_text("utf-8")).replace("\\_", "_")


@pytest.mark.parametrize(("shift", "is_said"), [(0, False), (-3, True), (3, True)])
def test_a_number_of_cancers_that_is_not_the_expected_one_is_said_first(shift, is_said):
    generator = np.random.default_rng(0)
    oof = make_oof(num_patients=200)
    truth = expit(generator.normal(-2, 1, len(oof) // 2)).repeat(2)
    cancer = (generator.random(len(oof) // 2).repeat(2) < truth).astype(int)
    oof = oof.assign(cancer=cancer, probability=expit(logit(truth) + shift))
    ratio = cancer.sum() / oof["probability"].sum()
    sentence = describe_offset(evaluate_oof(oof).calibration)
    assert bool(sentence) == is_said
    if is_said:
        assert sentence.startswith(f"There are {ratio:.2f} times (")


def test_the_report_says_why_a_case_has_one_probability_alone(tmp_path):
    run = write_run(tmp_path / "run", make_oof())
    write_report(run, evaluate_run(run), reporter=quiet())
    for path in (run.report, run.report_text, run.model_card):
        assert "would be a leak dressed up as evidence" in path.read_text("utf-8")


def test_gaps_in_a_history_are_drawn_as_gaps():
    """A fold whose validation AUC is undefined in an epoch, and a history of one epoch."""
    history = make_history(6)
    history.loc[2, "val_auc"] = None
    drawing = curves.draw_validation_auc({0: history, 1: make_history(1)})
    assert "nan" not in drawing
    assert ">fold 1</text>" in drawing


SHOWN = """(() => {
  const page = document.documentElement;
  const read = () => [...document.querySelectorAll("#folds ~ .scroll tbody tr")]
    .map(row => parseFloat(row.cells[1].textContent));
  const head = document.querySelector("#folds ~ .scroll thead th:nth-child(2)");
  const before = read();
  head.querySelector("button").click();
  const rising = read(), sort = head.getAttribute("aria-sort");
  head.querySelector("button").click();
  const images = [...document.images];
  const styled = (part, media) => [...document.styleSheets[0].cssRules]
    .filter(rule => rule.media?.mediaText === media).flatMap(rule => [...rule.cssRules])
    .filter(rule => part.matches(rule.selectorText)).map(rule => rule.style);
  const printed = part => styled(part, "print");
  return {
    drawings: [...document.querySelectorAll("svg")]
      .filter(svg => svg.getBoundingClientRect().height > 100).length,
    images: images.length,
    loaded: images.filter(image => image.complete && image.naturalWidth > 0).length,
    described: images.filter(image => image.alt.length > 10).length,
    hints: [...document.querySelectorAll("main *")]
      .filter(part => part.children.length === 0 && part.textContent.includes("Point at a picture"))
      .map(part => ["print", "(hover: none)"].map(media => styled(part, media)[0]?.display)),
    torn: [...document.querySelectorAll("figure, .case, .caution, .figures div, tr")]
      .filter(part => !printed(part).some(style => style.breakInside === "avoid")).length,
    loose: [...document.querySelectorAll("table:not(.facts)")]
      .filter(table => !table.closest(".scroll")).length,
    fits: page.scrollWidth <= page.clientWidth, before, rising, sort, falling: read(),
  };
})()"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1200])
def test_a_browser_shows_every_picture_and_sorts_tables(tmp_path, reported, width):
    """Headless Chromium lays out the page without complaint and without a sideways scroll bar.

    Wide tables scroll in a box of their own, and print tears no figure, case, card or row. Neither paper nor
    a touch screen is told to point.
    """
    opened = open_page(reported.report, SHOWN, tmp_path, width=width)
    shown = opened.answer
    assert opened.console == []
    assert shown["drawings"] == 14
    assert shown["images"] == shown["loaded"] == shown["described"] > 0
    assert shown["fits"]
    assert shown["loose"] == shown["torn"] == 0
    assert shown["hints"] == [["none", "none"]]
    assert shown["sort"] == "ascending"
    assert shown["rising"] == sorted(shown["before"])
    assert shown["falling"] == sorted(shown["before"], reverse=True)


@pytest.mark.slow
def test_the_page_is_light_by_day_and_dark_by_night(tmp_path, reported):
    means = []
    for is_dark in (False, True):
        with Image.open(photograph(reported.report, tmp_path, is_dark=is_dark)) as picture:
            grey = np.asarray(picture.convert("L"), float)
        assert grey.std() > 10
        means.append(grey.mean())
    assert means[0] > 200
    assert means[1] < 60


@pytest.mark.slow
def test_the_last_sheet_of_a_printed_report_has_more_than_the_footer(page, tmp_path):
    """Found by bisection: the fewest rows at the end with which the report takes a sheet more."""
    path, end = tmp_path / "report.html", page.rindex("</table>")

    def print_with(num_rows):
        rows = "".join(f'<tr><th scope="row">row {row}</th><td>value</td></tr>' for row in range(num_rows))
        path.write_text(page[:end] + rows + page[end:])
        return print_page(path, tmp_path)

    sheets = print_with(0)
    fewest, most = 0, 64
    assert len(print_with(most)) > len(sheets)
    while most - fewest > 1:
        middle = (fewest + most) // 2
        fewest, most = (middle, most) if len(print_with(middle)) == len(sheets) else (fewest, middle)
    footer = print_page(write_footer(tmp_path, page), tmp_path)[0]
    assert print_with(most)[-1] > footer


def write_footer(folder, page):
    """A page of nothing but the report's footer."""
    path = folder / "footer.html"
    start, end = page.index("<main>") + len("<main>"), page.index("<footer")
    path.write_text(page[:start] + page[end:])
    return path


def test_every_headline_figure_stands_in_the_text_and_the_card(tmp_path):
    run = write_run(tmp_path / "run", add_exam_columns(make_oof()))
    write_report(run, evaluate_run(run), reporter=quiet())
    metrics = json.loads(run.metrics.read_text("utf-8"))
    for text in (run.report_text.read_text("utf-8"), run.model_card.read_text("utf-8")):
        for level in (metrics["pooled"], metrics["images"]["pooled"]):
            for name, interval in level["interval_95"].items():
                shown = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
                if name != "threshold_transferred":  # of all folds there is none
                    assert f"| {level[name]:.3f} | {shown} |" in text
        assert "embed_dim = 64" in text
    assert "not a medical device" in run.model_card.read_text("utf-8")
    slices = [f"| {part['slice']} | {part['value']} | " for part in metrics["slices"]]
    assert all(start in run.report_text.read_text("utf-8") for start in slices)


def test_hostile_names_stay_text_in_markdown(tmp_path):
    oof = add_exam_columns(make_oof())
    oof["site_id"] = oof["site_id"].replace({"1": "<b>|x|`</b>"})
    run = write_run(tmp_path / "<script>alert(1)<", oof)
    run.settings.write_text("```\n<script>alert(2)</script>")
    page = Page(write_report(run, evaluate_run(run), reporter=quiet()).read_text("utf-8"))
    assert page.tags.count("script") == 1
    assert "<b>|x|`</b>" in page.text
    for path in (run.report_text, run.model_card):
        lines = path.read_text("utf-8").splitlines()
        outside = [line for line in lines if not line.startswith("    ")]  # what is indented is code
        assert not any("<script" in line or "<b>" in line for line in outside)
        assert any("&lt;script>alert(1)&lt;" in line for line in outside)
        heads = [line for line in lines if line.startswith("| fold | patients")]
        row = lines[lines.index(heads[0]) + 2]
        assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"\|", heads[0]))


def test_colour_blind_readers_tell_the_first_five_folds_apart():
    """Differences in CIELAB as seen without green or red cones (Machado et al. 2009, severity 1)."""
    kinds = {
        "usual": np.eye(3),
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    }
    colours = np.array([mpl.colors.to_rgb(colour) for colour in FOLD_COLOURS[:5]])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for matrix in kinds.values():
        seen = np.clip(linear @ np.transpose(matrix), 0, 1)
        encoded = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
        lab = cv2.cvtColor(encoded[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0]
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(5)
        assert apart.min() > 25


def test_choosing_the_best_epoch_is_priced(finished):
    assert "very patients" not in write_report(finished, evaluate_run(finished), reporter=quiet()).read_text(
        "utf-8"
    )
    settings = finished.settings.read_text("utf-8")
    finished.settings.write_text(settings.replace('select = "last"', 'select = "best"'), "utf-8")
    for fold, values in {0: [0.5, 0.9, 0.6], 1: [0.4, 0.5, 0.5]}.items():
        history = pd.read_csv(finished.fold(fold).history).assign(val_auc=values)
        write_csv(finished.fold(fold).history, history)
    page = write_report(finished, evaluate_run(finished), reporter=quiet()).read_text("utf-8")
    assert "0.700 on average, against 0.550 at the last epoch" in page


def test_where_exams_are_told_apart_the_report_counts_exams(tmp_path):
    """Thirty women with two exams each; without ids the same page speaks of women."""
    oof = make_oof(num_patients=60, num_folds=1, num_cancers=3)
    number = oof["patient_id"].astype(int)
    oof = oof.assign(
        patient_id=(number % 30).astype(str), fold=number % 3, exam_id=(number // 30 + 2020).astype(str)
    )
    texts = {}
    for name, table in {"exams": oof, "women": to_women(oof)}.items():
        run = write_run(tmp_path / name, table)
        evaluation = evaluate_run(run)
        write_report(run, evaluation, reporter=quiet())
        texts[name] = f"{Page(run.report.read_text()).text} {run.report_text.read_text()}".replace(
            "\u00a0", " "
        )
    for sentence in (
        "of these 60 exams are",
        "An exam is recalled if one of its breasts is",
        "An exam is recalled if the woman is invited",
        ", exam 202",
        "| group | patient | exam | side |",
        "per exam",
        "30 patients, 120 breasts",
    ):
        assert sentence in texts["exams"], sentence
    assert "exam" not in re.sub("invited for further examination", "", texts["women"])
    assert "of these 60 women are" in texts["women"]


def to_women(oof):
    """Makes a woman of each exam."""
    return oof.assign(patient_id=oof["patient_id"] + "x" + oof["exam_id"]).drop(columns="exam_id")
