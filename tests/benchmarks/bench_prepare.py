"""Times `prepare_image` against what people use, per image, in one warm process on one core.

The baseline is dcmread + pixel_array + apply_voi_lut + cv2.resize; pydicom decodes with pylibjpeg-openjpeg
(JPEG 2000), python-gdcm (JPEG lossless) or by itself. A second peer is dicomsdl, with the cheapest scaling to
0..255 in place of the window. Also printed: how much of the baseline's time everything but decoding takes
here, how near the default comes to the exact decode, what `read = "prefix"` reads, and the peak memory of a
worker.

    pip install -c constraints.txt -r tests/benchmarks/requirements.txt
    MAMMO_REAL_DATA=... OMP_NUM_THREADS=1 python tests/benchmarks/bench_prepare.py [--repeats 5]
"""

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import dicomsdl
import numpy as np
from pydicom import dcmread
from pydicom.pixels import apply_voi_lut

from data_prep.imageio import codecs
from data_prep.phantom.dataset import make_patient
from data_prep.phantom.dicom_writer import make_dicom
from data_prep.preprocessing.settings import CodecSettings, PrepareSettings
from data_prep.storage.atomic import write_bytes
from tests.data_prep.reading import prepare_image

DEFAULT = PrepareSettings()
EXACT = PrepareSettings(codecs=CodecSettings(exact=True))
PREFIX = PrepareSettings(codecs=CodecSettings(read="prefix"))
PLUGINS = {codecs.JPEG_2000_LOSSLESS: "pylibjpeg", codecs.JPEG_LOSSLESS_SV1: "gdcm"}
NAMES = {
    codecs.JPEG_2000_LOSSLESS: "JPEG 2000",
    codecs.JPEG_LOSSLESS_SV1: "JPEG lossless",
    codecs.RLE_LOSSLESS: "RLE",
    codecs.EXPLICIT_VR_LITTLE_ENDIAN: "uncompressed",
}
ROWS, COLUMNS = 4096, 3328


def prepare_with_pydicom(path: Path) -> np.ndarray:
    """What the public solutions do, without a crop: decode in full, window, resize."""
    dataset = dcmread(path)
    plugin = PLUGINS.get(dataset.file_meta.TransferSyntaxUID, "")
    dataset.pixel_array_options(**({"decoding_plugin": plugin} if plugin else {}))
    windowed = apply_voi_lut(dataset.pixel_array, dataset).astype(np.float32)
    return scale_and_resize(windowed, inverted=dataset.PhotometricInterpretation == "MONOCHROME1")


def prepare_with_dicomsdl(path: Path) -> np.ndarray:
    """The fast public reader, without a window."""
    dataset = dicomsdl.open(str(path))
    pixels = dataset.pixelData(storedvalue=True)
    return scale_and_resize(pixels, inverted=dataset.PhotometricInterpretation == "MONOCHROME1")


def scale_and_resize(values: np.ndarray, *, inverted: bool) -> np.ndarray:
    """Returns 512x512, 0..255."""
    small = cv2.resize(values, (512, 512), interpolation=cv2.INTER_AREA).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    display = (small - low) / max(high - low, 1.0)
    return ((1 - display if inverted else display) * 255).astype(np.uint8)


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Times single calls after a first one and returns the median."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def timed_decoding() -> Iterator[list[float]]:
    """Yields a list that grows by the seconds of every decode inside the block."""
    seconds: list[float] = []
    decode = codecs.decode

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return decode(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - start)

    codecs.decode = timed
    try:
        yield seconds
    finally:
        codecs.decode = decode


def median_rest(path: Path, repeats: int) -> float:
    """Returns the seconds that everything but decoding takes."""
    rests = []
    for _ in range(repeats):
        with timed_decoding() as decoding:
            start = time.perf_counter()
            prepare_image(path, DEFAULT)
            rests.append(time.perf_counter() - start - sum(decoding))
    return statistics.median(rests)


def psnr_db(path: Path) -> float:
    """Peak signal-to-noise ratio of the default against the exact decode, inside the crop."""
    image, record = prepare_image(path, DEFAULT)
    reference, _ = prepare_image(path, EXACT)
    width = round((record["box_right"] - record["box_left"]) * record["scale_x"])
    height = round((record["box_bottom"] - record["box_top"]) * record["scale_y"])
    crop = np.s_[record["top"] : record["top"] + height, :width]
    error = np.mean((image[crop].astype(float) - reference[crop]) ** 2)
    return 10 * math.log10(255**2 / error) if error else math.inf


def peak_memory_mb(path: Path) -> float:
    """Returns the largest resident set of a process that prepares one file, in MB."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure-memory", str(path)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def write_phantoms(folder: Path) -> Iterator[tuple[str, Path]]:
    """Writes one phantom of each view in every encoding."""
    images = list(make_patient(0, seed=0, rows=ROWS, columns=COLUMNS, cancer_share=0.5))[:2]
    for image in images:
        for syntax, name in NAMES.items():
            encoding = replace(image.encoding, transfer_syntax=syntax, has_jp2_box=False)
            payload = make_dicom(
                image.phantom.image,
                encoding,
                patient_id="1",
                image_id="1",
                laterality=image.row["laterality"],
            )
            path = folder / f"{image.row['view']} {name}.dcm"
            write_bytes(path, payload)
            yield f"phantom {image.row['view']}", path


def print_row(name: str, path: Path, repeats: int) -> None:
    """Measures one file with everything and prints a line."""
    header = dcmread(path, stop_before_pixels=True)
    baseline = median_seconds(lambda: prepare_with_pydicom(path), repeats)
    other = median_seconds(lambda: prepare_with_dicomsdl(path), repeats)
    ours = median_seconds(lambda: prepare_image(path, DEFAULT), repeats)
    rest = median_rest(path, repeats)
    _, record = prepare_image(path, PREFIX)
    share = record["bytes_read"] / record["source_bytes"]
    print(
        f"| {name} | {NAMES[header.file_meta.TransferSyntaxUID]} | {header.Rows}x{header.Columns} "
        f"| {1e3 * baseline:.0f} | {1e3 * other:.0f} | {1e3 * ours:.1f} | {baseline / ours:.1f}x "
        f"| {other / ours:.1f}x | {100 * rest / baseline:.1f} % | {psnr_db(path):.1f} | {100 * share:.0f} % "
        f"| {peak_memory_mb(path):.0f} |",
        flush=True,
    )


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # some decoders use every core they see
    parser = argparse.ArgumentParser(description="Times prepare_image against what people use.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure-memory", type=Path)
    arguments = parser.parse_args()
    if arguments.measure_memory:
        prepare_image(arguments.measure_memory, DEFAULT)
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)
        return
    print(
        "| image | encoding | size | baseline ms | dicomsdl ms | mammo ms | to baseline | to dicomsdl "
        "| all but decoding, of baseline | PSNR dB | prefix reads | peak MB |"
    )
    print("|" + " --- |" * 12)
    for path in sorted((Path(os.environ["MAMMO_REAL_DATA"]) / "rsna_dicom").rglob("*.dcm")):
        print_row(f"{path.parent.name} {path.stem}", path, arguments.repeats)
    with tempfile.TemporaryDirectory() as folder:
        for name, path in write_phantoms(Path(folder)):
            print_row(name, path, arguments.repeats)


if __name__ == "__main__":
    main()
