"""Hostile files: each ends as an image or a row in `failures.csv`, never as a crash or half an image."""

import errno
import io
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.cache.build import build_cache
from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.tables import FAILED, PREPARED
from data_prep.cache.verify import verify
from data_prep.errors import ImageError
from data_prep.imageio import codecs
from data_prep.preprocessing.settings import CodecSettings, PrepareSettings
from data_prep.rsna.exam_table import read_exams, require_images
from data_prep.storage import byte_source
from data_prep.storage.files import open_input
from tests.data_prep.data_folder import find_image
from tests.data_prep.dicom_files import make_breast, write_dicom
from tests.data_prep.reading import prepare_image

SETTINGS = PrepareSettings(side=32)
SYNTAXES = [
    codecs.IMPLICIT_VR_LITTLE_ENDIAN,
    codecs.EXPLICIT_VR_LITTLE_ENDIAN,
    codecs.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    codecs.RLE_LOSSLESS,
    codecs.JPEG_LOSSLESS_SV1,
    codecs.JPEG_2000_LOSSLESS,
    codecs.HTJ2K_LOSSLESS,
]
HEADER_BYTES = 900  # more than the header of the files below


@cache
def make_file(folder: Path, syntax: str) -> bytes:
    """A sound file with what headers may hold."""
    elements = {
        "BitsStored": 12,
        "WindowCenter": [2048, 100],
        "WindowWidth": [4096, 50],
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
        "PixelPaddingValue": 0,
        "PresentationLUTShape": "IDENTITY",
        "PatientName": "Weiherer^Annegret",
    }
    return write_dicom(
        folder / "sound.dcm", make_breast(180, 120), transfer_syntax=syntax, **elements
    ).read_bytes()


def outcome(path: Path, content: bytes) -> np.ndarray | str:
    """The image, or the reason code; what else comes is raised and fails the test."""
    path.write_bytes(content)
    try:
        image, record = prepare_image(path, SETTINGS)
    except ImageError as error:
        told, result = str(error), error.reason
    else:
        assert image.shape == (32, 32)
        told, result = str(record), image
    assert "Weiherer" not in told
    return result


changes = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(132, 60_000), st.integers(1, 255)),
        st.tuples(st.just("flip"), st.integers(132, HEADER_BYTES), st.integers(1, 255)),
        st.tuples(st.just("drop"), st.integers(132, 60_000), st.integers(1, 40)),
        st.tuples(st.just("repeat"), st.integers(132, 60_000), st.integers(1, 40)),
    ),
    min_size=1,
    max_size=4,
)


def change(content: bytes, kind: str, place: int, amount: int) -> bytes:
    place %= len(content)
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ amount]) + content[place + 1 :]
    if kind == "drop":
        return content[:place] + content[place + amount :]
    return content[:place] + content[place : place + amount] + content[place:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("syntax", SYNTAXES)
@given(mutations=changes)
@settings(
    derandomize=True,
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_changed_file_is_an_image_or_an_image_error(
    tmp_path: Path, syntax: str, mutations: list[tuple[str, int, int]]
) -> None:
    content = make_file(tmp_path, syntax)
    for kind, place, amount in mutations:
        content = change(content, kind, place, amount)
    outcome(tmp_path / "a.dcm", content)


@pytest.mark.filterwarnings("ignore")
def test_a_value_that_runs_into_the_patients_name_is_not_told(tmp_path: Path) -> None:
    """A length that a flipped bit made larger swallows the elements behind it."""
    content = make_file(tmp_path, codecs.JPEG_2000_LOSSLESS)
    for place in range(132, HEADER_BYTES):
        for bit in (5, 6):
            outcome(tmp_path / "a.dcm", change(content, "flip", place, 1 << bit))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("syntax", SYNTAXES)
@given(part=st.floats(0, 1, exclude_max=True))
@settings(
    derandomize=True,
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_cut_file_is_refused_or_lost_nothing(tmp_path: Path, syntax: str, part: float) -> None:
    """Only the delimiter behind the last fragment can be missed without harm."""
    content = make_file(tmp_path, syntax)
    whole = outcome(tmp_path / "a.dcm", content)
    cut = outcome(tmp_path / "a.dcm", content[: int(part * len(content))])
    assert isinstance(cut, str) or np.array_equal(cut, whole)
    if part < 0.98:
        assert isinstance(cut, str)


class StaleFile(io.FileIO):
    """A file on network storage that is replaced there once its first bytes were read."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return super().read(2000)


@pytest.mark.parametrize("read", ["whole", "prefix"])
def test_a_network_file_that_goes_stale_while_it_is_read_costs_itself_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Literal["whole", "prefix"]
) -> None:
    located = require_images(read_exams(data, "train"), data, "train")
    stale = find_image(data, "97")

    def reopen(path: Path) -> Any:
        return StaleFile(path) if path == stale else open_input(path)

    monkeypatch.setattr(byte_source, "open_input", reopen)
    codec_settings = CodecSettings(read=read)
    made_by = CacheSettings(split="train", prepare=PrepareSettings(side=32, codecs=codec_settings))
    store = Cache(tmp_path / "cache")
    summary = build_cache(located.exams, located.paths, store, made_by, workers=0)
    assert summary.failures == {"io_error": 1}
    assert summary.num_prepared == len(located.exams) - 1
    (failure,) = pd.read_csv(store.failures_path).to_dict("records")
    assert failure["image_id"] == 97
    assert failure["message"] == "the file cannot be read: Stale file handle"


def test_every_odd_real_file_is_an_image_or_a_row(real_data: Path, tmp_path: Path) -> None:
    """The whole collection goes through two workers; the cache that it leaves is sound."""
    folders = ["tricky_dicom", "malformed_dicom", "other_mg_dicom", "codec_wg04"]
    files = sorted(path for name in folders for path in (real_data / name).rglob("*") if path.is_file())
    folder = tmp_path / "data/train_images/1"
    folder.mkdir(parents=True)
    for number, path in enumerate(files):
        shutil.copyfile(path, folder / f"{number}.dcm")
    rows = [{"patient_id": 1, "image_id": n, "laterality": "L", "cancer": 0} for n in range(len(files))]
    pd.DataFrame(rows).to_csv(tmp_path / "data/train.csv", index=False)
    located = require_images(read_exams(tmp_path / "data", "train"), tmp_path / "data", "train")
    cache = Cache(tmp_path / "cache")
    cache_settings = CacheSettings(split="train", prepare=SETTINGS)
    summary = build_cache(located.exams, located.paths, cache, cache_settings, workers=2)
    counts = cache.read_manifest()["status"].value_counts()
    assert counts[FAILED] == summary.num_failed > 10
    assert counts[PREPARED] == summary.num_prepared > 30
    assert set(summary.failures).isdisjoint({"crashed", "timeout", "killed", "error"})
    assert verify(cache, tmp_path / "data", workers=0, on_image=lambda _: None).problems == []
