"""Prepared images as they get ready, over many processes, without a cache."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from data_prep.errors import ImageError
from data_prep.imageio.frame import Image
from data_prep.imageio.raster import encode_png
from data_prep.parallel.executor import Executor, map_unordered
from data_prep.preprocessing.placement import Placement
from data_prep.preprocessing.preprocess import ManifestRow, Stages, try_preprocess
from data_prep.preprocessing.quality_checks import measure_brightness
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.storage.places import ImagePath

Taken = TypeVar("Taken")


class PreparedImage(NamedTuple):
    """An image, and what a cache's manifest would say of it, with the breast's `brightness`."""

    image: Image
    record: ManifestRow


def take_image(stages: Stages) -> Image:
    """Returns the square alone."""
    return stages.image


def take_with_record(stages: Stages) -> PreparedImage:
    """Returns the square with its record, both checksums and the brightness."""
    shown = Placement.from_record(stages.record).cut(stages.image)
    more = {
        "source_sha256": stages.source.sha256(),
        "image_sha256": hashlib.sha256(encode_png(stages.image)).hexdigest(),
        "brightness": measure_brightness(shown),
    }
    return PreparedImage(stages.image, stages.record | more)


def stream_images(
    paths: Sequence[ImagePath],
    settings: PrepareSettings,
    *,
    workers: int,
    ahead: int = 0,
    executor: Executor = map_unordered,
    take: Callable[[Stages], Taken] = take_image,  # type: ignore[assignment]
) -> Iterator[tuple[int, Taken | ImageError]]:
    """Yields (index in `paths`, image or what is wrong with it) as they get ready.

    Not in order: while one file hangs, those behind it would fill the memory. `ahead` is as `map_unordered`
    takes it, which `executor` may replace; `take` says what is wanted of an image, in the worker.
    """
    prepare_at = partial(_prepare_at, settings, take)
    workers = min(workers, len(paths))
    for outcome in executor(prepare_at, enumerate(paths), workers=workers, ahead=ahead):
        lost = ImageError(outcome.reason, outcome.message)
        yield outcome.item[0], lost if outcome.result is None else outcome.result


def _prepare_at(
    settings: PrepareSettings, take: Callable[[Stages], Taken], numbered_path: tuple[int, ImagePath]
) -> Taken | ImageError:
    stages = try_preprocess(numbered_path[1], settings)
    return stages if isinstance(stages, ImageError) else take(stages)
