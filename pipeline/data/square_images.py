"""Photographs of any size and format, read as squares."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from data_prep.errors import UserError
from data_prep.imageio.frame import Image
from data_prep.parallel.resource_limits import count_cores
from data_prep.storage.files import open_input
from pipeline.runtime.progress import Reporter
from pipeline.runtime.signals import StopRequest

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
"""By content; Pillow knows others, some of which run programs."""
MOST_PIXELS = 2**26
MOST_NAMED = 5  # of the images that cannot be read
WHITE = (255, 255, 255, 255)
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class SquareImages:
    """Images of any size, read as squares of one size and number of channels."""

    paths: Sequence[Path]
    side: int
    channels: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int, /) -> Image:
        return read_square(self.paths[row], side=self.side, channels=self.channels)

    def find_unreadable(self) -> Iterator[Path | None]:
        """Reads all images, several at a time; yields None for each, or its path if it cannot be read."""
        Pillow.init()  # else a format that one thread is loading would be unknown to the others
        pool = ThreadPoolExecutor(count_cores())
        try:
            yield from pool.map(self._path_if_unreadable, range(len(self)))
        finally:
            pool.shutdown(cancel_futures=True)

    def _path_if_unreadable(self, row: int) -> Path | None:
        try:
            self[row]
        except UserError:
            return self.paths[row]
        return None


def require_readable(images: SquareImages, folder: Path, stop: StopRequest, reporter: Reporter) -> None:
    """Reads every image of a folder once, so that all broken ones are known before a training.

    Raises:
        UserError: naming some that cannot be read.
        Interrupted: after a signal.
    """
    broken: list[str] = []
    with reporter.track("reading every image once", len(images)) as advance:
        for path in images.find_unreadable():
            stop.raise_if_made()
            broken += [path.relative_to(folder).as_posix()] if path else []
            advance(note=f"{len(broken)} broken" if broken else "")
    if broken:
        more = f" and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
        raise UserError(
            f"{len(broken)} of the {len(images)} images in {folder} cannot be read: "
            f"{', '.join(broken[:MOST_NAMED])}{more}; replace them, or remove them and their lines in any "
            "list, and run the same command again"
        )


def read_square(path: Path, *, side: int, channels: int) -> Image:
    """Reads the central square of an image, [side, side, 3], or [side, side] for one channel; 0..255.

    The camera's orientation is applied, and what is transparent becomes white. The shorter side is scaled to
    `side` with a filter that averages (bicubic), whatever the file's size.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        with open_input(path) as stream, Pillow.open(stream, formats=FORMATS) as file:
            _require_few_pixels(path, *file.size)
            file.draft(None, (2 * side, 2 * side))  # a large JPEG is decoded at a half, quarter or eighth
            picture = _to_colours(ImageOps.exif_transpose(file)).convert(MODES[channels])
    except UserError:
        raise
    except Exception as error:  # Pillow names no set of errors for damaged files
        raise UserError(
            f"{path} cannot be read as an image ({type(error).__name__}): remove it, and its line in any list"
        ) from error
    shorter = min(picture.size)
    left, top = (picture.width - shorter) / 2, (picture.height - shorter) / 2
    square = picture.resize(
        (side, side), Pillow.Resampling.BICUBIC, box=(left, top, left + shorter, top + shorter)
    )
    return np.array(square)


def _require_few_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise UserError(
            f"{path} has {width} x {height} pixels, and at most {MOST_PIXELS:,} are read: make it smaller"
        )


def _to_colours(picture: Pillow.Image) -> Pillow.Image:
    """Returns 8 bits per channel and no transparency, whatever the file's mode."""
    if picture.mode.startswith("I"):  # a PNG of 16 bits; Pillow itself would cut at 255
        return Pillow.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        with_alpha = picture.convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", picture.size, WHITE), with_alpha).convert("RGB")
    return picture.convert("RGB")
