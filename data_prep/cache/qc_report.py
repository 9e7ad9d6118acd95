"""`qc.html`, the page that shows which images of a cache deserve a look.

The same cache gives the same bytes, wherever it lies.
"""

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from data_prep.cache.folder import Cache
from data_prep.cache.images import read_image
from data_prep.cache.tables import select_prepared
from data_prep.errors import UserError
from data_prep.imageio.frame import Image
from data_prep.preprocessing.quality_checks import WARNINGS
from data_prep.storage.atomic import write_text

THUMBNAIL_SIDE_PX = 160
JPEG_QUALITY = 75  # percent
SHOWN_PER_WARNING = 12
SHOWN_OF_ALL_WARNINGS = 150  # so that the page stays small where many kinds occur
SHOWN_OF_THE_REST = 24
SHOWN_FAILURES = 50
SAMPLE_SEED = 0  # draws the images that are shown


@dataclass(frozen=True)
class QcImage:
    """One image on the page.

    Attributes:
        address: a data URI of its thumbnail; None where its PNG is missing or damaged.
    """

    patient_id: str
    image_id: str
    warnings: list[str]
    address: str | None


@dataclass(frozen=True)
class WarningGroup:
    """The images that have one warning, and a few of them to look at."""

    code: str
    sentence: str
    count: int
    pictures: list[QcImage]


def write_qc_report(cache: Cache) -> Path:
    """Writes `qc.html` into a finished cache and returns its path; reads the tables and the PNGs shown.

    Raises:
        UserError: if the cache is not finished, or the page cannot be written.
    """
    manifest = cache.read_manifest()
    failures = cache.read_failures()
    prepared = select_prepared(manifest)
    unusual = prepared["warnings"] != ""
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
        num_unusual=int(unusual.sum()),
        groups=_group_by_warning(cache, prepared),
        rest=_draw_pictures(cache, prepared[~unusual], SHOWN_OF_THE_REST),
        reasons=failures["reason"].value_counts().sort_index().to_dict(),
        failures=failures.head(SHOWN_FAILURES).to_dict("records"),
        num_failed=len(failures),
    )
    write_text(cache.qc_path, page)
    return cache.qc_path


def _group_by_warning(cache: Cache, prepared: pd.DataFrame) -> list[WarningGroup]:
    """Returns a group for each warning that occurs; an image with several is in several."""
    places = prepared["warnings"].str.split().explode().dropna()
    found = set(places)
    codes = [*(code for code in WARNINGS if code in found), *sorted(found - set(WARNINGS))]
    count = min(SHOWN_PER_WARNING, SHOWN_OF_ALL_WARNINGS // max(1, len(codes)))
    groups = []
    for code in codes:
        concerned = prepared.loc[places.index[places == code]]
        pictures = _draw_pictures(cache, concerned, count)
        groups.append(WarningGroup(code, WARNINGS.get(code, ""), len(concerned), pictures))
    return groups


def _draw_pictures(cache: Cache, images: pd.DataFrame, count: int) -> list[QcImage]:
    """Takes some rows at random, always the same ones, and keeps their order."""
    drawn = images.sample(min(count, len(images)), random_state=SAMPLE_SEED).sort_index()
    return [
        QcImage(
            patient_id, image_id, warnings.split(), _read_thumbnail(cache.image_path(patient_id, image_id))
        )
        for patient_id, image_id, warnings in drawn[["patient_id", "image_id", "warnings"]].itertuples(
            index=False
        )
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
