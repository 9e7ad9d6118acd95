"""One image file to its square image, stage by stage."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from data_prep.errors import ImageError
from data_prep.imageio.dicom import open_dicom
from data_prep.imageio.downsample import find_max_reduction, halve, reduce_pixels
from data_prep.imageio.frame import Box, Display, Frame, Grid, Image, ImageFile
from data_prep.imageio.raster import RASTER_SUFFIXES, RasterFile, open_raster
from data_prep.parallel.resource_limits import limit_memory
from data_prep.preprocessing.breast_segmentation import SEARCH_SIDE_PX
from data_prep.preprocessing.placement import find_level, find_support, fit_box, fit_to_square
from data_prep.preprocessing.quality_checks import (
    count_patches,
    judge_breast,
    judge_laterality,
    judge_tone,
    judge_values,
    measure_tone,
)
from data_prep.preprocessing.search import search
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.preprocessing.windowing import describe_voi, find_black, is_padding, to_display, with_voi
from data_prep.storage.byte_source import ByteSource
from data_prep.storage.places import ImagePath, RemoteFile

NUM_HALVED = 3  # levels of the frame to find the breast on that wavelets make in every encoding,
MOST_HALVED = 2**21  # or fewer where that would be of more pixels: it shall cost less than decoding

ManifestRow = dict[str, Any]
"""A row of the manifest, without ids."""


@dataclass(frozen=True)
class Stages:
    """An image on its way from the file to the square.

    Attributes:
        source: what was read of the file.
        overview: display values of the whole frame at a low resolution.
        crop: display values of the breast's box with a margin, at the level that the record says.
        image: the square.
        record: how it was made.
    """

    source: ByteSource = field(repr=False)
    overview: Display
    crop: Display
    image: Image
    record: ManifestRow


def open_image(path: ImagePath, *, whole: bool = True) -> ImageFile:
    """Opens a raster file by its suffix, anything else as DICOM.

    `whole` reads a DICOM file in one go; of one in object storage never more is read than is decoded.

    Raises:
        ImageError: if the file cannot be used.
    """
    if path.suffix.lower() in RASTER_SUFFIXES:
        return open_raster(path)
    return open_dicom(path, whole=whole and not isinstance(path, RemoteFile))


def preprocess(path: ImagePath, settings: PrepareSettings, *, laterality: str | None = None) -> Stages:
    """Returns a file's square image, what was made on the way, and the record of how.

    `laterality` is compared with the header's and the picture's; a difference is a warning in the record.

    Raises:
        ImageError: if the file cannot be used; the reason code says why. No file raises anything else.
    """
    limit_memory()
    try:
        return _preprocess(path, settings, laterality)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("too_large", "decoding it takes more memory than one image may") from error
    except Exception as error:  # whatever a hostile file brings about; its text may quote the file
        raise ImageError("error", f"the file brought about an unforeseen {type(error).__name__}") from error


def _preprocess(path: ImagePath, settings: PrepareSettings, laterality: str | None) -> Stages:
    file = open_image(path, whole=settings.codecs.read == "whole")
    coarse = read_search_frame(file)
    overview = to_display(coarse, blacken_padding=True)
    found = search(overview, coarse, laterality)
    placement = fit_box(
        found.box,
        is_flipped=found.pose.is_mirrored != found.breast.chest_wall_on_right,
        side=settings.side,
        fit=settings.fit,
        turned=found.pose.turned,
        pixel_aspect=coarse.pixel_aspect,
    )
    frame = read_level(file, find_crop_level(file, found.box, settings), coarse)
    support = find_support(placement, frame.pixels.shape, frame.grid)
    crop = to_display(
        replace(coarse, pixels=frame.pixels[support], padding=frame.padding), blacken_padding=True
    )
    origin = (support[0].start, support[1].start)
    square = fit_to_square(crop, placement, side=settings.side, grid=frame.grid, origin=origin)
    image = to_integers(square, settings.bit_depth)
    tone = measure_tone(square[placement.top : placement.top + placement.height, : placement.width])
    may_be_cropped = isinstance(file, RasterFile)
    warnings = [
        *coarse.warnings,
        *judge_values(coarse),
        *judge_breast(found, may_be_cropped=may_be_cropped),
        *judge_tone(tone),
        *judge_laterality(found, table=laterality, header=coarse.laterality),
    ]
    record = {
        **describe_frame(coarse),
        "source_bytes": file.source.size,
        "bytes_read": len(file.source.received),
        "level": frame.grid.level,
        **placement.as_record(),
        **asdict(tone),
        "patches": count_patches(image),
        "warnings": " ".join(warnings),
    }
    return Stages(file.source, overview, crop, image, record)


def try_preprocess(
    path: ImagePath, settings: PrepareSettings, laterality: str | None = None
) -> Stages | ImageError:
    """Returns what is made of a file, or what is wrong with it: no file stops the others."""
    try:
        return preprocess(path, settings, laterality=laterality)
    except ImageError as error:
        return error


def read_search_frame(file: ImageFile) -> Frame:
    """Returns the frame to find the breast on, with a window.

    It is what a wavelet leaves of the picture, in every encoding: at the last levels means look otherwise.
    Where the file brings none, one is made of the full resolution: at a lower one, blends of padding and
    picture count as picture and the extremes are gone, more or less so in each encoding.
    """
    level, shown = find_search_level(file), file.header
    if shown.window is None and shown.voi_lut is None:
        shown = with_voi(file.read_frame())
    if file.num_levels and find_black(shown) is None:
        start = min(level, file.num_levels, file.max_level)
    else:
        start = max(0, level - NUM_HALVED)
        while start < level and file.rows * file.columns >> 2 * start > MOST_HALVED:
            start += 1
    frame = read_level(file, start, shown)
    for _ in range(level - start):
        blocks_level = 0 if frame.grid.is_even or frame.grid.num_halved else frame.grid.level
        frame = replace(frame, pixels=halve(frame.pixels, blocks_level), grid=frame.grid.halved())
    return replace(
        shown, pixels=frame.pixels, grid=frame.grid, padding=frame.padding, share_cut=frame.share_cut
    )


def read_level(file: ImageFile, level: int, shown: Frame) -> Frame:
    """Returns a frame at 1 / 2**level of the full size, to be shown as `shown` is.

    Where padding must not blend with the picture, it is made of the full one with black in its place.
    """
    black = find_black(replace(shown, padding=file.header.padding))
    if black is None:
        return file.read_frame(level)
    frame = file.read_frame()
    pixels = np.where(is_padding(frame, frame.pixels), frame.pixels.dtype.type(black), frame.pixels)
    return replace(frame, pixels=reduce_pixels(pixels, level), grid=Grid(level), padding=(black, black))


def find_search_level(file: ImageFile) -> int:
    """Returns the level to find the breast on, the same for all settings, so that all see the same box."""
    whole = Box(0, 0, file.columns, file.rows)
    return find_level(
        whole,
        side=SEARCH_SIDE_PX,
        oversampling=1.0,
        max_level=find_max_reduction(file.rows, file.columns),
        pixel_aspect=file.pixel_aspect,
    )


def find_crop_level(file: ImageFile, box: Box, settings: PrepareSettings) -> int:
    """Returns the level to make the image of."""
    if settings.codecs.exact:
        return 0
    return find_level(
        box,
        side=settings.side,
        oversampling=settings.codecs.oversampling,
        max_level=file.max_level,
        pixel_aspect=file.pixel_aspect,
    )


def to_integers(square: Display, bit_depth: int) -> Image:
    """Returns an image of 8 or 16 bits, rounded."""
    levels = 2**bit_depth - 1
    return np.rint(square * levels).astype(np.uint8 if bit_depth == 8 else np.uint16)


def describe_frame(frame: Frame) -> ManifestRow:
    """Returns the columns about the frame."""
    return {
        "modality": frame.modality,
        "transfer_syntax": frame.transfer_syntax,
        "photometric_interpretation": str(frame.photometric_interpretation),
        "window": describe_voi(frame),
        "rows": frame.rows,
        "columns": frame.columns,
        "pixel_aspect": frame.pixel_aspect,
    }


def identify_source(path: ImagePath) -> ManifestRow:
    """Returns what changes with a file, as far as can be told without reading it.

    Raises:
        OSError: if the file is gone.
    """
    if isinstance(path, RemoteFile):
        return {"source_bytes": path.size, "source_etag": path.etag}
    status = path.stat()
    return {"source_bytes": status.st_size, "source_mtime_ns": status.st_mtime_ns}
