"""One file taken apart: what was understood of it, in words and as a picture of the stages.

Nothing here comes from an element that identifies a patient, nor from the file's name.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from data_prep.errors import UserError
from data_prep.imageio import codecs
from data_prep.imageio.frame import PhotometricInterpretation
from data_prep.imageio.header import MAMMOGRAPHY
from data_prep.imageio.raster import PNG_SIGNATURE
from data_prep.preprocessing.preprocess import Stages
from data_prep.preprocessing.quality_checks import LOW_CONTRAST, NOTES, SATURATED, WARNINGS
from data_prep.storage.files import open_own

ENCODINGS = {
    codecs.IMPLICIT_VR_LITTLE_ENDIAN: "uncompressed, implicit VR",
    codecs.EXPLICIT_VR_LITTLE_ENDIAN: "uncompressed",
    codecs.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: "uncompressed pixels in a deflated file",
    codecs.EXPLICIT_VR_BIG_ENDIAN: "uncompressed, big endian",
    codecs.JPEG_BASELINE: "JPEG baseline, lossy, 8 bits",
    codecs.JPEG_EXTENDED: "JPEG extended, lossy, 8 or 12 bits",
    codecs.JPEG_LOSSLESS: "JPEG lossless, any predictor",
    codecs.JPEG_LOSSLESS_SV1: "JPEG lossless, first-order prediction",
    codecs.JPEG_LS_LOSSLESS: "JPEG-LS lossless",
    codecs.JPEG_LS_NEAR_LOSSLESS: "JPEG-LS near-lossless",
    codecs.JPEG_2000_LOSSLESS: "JPEG 2000 lossless",
    codecs.JPEG_2000: "JPEG 2000, lossless or lossy",
    codecs.HTJ2K_LOSSLESS: "high-throughput JPEG 2000, lossless",
    codecs.HTJ2K_LOSSLESS_RPCL: "high-throughput JPEG 2000, lossless, by resolution",
    codecs.HTJ2K_ANY: "high-throughput JPEG 2000, lossless or lossy",
    codecs.RLE_LOSSLESS: "RLE lossless",
}
"""What the transfer syntaxes are, PS3.6 A-1 in short."""

GREYS = {
    PhotometricInterpretation.MONOCHROME1: "MONOCHROME1: large values are dark, so the picture is inverted",
    PhotometricInterpretation.MONOCHROME2: "MONOCHROME2: large values are bright, shown as they are",
}
BOX_COLOUR = "#ffb000"  # seen on black and on white
PICTURE_INCHES, DOTS_PER_INCH = (12.0, 5.2), 120


def require_png(path: Path) -> None:
    """Makes sure that a picture's path says what it will hold, and that nothing else is lost for it.

    Raises:
        UserError: if it has another suffix than .png, or is a file that is not a PNG.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"{path} is not a name for a PNG, which the picture is: end it with .png")
    if path.is_file():
        with open_own(path) as stream:
            is_png = stream.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
        if not is_png:
            raise UserError(
                f"{path} is a file of another kind, which the picture would replace: choose another name"
            )


def describe_stages(stages: Stages) -> list[tuple[str, str]]:
    """Returns (what, value) pairs in the order of the work, for people."""
    record = stages.record
    side = stages.image.shape[0]
    return [
        *([("modality", _describe_modality(record["modality"]))] if record["modality"] else []),
        ("encoding", describe_encoding(record["transfer_syntax"])),
        ("size", f"{record['rows']} rows x {record['columns']} columns"),
        *_describe_shape(record["pixel_aspect"]),
        ("greys", GREYS[PhotometricInterpretation(record["photometric_interpretation"])]),
        ("window", record["window"]),
        ("breast's box", _describe_box(record)),
        ("decoded at", _describe_level(record["level"])),
        ("read", _describe_reading(record)),
        ("in the file", _describe_pose(record["turned"])),
        ("chest wall", _describe_orientation(flipped=record["flipped"])),
        ("scale", _describe_scale(record)),
        ("image", f"{side} x {side} pixels of {stages.image.itemsize * 8} bits"),
        ("contrast", f"{record['contrast']:.3f} of 1 (low: below {LOW_CONTRAST:g})"),
        ("saturated", f"{record['saturated']:.1%} of the box's pixels (high: above {SATURATED:.0%})"),
        *[
            ("note" if code in NOTES else "warning", f"{code}: {WARNINGS[code]}")
            for code in record["warnings"].split()
        ],
    ]


