"""The report: self-contained, complete, honest where something is missing, and fit for a browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from pipeline import figures
from pipeline.evaluate import evaluate_run
from pipeline.report import describe_auc, describe_pf1, explain_undefined, write_report
from tests.pipeline.synthetic_run import make_history, make_oof, write_run

VOID_TAGS = {"meta", "link", "br", "img"}


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
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def note(self, attributes):
        self.ids += [value for name, value in attributes.items() if name == "id"]
        self.addresses += [
            value for name, value in attributes.items() if name in {"href", "src", "xlink:href"}
        ]


def write_page(tmp_path, *, name="night run", **options):
    run = write_run(tmp_path / name, make_oof(**options))
    return write_report(run, evaluate_run(run)).read_text("utf-8")


def test_the_page_is_self_contained_and_well_formed(tmp_path):
    """No script, no address but those inside the page, no id twice, under 3 MB."""
    text = write_page(tmp_path)
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.addresses
    assert all(address.removeprefix("#") in page.ids for address in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    assert all(name in page.ids for name in re.findall(r"url\(#([^)]+)\)", text))
    assert len(text.encode()) < 3_000_000


def test_the_page_says_what_a_reader_needs(tmp_path):
    page = Page(write_page(tmp_path))
    for expected in (
        "night run",
        "60 patients, 120 breasts (15 with cancer), 240 images, 3 folds",
        "Only 15 breasts with cancer",
        "Here 12.5 % of the breasts have it, and answering 1 for every breast scores 0.222",
        "Not a medical device",
        "2,000 bootstrap replicates, drawn by patient",
        "embed_dim = 64",
        "packages.torch 2.13.0",
    ):
        assert expected in page.text.replace("\u00a0", " ")


def test_five_curves_with_alternative_texts_and_a_line_per_fold(tmp_path):
    text = write_page(tmp_path)
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        assert re.match(r'<svg role="img" aria-label="[^"]{20,}"', drawing)
        assert all(f">fold {fold}</text>" in drawing for fold in range(3))
        assert figures.INK not in drawing
    assert [drawing.count(">pooled</text>") for drawing in drawings] == [1, 1, 1, 0, 0]


def test_the_same_run_gives_the_same_bytes(tmp_path):
    first = write_page(tmp_path / "first")
    assert write_page(tmp_path / "second") == first


def test_names_and_settings_are_escaped(tmp_path):
    run = write_run(tmp_path / "<script>alert(1)<", make_oof())
    run.settings.write_text('note = "</pre><script>alert(2)</script>"')
    run.environment.write_text('{"device": "<img src=x>"}')
    page = Page(write_report(run, evaluate_run(run)).read_text("utf-8"))
    assert not {"script", "img"} & set(page.tags)
    assert "<script>alert(1)<" in page.text
    assert "<img src=x>" in page.text


def test_what_was_not_recorded_is_said(tmp_path):
    run = write_run(tmp_path / "run", make_oof())
    for path in (run.settings, run.environment, *(run.fold(fold).history for fold in range(3))):
        path.unlink()
    page = Page(write_report(run, evaluate_run(run)).read_text("utf-8"))
    for name in ("settings.toml", "environment.json", "history.csv"):
        assert re.search(rf"Not recorded: [a-z ]+ {name}", page.text)


def test_a_fold_without_cancer_is_explained_and_leaves_no_curve(tmp_path):
    oof = make_oof()
    oof.loc[oof["fold"] == 1, "cancer"] = 0
    run = write_run(tmp_path / "run", oof)
    evaluation = evaluate_run(run)
    (sentence,) = explain_undefined(evaluation)
    assert sentence.startswith("Fold 1: there is no breast with cancer, so there is no pF1")
    page = write_report(run, evaluation).read_text("utf-8")
    assert sentence in page
    roc = re.search(r"<svg.*?</svg>", page, re.DOTALL)[0]
    assert ">fold 0</text>" in roc
    assert ">fold 1</text>" not in roc


def test_a_run_without_cancer_has_a_report_without_curves(tmp_path):
    page = Page(write_page(tmp_path, num_cancers=0))
    assert "There are no curves" in page.text
    assert "The AUC is undefined: there is no breast with cancer." in page.text
    assert "pF1 is undefined: there is no breast with cancer." in page.text


@pytest.mark.parametrize(
    ("skill", "verdict"),
    [(2.0, "; a coin would in"), (0.0, "which cannot be told from a coin"), (-2.0, "worse than a coin")],
)
def test_the_headline_says_whether_the_model_beats_a_coin(tmp_path, skill, verdict):
    evaluation = evaluate_run(write_run(tmp_path / "run", make_oof(skill=skill)))
    assert verdict in describe_auc(evaluation)
    assert "calling back every breast would give 0.222" in describe_pf1(evaluation)


def test_gaps_in_a_history_are_drawn_as_gaps():
    """A fold whose validation AUC is undefined in an epoch, and a history of one epoch."""
    history = make_history(6)
    history.loc[2, "val_auc"] = None
    drawing = figures.draw_validation_auc({0: history, 1: make_history(1)})
    assert "nan" not in drawing
    assert ">fold 1</text>" in drawing


@pytest.mark.slow
def test_a_browser_opens_the_page_and_shows_every_curve(tmp_path):
    """Headless Chromium lays out the page without complaint and without a sideways scroll bar."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    run = write_run(tmp_path / "run", make_oof())
    report = write_report(run, evaluate_run(run))
    probe = (
        "<script>addEventListener('load', () => { const shown = [...document.querySelectorAll('svg')]"
        ".filter(svg => svg.getBoundingClientRect().height > 100).length;"
        "const page = document.documentElement; const fits = page.scrollWidth <= page.clientWidth;"
        "document.title = `curves ${shown} fits ${fits}`; })</script></body>"
    )
    report.write_text(report.read_text("utf-8").replace("</body>", probe), "utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    command = [chromium, *options, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900"]
    opened = subprocess.run(
        [*command, "--dump-dom", "--enable-logging=stderr", report.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>curves 5 fits true</title>" in opened.stdout
    assert "CONSOLE" not in opened.stderr
