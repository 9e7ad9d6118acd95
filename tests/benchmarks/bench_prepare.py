"""Times `prepare_image` against what people use, on real DICOM files, in one warm process.

The baseline is dcmread + pixel_array + apply_voi_lut + cv2.resize; pydicom decodes with pylibjpeg-openjpeg.
Also prints how near the default comes to the exact decode, in dB inside the crop.

    pip install -c constraints.txt -r tests/benchmarks/requirements.txt
    MAMMO_REAL_DATA=... python tests/benchmarks/bench_prepare.py [--repeats 5]
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from pydicom import dcmread
from pydicom.pixels import apply_voi_lut
from pydicom.pixels.decoders import JPEG2000LosslessDecoder

from data_prep.prepare import prepare_image
from data_prep.settings import CodecSettings, PrepareSettings

DEFAULT = PrepareSettings()
EXACT = PrepareSettings(codecs=CodecSettings(exact=True))


def prepare_with_peers(path: Path) -> np.ndarray:
    """What the public solutions do, without a crop: decode in full, window, resize."""
    dataset = dcmread(path)
    dataset.pixel_array_options(decoding_plugin="pylibjpeg")
    windowed = apply_voi_lut(dataset.pixel_array, dataset).astype(np.float32)
    low, high = windowed.min(), windowed.max()
    display = (windowed - low) / (high - low)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        display = 1 - display
    return (cv2.resize(display, (512, 512), interpolation=cv2.INTER_AREA) * 255).astype(np.uint8)


def median_seconds(function: Callable[[Path], object], path: Path, repeats: int) -> float:
    """Times single calls and returns the median."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(path)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def psnr_db(path: Path) -> float:
    """Peak signal-to-noise ratio of the default against the exact decode, inside the crop."""
    image, record = prepare_image(path, DEFAULT)
    reference, _ = prepare_image(path, EXACT)
    width = round((record["box_right"] - record["box_left"]) * record["scale"])
    height = round((record["box_bottom"] - record["box_top"]) * record["scale"])
    crop = np.s_[record["top"] : record["top"] + height, :width]
    error = np.mean((image[crop].astype(float) - reference[crop]) ** 2)
    return 10 * math.log10(255**2 / error) if error else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description="Times prepare_image against what people use.")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    if not JPEG2000LosslessDecoder.is_available:
        raise SystemExit("the baseline needs tests/benchmarks/requirements.txt installed")
    paths = sorted((Path(os.environ["MAMMO_REAL_DATA"]) / "rsna_dicom").rglob("*.dcm"))
    prepare_image(paths[0], DEFAULT)
    prepare_with_peers(paths[0])
    ours_s = theirs_s = 0.0
    print("image           size       peers     mammo    ratio   PSNR against exact")
    for path in paths:
        theirs = median_seconds(prepare_with_peers, path, repeats)
        ours = median_seconds(lambda path: prepare_image(path, DEFAULT), path, repeats)
        ours_s, theirs_s = ours_s + ours, theirs_s + theirs
        header = dcmread(path, stop_before_pixels=True)
        size = f"{header.Rows}x{header.Columns}"
        ratio, quality = theirs / ours, psnr_db(path)
        print(f"{path.stem:<12} {size:>10} {theirs:8.3f} s {ours:7.3f} s {ratio:6.1f}x {quality:8.1f} dB")
    print(f"{'all':<12} {'':>10} {theirs_s:8.3f} s {ours_s:7.3f} s {theirs_s / ours_s:6.1f}x")


if __name__ == "__main__":
    main()