def _describe_modality(modality: str) -> str:
    return f"{modality}, mammography" if modality == MAMMOGRAPHY else f"{modality}, which is not mammography"


def describe_encoding(transfer_syntax: str) -> str:
    """Returns the encoding in words with its UID; a raster format's name as it is."""
    words = ENCODINGS.get(transfer_syntax)
    return f"{words} ({transfer_syntax})" if words else transfer_syntax


def _describe_box(record: dict[str, Any]) -> str:
    left, top, right, bottom = (record[f"box_{edge}"] for edge in ("left", "top", "right", "bottom"))
    share = (right - left) * (bottom - top) / (record["rows"] * record["columns"])
    return f"columns {left} to {right}, rows {top} to {bottom}: {share:.0%} of the frame"


def _describe_level(level: int) -> str:
    return "full resolution" if level == 0 else f"1/{2**level} of the full resolution"


def _describe_reading(record: dict[str, Any]) -> str:
    read, total = record["bytes_read"], record["source_bytes"]
    return f"{read:,} of the file's {total:,} bytes ({read / total:.0%})"


def _describe_shape(pixel_aspect: float) -> list[tuple[str, str]]:
    """Says nothing of square pixels."""
    shape = f"{pixel_aspect:.4g} times as high as wide, which the image corrects"
    return [] if pixel_aspect == 1.0 else [("pixels", shape)]


def _describe_pose(turned: int) -> str:
    return f"turned: the image turns it by {turned} degrees clockwise" if turned else "upright"


def _describe_orientation(*, flipped: bool) -> str:
    return "on the right, so the image is mirrored" if flipped else "on the left, where the image has it"


def _describe_scale(record: dict[str, Any]) -> str:
    return f"{record['scale_x']:.4f} across, {record['scale_y']:.4f} down: image pixels per file pixel"


def draw_stages(stages: Stages) -> bytes:
    """Returns a PNG of the frame with the breast's box, the windowed crop, and the image, side by side."""
    record, side = stages.record, stages.image.shape[0]
    figure, aspect = Figure(figsize=PICTURE_INCHES, layout="constrained"), record["pixel_aspect"]
    frame, crop, image = figure.subplots(1, 3)
    size = record["rows"], record["columns"]
    _show(frame, stages.overview, "frame with the breast's box", size=size, aspect=aspect)
    frame.add_patch(_draw_box(record))
    title = f"breast, windowed, at {_describe_level(record['level'])}"
    _show(crop, stages.crop, title, aspect=aspect)
    changed = f", turned by {record['turned']} degrees" if record["turned"] else ""
    changed += ", mirrored" if record["flipped"] else ""
    _show(image, stages.image / np.iinfo(stages.image.dtype).max, f"image of {side} x {side}{changed}")
    if record["warnings"]:
        sentences = [f"{code}: {WARNINGS[code]}" for code in record["warnings"].split()]
        figure.supxlabel("\n".join(sentences), fontsize=10, x=0.01, ha="left")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return stream.getvalue()


def _show(
    axes: Axes, picture: Any, title: str, *, size: tuple[int, int] | None = None, aspect: float = 1.0
) -> None:
    """Shows values 0..1 with rows and columns at the axes: the picture's own, or those of `size`.

    `aspect` is the height of the picture's pixels over their width.
    """
    rows, columns = size or picture.shape
    axes.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, extent=(0, columns, rows, 0), aspect=aspect)
    axes.set_title(title, fontsize=11)
    axes.tick_params(labelsize=8)
    axes.set_anchor("N")


def _draw_box(record: dict[str, Any]) -> Rectangle:
    corner = record["box_left"], record["box_top"]
    width, height = record["box_right"] - corner[0], record["box_bottom"] - corner[1]
    box = Rectangle(corner, width, height, fill=False, edgecolor=BOX_COLOUR, linewidth=1.5, clip_on=False)
    box.set_zorder(3)  # above the lines around the frame, which it may lie on
    return box
