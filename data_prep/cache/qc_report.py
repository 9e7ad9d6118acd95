"""`qc.html`, the page that shows which images of a cache deserve a look.

The same cache gives the same bytes, wherever it lies.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from data_prep.cache.folder import Cache
from data_prep.cache.images import read_image
from data_prep.cache.tables import select_prepared
from data_prep.errors import UserError
from data_prep.imageio.frame import Image
from data_prep.preprocessing.quality_checks import NOTES, WARNINGS
from data_prep.storage.atomic import write_text

THUMBNAIL_SIDE_PX = 160
JPEG_QUALITY = 75  # percent
SHOWN_PER_WARNING = 12
MOST_SHOWN = 150  # of the images that deserve a look, so that the page stays small where many warnings occur
SHOWN_OF_THE_REST = 24
SHOWN_FAILURES = 50
SAMPLE_SEED = 0  # draws the images that are shown


@dataclass(frozen=True)
class QcImage:
    """One image on the page.

    Attributes:
        file: the user's own name for it; empty where the ids tell it.
        address: a data URI of its thumbnail; None where its PNG is missing or damaged.
    """

    patient_id: str
    image_id: str
    file: str
    warnings: list[str]
    address: str | None


@dataclass(frozen=True)
class WarningCount:
    """How many prepared images have a warning.

    Attributes:
        is_note: whether it alone calls for no look.
    """

    code: str
    sentence: str
    count: int
    is_note: bool


def write_qc_report(cache: Cache) -> Path:
    """Writes `qc.html` into a finished cache and returns its path; reads the tables and the PNGs shown.

    Raises:
        UserError: if the cache is not finished, or the page cannot be written.
    """
    manifest = cache.read_manifest()
    failures = cache.read_failures()
    prepared = select_prepared(manifest)
    codes = prepared["warnings"].str.split()
    is_unusual = codes.map(lambda of_image: bool(set(of_image) - NOTES)).astype(bool)
    environment = Environment(
        loader=PackageLoader("data_prep.cache", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("qc.html.j2").render(
        settings=cache.settings(),
        num_images=len(manifest),
        num_prepared=len(prepared),
        num_unusual=int(is_unusual.sum()),
        warnings=_count_warnings(codes),
        unusual=_draw_pictures(cache, _choose_unusual(prepared[is_unusual])),
        most_per_warning=SHOWN_PER_WARNING,
        rest=_draw_pictures(cache, _sample(prepared[~is_unusual], SHOWN_OF_THE_REST).sort_index()),
        reasons=failures["reason"].value_counts().sort_index().to_dict(),
        failures=failures.head(SHOWN_FAILURES).to_dict("records"),
        num_failed=len(failures),
    )
    write_text(cache.qc_path, page)
    return cache.qc_path


def _count_warnings(codes: "pd.Series[Any]") -> list[WarningCount]:
    """Returns the warnings that occur, in the order of `WARNINGS`, those of another version last."""
    counts = codes.explode().dropna().value_counts()
    known = [*(code for code in WARNINGS if code in counts), *sorted(set(counts.index) - set(WARNINGS))]
    return [WarningCount(code, WARNINGS.get(code, ""), int(counts[code]), code in NOTES) for code in known]


def _choose_unusual(images: pd.DataFrame) -> pd.DataFrame:
    """Takes some images of each warning, each image once; the rarest warnings come first."""
    places = images["warnings"].str.split().explode().dropna()
    counts = places[~places.isin(NOTES)].value_counts()
    most = min(SHOWN_PER_WARNING, MOST_SHOWN // max(1, len(counts)))
    chosen: list[Any] = []
    for code in sorted(counts.index, key=lambda code: (counts[code], code)):
        with_code = images.loc[places.index[places == code]]
        shown = with_code.index.isin(chosen).sum()  # beside a rarer warning
        chosen += (
            _sample(with_code.drop(chosen, errors="ignore"), max(0, most - shown)).sort_index().index.tolist()
        )
    return images.loc[chosen]


def _sample(images: pd.DataFrame, count: int) -> pd.DataFrame:
    """Takes some rows at random, always the same ones."""
    return images.sample(min(count, len(images)), random_state=SAMPLE_SEED)


def _draw_pictures(cache: Cache, images: pd.DataFrame) -> list[QcImage]:
    columns = [images[name] for name in ("patient_id", "image_id", "file", "warnings")]
    return [
        QcImage(
            patient_id,
            image_id,
            "" if f"/{patient_id}/{image_id}." in file else file,  # the ids tell where it lies
            warnings.split(),
            _read_thumbnail(cache.image_path(patient_id, image_id)),
        )
        for patient_id, image_id, file, warnings in zip(*columns, strict=True)
    ]


def _read_thumbnail(path: Path) -> str | None:
    try:
        thumbnail = make_thumbnail(read_image(path))
    except UserError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(thumbnail).decode()}"


def make_thumbnail(image: Image) -> bytes:
    """Returns a small JPEG of an image of 8 or 16 bits."""
    scale = min(1.0, THUMBNAIL_SIDE_PX / max(image.shape))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    grey = np.rint(small * (255 / np.iinfo(image.dtype).max)).astype(np.uint8)
    encoded, payload = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert encoded, "OpenCV encodes every image of 8 bits"
    return payload.tobytes()
