"""The contact sheet: its counts and pictures, its bytes, and what a browser makes of it."""

import base64
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.images import write_image
from data_prep.cache.qc_report import make_thumbnail, write_qc_report
from data_prep.errors import UserError
from data_prep.preprocessing.quality_checks import WARNINGS
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.settings import dump_settings
from tests.browser import open_page

Records = dict[str, dict[str, Any]]


def make_records(warnings: list[str], failures: list[tuple[str, str]] = ()) -> Records:  # type: ignore[assignment]
    """One prepared image per entry of `warnings`, then one failed image per reason and message."""
    rows: list[dict[str, Any]] = [{"warnings": codes} for codes in warnings]
    rows += [{"reason": reason, "message": message} for reason, message in failures]
    return {
        str(100 + i): {"patient_id": str(10 + i // 2), "image_id": str(100 + i), **row}
        for i, row in enumerate(rows)
    }


def write_cache(folder: Path, records: Records, *, dtype: type = np.uint8, side: int = 48) -> Cache:
    """Writes a cache of grey ramps that tells these outcomes."""
    cache = Cache(folder)
    prepare = PrepareSettings(side=side, bit_depth=8 * np.dtype(dtype).itemsize)  # type: ignore[arg-type]
    cache.open_for(CacheSettings(split="test", prepare=prepare))
    ramp = np.linspace(0, np.iinfo(dtype).max, side).astype(dtype)
    for record in records.values():
        if "reason" not in record:
            path = cache.image_path(record["patient_id"], record["image_id"])
            write_image(path, np.tile(ramp, (side, 1)))
    cache.write_tables(records)
    ids = pd.DataFrame(list(records.values()))[["patient_id", "image_id"]]
    cache.write_exams(ids.assign(laterality="L", prediction_id=ids["patient_id"] + "_L"))
    return cache


class Page(HTMLParser):
    """Collects words, tags, and per section its figures: a picture's attributes and caption."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.section = ""
        self.figures: dict[str, list[dict[str, str]]] = {}
        self.feed(text)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        attributes = {name: value or "" for name, value in attrs}
        if tag == "section":
            self.section = attributes.get("id", "")
        if tag == "figure":
            self.figures.setdefault(self.section, []).append({"caption": ""})
        if tag == "img":
            self.figures[self.section][-1] |= attributes

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if "figure" in self.tags and self.section in self.figures:
            self.figures[self.section][-1]["caption"] += f" {data.strip()}"


def read_page(cache: Cache) -> Page:
    return Page(write_qc_report(cache).read_text("utf-8"))


def test_the_headline_counts_images_failures_by_reason_and_what_deserves_a_look(tmp_path: Path) -> None:
    failures = [("truncated", "cut off"), ("not_dicom", "text"), ("truncated", "cut off")]
    records = make_records(["", "small_box", "small_box saturated", "", ""], failures)
    text = write_qc_report(write_cache(tmp_path, records)).read_text("utf-8")
    assert "1&nbsp;not_dicom, 2&nbsp;truncated" in text, "a count stays on the line of its reason"
    text = Page(text).text.replace("\xa0", " ")
    for expected in (
        "Images 8 ",
        "Prepared 5 62.5 %",
        "Failed 3 1 not_dicom, 2 truncated",
        "Deserve a look 2 40.0 % of the prepared",
    ):
        assert expected in text


def test_a_picture_stands_once_with_all_of_its_warnings_the_rarest_first(tmp_path: Path) -> None:
    page = read_page(write_cache(tmp_path, make_records(["", "small_box", "small_box saturated"])))
    first, second = page.figures["unusual"]
    assert first["alt"] == "Image 102 of patient 11: small_box, saturated"
    assert first["caption"].split() == ["patient", "11", "image", "102", "small_box", "saturated"]
    assert second["caption"].split() == ["patient", "10", "image", "101", "small_box"]
    assert f"small_box {WARNINGS['small_box']} 2 " in page.text
    assert f"saturated {WARNINGS['saturated']} 1 " in page.text
    assert [len(figures) for figures in page.figures.values()] == [2, 1]


def test_common_notes_do_not_drown_the_images_that_deserve_a_look(tmp_path: Path) -> None:
    warnings = ["no_window low_range"] * 58 + ["no_window not_mammography", "no_window low_contrast"]
    page = read_page(write_cache(tmp_path, make_records(warnings)))
    assert "Deserve a look 2 3.3" in page.text
    assert [figure["alt"].partition(": ")[2] for figure in page.figures["unusual"]] == [
        "no_window, low_contrast",
        "no_window, not_mammography",
    ]
    assert len(page.figures["others"]) == 24
    assert f"no_window note {WARNINGS['no_window']} 60 " in page.text
    assert "58 images have no warning, or notes alone; 24 of them are shown" in page.text


def test_every_image_is_shown_or_counted(tmp_path: Path) -> None:
    page = read_page(write_cache(tmp_path, make_records(["low_contrast"] * 30 + [""] * 40)))
    assert len(page.figures["unusual"]) == 12
    assert len(page.figures["others"]) == 24
    assert "Of 30 images, 12 are shown, drawn at random: up to 12 of each warning." in page.text
    assert "40 images have no warning, or notes alone; 24 of them are shown, drawn at random" in page.text


def test_no_image_is_shown_twice_and_a_rare_warning_never_left_out(tmp_path: Path) -> None:
    codes = sorted(WARNINGS)
    warnings = [" ".join(codes[: 1 + number % len(codes)]) for number in range(400)]
    page = read_page(write_cache(tmp_path, make_records(warnings)))
    shown = [figure["alt"] for figure in page.figures["unusual"]]
    assert len(set(shown)) == len(shown) <= 150
    assert any(codes[-1] in alt for alt in shown)


def test_your_own_file_name_stands_at_the_picture_and_at_the_failure(tmp_path: Path) -> None:
    records = make_records(["saturated"], [("truncated", "cut off")])
    records["100"]["file"], records["101"]["file"] = "exam 1/IM<0001>", "exam 1/IM0002"
    records["102"] = {"patient_id": "11", "image_id": "102", "warnings": ""}
    records["102"]["file"] = "train_images/11/102.dcm"
    page = read_page(write_cache(tmp_path, records))
    assert "file exam 1/IM<0001> saturated" in " ".join(page.figures["unusual"][0]["caption"].split())
    assert "10 101 exam 1/IM0002 truncated cut off" in page.text
    assert page.figures["others"][0]["caption"].split() == ["patient", "11", "image", "102"]


def test_a_code_of_another_version_is_shown_without_a_sentence(tmp_path: Path) -> None:
    page = read_page(write_cache(tmp_path, make_records(["blurred small_box"])))
    assert page.text.index("small_box ") < page.text.index("blurred ")
    assert page.figures["unusual"][0]["caption"].split()[-2:] == ["blurred", "small_box"]


def test_a_cache_without_warnings_and_failures_says_so(tmp_path: Path) -> None:
    text = read_page(write_cache(tmp_path, make_records([""]))).text
    assert "No prepared image has a warning." in text
    assert "Images that deserve a look" not in text
    assert "1 image has no warning, or notes alone." in text
    assert "No file failed." in text


def test_a_cache_of_nothing_but_failures_names_the_first_fifty(tmp_path: Path) -> None:
    failures = [("truncated", f"byte {i}") for i in range(60)]
    page = read_page(write_cache(tmp_path, make_records([], failures)))
    assert "There is no image without a warning." in page.text
    assert "byte 49" in page.text
    assert "byte 50" not in page.text
    assert "The first 50 of 60; all stand in failures.csv beside this page." in page.text


def test_the_same_cache_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    first = write_cache(tmp_path / "first", make_records(["small_box", ""] * 40, [("truncated", "cut off")]))
    shutil.copytree(first.folder, tmp_path / "second")
    second = Cache(tmp_path / "second")
    page = write_qc_report(first).read_bytes()
    assert write_qc_report(second).read_bytes() == page
    assert write_qc_report(first).read_bytes() == page


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.write_bytes(b"text"),
        lambda path: path.write_bytes(path.read_bytes()[:60]),
    ],
    ids=["missing", "text", "cut off"],
)
def test_a_png_that_cannot_be_read_leaves_a_placeholder(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    cache = write_cache(tmp_path, make_records(["", ""]))
    spoil(cache.image_path("10", "100"))
    page = read_page(cache)
    lost, shown = page.figures["others"]
    assert "src" not in lost
    assert "its PNG is missing or damaged patient 10 image 100" in " ".join(lost["caption"].split())
    assert "src" in shown


def test_only_the_shown_pngs_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(tmp_path, make_records(["saturated"] * 100))
    read = []
    monkeypatch.setattr(
        "data_prep.cache.qc_report.read_image", lambda path: read.append(path) or np.zeros((8, 8), "u1")
    )
    write_qc_report(cache)
    assert len(read) == 12


def test_a_page_with_every_warning_stays_under_three_megabytes(tmp_path: Path) -> None:
    """Noise is the worst that can be asked of JPEG."""
    cache = write_cache(tmp_path, make_records([" ".join(WARNINGS)] * 12 + [""] * 24))
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    for path in cache.folder.glob("images/*/*.png"):
        write_image(path, noise)
    assert write_qc_report(cache).stat().st_size < 3_000_000


def test_an_unfinished_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(
        dump_settings(CacheSettings(split="test", prepare=PrepareSettings()))
    )
    with pytest.raises(UserError, match="not finished"):
        write_qc_report(Cache(tmp_path))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("side", [40, 512])
def test_a_thumbnail_shows_the_greys_of_the_image(dtype: type, side: int) -> None:
    ramp = np.tile(np.linspace(0, np.iinfo(dtype).max, side).astype(dtype), (side, 1))
    thumbnail = cv2.imdecode(np.frombuffer(make_thumbnail(ramp), np.uint8), cv2.IMREAD_UNCHANGED)
    shown = min(side, 160)
    assert thumbnail.shape == (shown, shown)
    expected = (np.arange(shown) + 0.5) / shown * 255
    assert np.abs(thumbnail - expected).max() < 5


def test_data_uris_hold_the_pictures(tmp_path: Path) -> None:
    """The page needs no other file and no script."""
    page = read_page(write_cache(tmp_path, make_records([""]), dtype=np.uint16))
    kind, _, payload = page.figures["others"][0]["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert cv2.imdecode(np.frombuffer(base64.b64decode(payload), np.uint8), cv2.IMREAD_UNCHANGED).max() > 250
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_a_browser_shows_every_picture_and_runs_nothing_that_is_planted(tmp_path: Path) -> None:
    """Ids, codes and messages are checked when they come in; the page is safe without that."""
    planted = (
        '"><script>window.planted = true; console.error("planted")</script><img src=x onerror="planted=1">'
    )
    cache = write_cache(
        tmp_path / "cache", make_records(["small_box", "", "saturated"], [("error", planted)])
    )
    manifest = pd.read_csv(cache.manifest_path, dtype="str", keep_default_na=False)
    manifest.loc[1, ["patient_id", "image_id"]] = [planted, planted]
    manifest.loc[2, "warnings"] = f"saturated {planted.replace(' ', '/')}"
    manifest.to_csv(cache.manifest_path, index=False)
    question = """{
        loaded: [...document.images].filter(image => image.naturalWidth > 0).length,
        square: [...document.images].filter(image => Math.abs(image.width - image.height) <= 1).length,
        lost: document.querySelectorAll(".lost").length,
        planted: "planted" in window,
        fits: document.documentElement.scrollWidth <= document.documentElement.clientWidth}"""
    for width in (500, 1200):
        opened = open_page(write_qc_report(cache), question, tmp_path, width=width)
        assert opened.answer == {"loaded": 2, "square": 2, "lost": 1, "planted": False, "fits": True}
        assert opened.console == []
