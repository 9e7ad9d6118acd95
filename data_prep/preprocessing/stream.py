"""Prepared images as they get ready, over many processes, without a cache."""

from collections.abc import Iterator, Sequence
from functools import partial

from data_prep.errors import ImageError
from data_prep.imageio.frame import Image
from data_prep.parallel.executor import Executor, map_unordered
from data_prep.preprocessing.preprocess import try_preprocess
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.storage.places import ImagePath


def stream_images(
    paths: Sequence[ImagePath],
    settings: PrepareSettings,
    *,
    workers: int,
    ahead: int = 0,
    executor: Executor = map_unordered,
) -> Iterator[tuple[int, Image | ImageError]]:
    """Yields (index in `paths`, image or what is wrong with it) as they get ready.

    Not in order: while one file hangs, those behind it would fill the memory. `ahead` is as `map_unordered`
    takes it, which `executor` may replace.
    """
    prepare_at = partial(_prepare_at, settings)
    workers = min(workers, len(paths))
    for outcome in executor(prepare_at, enumerate(paths), workers=workers, ahead=ahead):
        lost = ImageError(outcome.reason, outcome.message)
        yield outcome.item[0], lost if outcome.result is None else outcome.result


def _prepare_at(settings: PrepareSettings, numbered_path: tuple[int, ImagePath]) -> Image | ImageError:
    stages = try_preprocess(numbered_path[1], settings)
    return stages if isinstance(stages, ImageError) else stages.image
