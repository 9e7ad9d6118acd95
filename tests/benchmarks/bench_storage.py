"""Times `prepare` from an S3 server on loopback that lets every answer wait, against a local folder.

Copies the DICOM files of a data set until there are enough, puts them into moto's server (a process of its
own), and prepares them with latencies in turn. First says how many bytes and requests a file of each encoding
takes. Rates are taken between the first and the last image.

    python tests/benchmarks/bench_storage.py [--data FOLDER] [--images 60] [--latency 0 20 100] [--workers 2]
"""

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd

from data_prep.cache.build import build_cache
from data_prep.cache.folder import Cache, CacheSettings
from data_prep.imageio import codecs
from data_prep.phantom.dataset import write_phantoms
from data_prep.preprocessing.preprocess import preprocess
from data_prep.preprocessing.settings import CodecSettings, PrepareSettings
from data_prep.rsna.exam_table import read_exams, require_images
from data_prep.storage.places import Download, Place, Url
from tests.data_prep.dicom_files import make_breast, write_dicom
from tests.object_store import ENVIRONMENT, serve

SYNTAXES = {
    "JPEG 2000 lossless": codecs.JPEG_2000_LOSSLESS,
    "HTJ2K lossless, by resolution": codecs.HTJ2K_LOSSLESS_RPCL,
    "JPEG lossless": codecs.JPEG_LOSSLESS_SV1,
    "RLE": codecs.RLE_LOSSLESS,
    "uncompressed": codecs.EXPLICIT_VR_LITTLE_ENDIAN,
}
WHOLE = CacheSettings(split="train", prepare=PrepareSettings())
PREFIX = CacheSettings(split="train", prepare=PrepareSettings(codecs=CodecSettings(read="prefix")))


def run_server(folder: Path, orders: Connection) -> None:
    """Serves a folder until told to stop; an order is a latency in seconds, or None for the traffic."""
    with serve() as store:
        store.upload(folder)
        orders.send((store.address, store.s3))
        while (order := orders.recv()) != "stop":
            if order is None:
                orders.send((len(store.requests), store.num_bytes))
                store.forget()
            else:
                store.latency_s = order
                orders.send(order)


@contextmanager
def serving(folder: Path):
    """Yields the S3 folder and a function that gives orders to its server."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=run_server, args=(folder, theirs))
    process.start()
    address, url = ours.recv()
    os.environ.update(ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://{address}"})

    def order(what: float | None):
        ours.send(what)
        return ours.recv()

    try:
        yield Url(url), order
    finally:
        ours.send("stop")
        process.join()


def copy_images(source: Path, target: Path, count: int) -> Path:
    """Makes a data set of so many images, as many to a patient as there are files."""
    paths = sorted(source.glob("train_images/*/*.dcm"))
    rows = []
    for number in range(count):
        patient_id, image_id = str(1 + number // len(paths)), str(1000 + number)
        path = target / f"train_images/{patient_id}/{image_id}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(paths[number % len(paths)], path)
        rows.append((patient_id, image_id, "L", 0))
    columns = ["patient_id", "image_id", "laterality", "cancer"]
    pd.DataFrame(rows, columns=columns).to_csv(target / "train.csv", index=False)
    return target


def write_each_syntax(folder: Path) -> Path:
    """A file of 2776 x 2082 pixels of 12 bits in each encoding."""
    pixels = make_breast(2776, 2082)
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12}
    for number, syntax in enumerate(SYNTAXES.values()):
        write_dicom(folder / f"train_images/1/{number}.dcm", pixels, transfer_syntax=syntax, **window)
    return folder


def measure_bytes(folder: Url, order) -> None:
    """Prints what one file of each encoding takes."""
    for number, name in enumerate(SYNTAXES):
        file = (folder / "train_images" / "1" / f"{number}.dcm").find()
        order(None)
        stages = preprocess(file, PrepareSettings())
        num_requests, num_bytes = order(None)
        share = num_bytes / file.size
        print(f"{name}: {num_bytes:,} of {file.size:,} bytes ({share:.1%}), {num_requests} requests")
        assert isinstance(stages.source.origin, Download)


def measure(place: Place, cache: Path, settings: CacheSettings, workers: int) -> str:
    """Prepares the data and says how fast that went."""
    start = time.perf_counter()
    located = require_images(read_exams(place, "train"), place, "train")
    looked = time.perf_counter() - start
    times: list[float] = []
    summary = build_cache(
        located.exams,
        located.paths,
        Cache(cache),
        settings,
        workers=workers,
        on_image=lambda _: times.append(time.perf_counter()),
    )
    rate = (len(times) - 1) / (times[-1] - times[0])
    manifest = Cache(cache).read_manifest()
    share = manifest["bytes_read"].sum() / manifest["source_bytes"].sum()
    assert summary.num_failed == 0
    return f"{rate:.1f} images/s with {workers} workers, {share:.1%} of the bytes; found in {looked:.2f} s"


def compare(local: Path, remote: Url, order, scratch: Path, workers: int, latencies: list[int]) -> None:
    """Prints the rates of a folder and of the store with one latency after the other."""
    for name, settings in {"whole": WHOLE, "prefix": PREFIX}.items():
        told = measure(local, scratch / f"{name}_{workers}", settings, workers)
        print(f"local folder, codecs.read = {name}: {told}", flush=True)
    for latency in latencies:
        order(latency / 1000)
        order(None)
        told = measure(remote, scratch / f"s3_{latency}_{workers}", WHOLE, workers)
        num_requests, _ = order(None)
        print(f"S3 with {latency} ms: {told}; {num_requests} requests", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times mammo prepare from an S3 server with latency.")
    parser.add_argument(
        "--data", type=Path, help="A data set with train_images/*/*.dcm, instead of phantoms."
    )
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument(
        "--latency", type=int, nargs="+", default=[0, 20, 100], help="In ms, of every answer."
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        scratch = Path(text)
        root = scratch / "root"
        source = arguments.data or scratch / "phantoms"
        if arguments.data is None:
            write_phantoms(source, num_patients=3, rows=2776, columns=2082, workers=2)
        data = copy_images(source, root / "data", arguments.images)
        write_each_syntax(root / "syntaxes")
        with serving(root) as (folder, order):
            measure_bytes(folder / "syntaxes", order)
            for workers in arguments.workers:
                compare(data, folder / "data", order, scratch, workers, arguments.latency)


if __name__ == "__main__":
    main()
