"""How bright the prepared pictures of a cache are."""

import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.cache.images import open_images
from data_prep.cache.tables import select_prepared
from data_prep.errors import UserError
from data_prep.preprocessing.placement import Placement
from data_prep.preprocessing.quality_checks import measure_brightness
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.settings import differences
from pipeline.evaluation.external.shift import TONES
from pipeline.runs.records import find_cache
from pipeline.runs.run_folder import Run

MOST_MEASURED = 500
"""Pictures of a cache whose brightness is measured: those with the lowest checksums, which is a fair draw."""


def measure_cache_tones(cache: Cache, image_ids: "pd.Series[str]") -> pd.DataFrame:
    """Returns the columns of `TONES` for some images of a cache; brightness of no more than `MOST_MEASURED`.

    Raises:
        UserError: if the cache is not finished or damaged, or an image cannot be read.
    """
    manifest = select_prepared(cache.read_manifest())
    chosen = manifest[manifest["image_id"].isin(image_ids)].sort_values("image_sha256", ignore_index=True)
    measured = chosen.head(MOST_MEASURED)
    images, brightness = open_images(cache, measured), []
    for row, record in enumerate(measured.to_dict("records")):
        placement = Placement.from_record({str(name): value for name, value in record.items()})
        brightness.append(measure_brightness(placement.cut(images[row])))
    return chosen.assign(brightness=pd.Series(brightness, dtype=float))[["image_id", *TONES]]


def measure_own_tones(run: Run, settings: PrepareSettings, image_ids: "pd.Series[str]") -> pd.DataFrame:
    """Returns the same of the run's own pictures; no row where its cache is gone or another one."""
    try:
        cache = find_cache(run)
        if differences(cache.settings().prepare, settings):
            return pd.DataFrame(columns=["image_id", *TONES])
        return measure_cache_tones(cache, image_ids)
    except UserError:
        return pd.DataFrame(columns=["image_id", *TONES])
