"""What a DICOM header says of the pixels, checked: their layout, rescale, window, tables and padding.

Knows no file. A number is never invented: what cannot be used is left out, and a warning code says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.errors import ImageError
from data_prep.imageio import codecs
from data_prep.imageio.elements import Elements, Number
from data_prep.imageio.frame import LookupTable, PhotometricInterpretation, VoiLutFunction, Window
from data_prep.imageio.lookup_table import find_table

Tables = Mapping[str, Sequence[Elements] | None]
"""The items of ModalityLUTSequence and VOILUTSequence; None where a sequence cannot be read."""

COLOURS = {"RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"}
"""The other values of PhotometricInterpretation that may be quoted, PS3.3 C.7.6.3.1.2."""
MAMMOGRAPHY = "MG"
MODALITIES = {
    *("AR", "BI", "BMD", "CR", "CT", "DG", "DX", "ECG", "ES", "GM", "IO", "IVOCT", "IVUS", "LS", MAMMOGRAPHY),
    *("MR", "NM", "OCT", "OP", "OPT", "OT", "PR", "PT", "PX", "RF", "RG", "RTDOSE", "RTIMAGE", "SC", "SEG"),
    *("SM", "TG", "US", "XA", "XC"),
}
"""The modalities that have images and may be quoted, PS3.3 C.7.3.1.1.1, and SC, which some files have."""
PIXEL_REPRESENTATIONS = (0, 1)  # unsigned, signed
LARGEST, SMALLEST = 1e30, 1e-30  # of a slope, an intercept or a window: beyond it, arithmetic overflows


@dataclass(frozen=True)
class GreyScale:
    """How stored values are to be shown; the fields are those of `Frame`."""

    rescale_slope: float
    rescale_intercept: float
    modality_lut: LookupTable | None
    window: Window | None
    voi_lut: LookupTable | None
    warnings: tuple[str, ...]


def read_layout(elements: Elements, syntax: str) -> codecs.Layout:
    """Returns what a decoder must know.

    Raises:
        ImageError: if the file holds no single grey frame of 8 or 16 bits.
    """
    rows, columns, bits_allocated = (
        elements.whole_number(keyword) or 0 for keyword in ("Rows", "Columns", "BitsAllocated")
    )
    sizes = {"Rows": rows, "Columns": columns, "BitsAllocated": bits_allocated}
    missing = [keyword for keyword, value in sizes.items() if value <= 0]
    if missing:
        raise ImageError("bad_value", f"{', '.join(missing)} missing or zero: the file holds no image")
    num_samples = elements.whole_number("SamplesPerPixel") or 1
    if num_samples != 1:
        raise ImageError("unsupported", f"SamplesPerPixel is {num_samples}; a mammogram has 1")
    num_frames = elements.whole_number("NumberOfFrames") or 1
    if num_frames != 1:
        raise ImageError("multi_frame", f"NumberOfFrames is {num_frames}; only single frames are taken")
    if bits_allocated not in {8, 16}:
        raise ImageError("unsupported", f"BitsAllocated is {bits_allocated}; 8 and 16 are taken")
    bits_stored = elements.whole_number("BitsStored") or bits_allocated
    if not 1 <= bits_stored <= bits_allocated:
        raise ImageError("bad_value", f"BitsStored is {bits_stored}; it is 1 to {bits_allocated}")
    representation = elements.whole_number("PixelRepresentation") or 0
    if representation not in PIXEL_REPRESENTATIONS:
        raise ImageError(
            "bad_value", f"PixelRepresentation is {representation}; it is 0, unsigned, or 1, signed"
        )
    has_low_bits = syntax in codecs.SAMPLES_AS_THEY_ARE
    return codecs.Layout(
        rows=rows,
        columns=columns,
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        is_signed=representation == 1,
        low_bits=_read_low_bits(elements, bits_stored, bits_allocated) if has_low_bits else 0,
    )


def _read_low_bits(elements: Elements, bits_stored: int, bits_allocated: int) -> int:
    """Returns how many unused bits lie below the value, PS3.5 8.1.1."""
    value = elements.whole_number("HighBit")
    high_bit = bits_stored - 1 if value is None else value
    if not bits_stored - 1 <= high_bit < bits_allocated:
        is_full = bits_stored == bits_allocated
        allowed = f"{bits_stored - 1}" if is_full else f"{bits_stored - 1} to {bits_allocated - 1}"
        raise ImageError(
            "unsupported", f"HighBit is {high_bit}; with BitsStored {bits_stored} it is {allowed}"
        )
    return high_bit + 1 - bits_stored


def read_photometric_interpretation(elements: Elements) -> PhotometricInterpretation:
    """Returns whether large values are bright or dark.

    Raises:
        ImageError: if the picture is neither.
    """
    value = elements.code("PhotometricInterpretation")
    if value not in set(PhotometricInterpretation):
        said = value if value in COLOURS else "of no standard" if value else "missing"
        raise ImageError(
            "unsupported",
            f"PhotometricInterpretation is {said}; a mammogram has MONOCHROME1 or MONOCHROME2: export it so",
        )
    return PhotometricInterpretation(value)


def read_modality(elements: Elements) -> str:
    """Returns what kind of device made the picture; empty where that is not said."""
    value = elements.code("Modality")
    return value if value in MODALITIES or not value else "of no standard"


def read_laterality(elements: Elements) -> str | None:
    """Returns L, R, or None where the header says neither."""
    value = elements.code("ImageLaterality") or elements.code("Laterality")
    return value if value in {"L", "R"} else None


# Padding


def read_padding(elements: Elements, layout: codecs.Layout) -> tuple[tuple[int, int] | None, bool]:
    """Returns the lowest and highest padding value, PS3.3 C.7.5.1.1.2, and whether it cannot be read."""
    value = elements.bits("PixelPaddingValue")
    if value is None:
        return None, bool(elements.numbers("PixelPaddingValue"))
    limit = elements.bits("PixelPaddingRangeLimit")
    ends = [_to_stored(bits, layout) for bits in (value, value if limit is None else limit)]
    return (min(ends), max(ends)), False


def _to_stored(bits: int, layout: codecs.Layout) -> int:
    """Reads 16 bits as a sample of the layout, whatever VR they have; it may lie beyond BitsStored."""
    value = bits & (2**layout.bits_allocated - 1)
    if not layout.is_signed:
        return value
    width = layout.bits_stored if value < 2**layout.bits_stored else layout.bits_allocated
    return value - 2**width if value >= 2 ** (width - 1) else value


def find_stored_range(layout: codecs.Layout) -> tuple[int, int]:
    """Returns the lowest and the highest value that BitsStored allow."""
    half = 2 ** (layout.bits_stored - 1)
    return (-half, half - 1) if layout.is_signed else (0, 2 * half - 1)


# Grey scale


def read_grey_scale(elements: Elements, tables: Tables, layout: codecs.Layout) -> GreyScale:
    """Returns how to show stored values, with a warning for each part that cannot be used.

    A window or VOI LUT applies to modality values: where their unit is not known, because the rescale or the
    modality LUT cannot be used, neither can these.
    """
    stored = find_stored_range(layout)
    modality_lut, modality_is_bad = _find_table(tables["ModalityLUTSequence"], stored)
    slope, intercept, rescale_is_bad = _read_rescale(elements)
    rescale_is_bad &= modality_lut is None
    says_unit = elements.first_number("RescaleSlope") is not None
    is_known = modality_lut is not None or not (
        rescale_is_bad or (_says_something(tables["ModalityLUTSequence"]) and not says_unit)
    )
    ends = modality_lut.values if modality_lut else np.array(stored) * slope + intercept
    inputs = float(ends.min()), float(ends.max())
    voi_lut, voi_is_bad = _find_table(tables["VOILUTSequence"], inputs)
    voi_lut = voi_lut if is_known else None
    step = 1.0 if modality_lut else abs(slope)
    window = _read_window(elements, step) if is_known and voi_lut is None else None
    has_window = any(elements.numbers(keyword) for keyword in ("WindowCenter", "WindowWidth"))
    found = {
        "lut_unusable": modality_is_bad or voi_is_bad,
        "lut_range": bool(voi_lut and voi_lut.is_contradicted),
        "rescale_unusable": rescale_is_bad,
        "window_unusable": has_window and is_known and voi_lut is None and window is None,
        "window_width": window is not None and window.function == VoiLutFunction.LINEAR and window.width < 1,
    }
    codes = tuple(code for code, applies in found.items() if applies)
    return GreyScale(slope, intercept, modality_lut, window, voi_lut, codes)


def _find_table(
    items: Sequence[Elements] | None, inputs: tuple[float, float]
) -> tuple[LookupTable | None, bool]:
    """Returns the first table that can be used, and whether there are tables but none of them can."""
    table = find_table(items or [], inputs)
    return table, table is None and (items is None or len(items) > 0)


def _says_something(items: Sequence[Elements] | None) -> bool:
    """Whether a sequence stands for a table, which an empty item does not."""
    return items is None or any(item.by_keyword for item in items)


def _read_rescale(elements: Elements) -> tuple[float, float, bool]:
    """Returns slope and intercept, 1 and 0 where they are absent, and whether they cannot be used."""
    slope, intercept = elements.first_number("RescaleSlope"), elements.first_number("RescaleIntercept")
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    if SMALLEST <= abs(slope) <= LARGEST and abs(intercept) <= LARGEST:  # NaN is neither
        return slope, intercept, False
    return 1.0, 0.0, True


def _read_window(elements: Elements, step: float) -> Window | None:
    """Returns the first window that is complete and valid, PS3.3 C.11.2.1.2; None without one."""
    function = elements.code("VOILUTFunction") or VoiLutFunction.LINEAR
    if function not in set(VoiLutFunction):
        return None
    pairs = zip(elements.numbers("WindowCenter"), elements.numbers("WindowWidth"), strict=False)
    windows = (make_window(center, width, VoiLutFunction(function), step) for center, width in pairs)
    return next((window for window in windows if window is not None), None)


def make_window(center: Number, width: Number, function: VoiLutFunction, step: float) -> Window | None:
    """Returns a window over modality values that lie `step` apart; None where it cannot be used."""
    if center is None or width is None or not (abs(center) <= LARGEST and SMALLEST <= width <= LARGEST):
        return None
    if function is not VoiLutFunction.LINEAR:
        return Window(float(center), float(width), function)
    step = 1.0 if _is_step_no_matter(width, step) else step
    if width < min(step, 1.0):
        return None
    return Window(float(center), float(width), function, min(step, float(width)))  # a threshold at most


def _is_step_no_matter(width: float, step: float) -> bool:
    """Whether LINEAR can be taken to the letter, where neighbours are 1 apart, PS3.3 C.11.2.1.2.1.

    With other units the same picture would change: by |step - 1| / (width - step) at most, see `Window.step`.
    Half a grey level in small units, and one in large ones, are below what anybody sees.
    """
    levels = 255 if step > 1.0 else 510
    return abs(step - 1.0) * levels <= width - max(step, 1.0)
