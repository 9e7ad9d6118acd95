"""Times `prepare` with two workers on Ray beside the local engine: python tests/benchmarks/bench_cluster.py.

Ray and its processes share this machine's cores with the work, so the ratio is what Ray costs.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_prep.cache.build import build_cache
from data_prep.cache.folder import Cache, CacheSettings
from data_prep.parallel.executor import Executor, map_unordered
from data_prep.parallel.ray_cluster import connect
from data_prep.parallel.resource_limits import count_cores
from data_prep.phantom.dataset import write_phantoms
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.rsna.exam_table import read_exams, require_images

SETTINGS = CacheSettings(split="train", prepare=PrepareSettings())
WARM_UP = 100  # images, while processes start


@dataclass(frozen=True)
class Timing:
    """Seconds until the first image, and images per second after the warm-up."""

    start_s: float
    rate: float


def write_links(phantoms: Path, folder: Path, num_images: int) -> None:
    """Makes a data set of hard links to the phantoms."""
    exams = pd.read_csv(phantoms / "train.csv")
    rows = []
    for number in range(num_images):
        exam = exams.iloc[number % len(exams)]
        patient_id, image_id = 1 + number // 4, 1 + number
        place = folder / f"train_images/{patient_id}/{image_id}.dcm"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(phantoms / f"train_images/{exam['patient_id']}/{exam['image_id']}.dcm")
        rows.append((patient_id, image_id, exam["laterality"], 0))
    columns = ["patient_id", "image_id", "laterality", "cancer"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "train.csv", index=False)


def measure(data: Path, cache: Path, engine: Executor, workers: int) -> Timing:
    """Prepares everything once."""
    located = require_images(read_exams(data, "train"), data, "train")
    times: list[float] = []
    start = time.perf_counter()
    summary = build_cache(
        located.exams,
        located.paths,
        Cache(cache),
        SETTINGS,
        workers=workers,
        executor=engine,
        on_image=lambda _: times.append(time.perf_counter()),
    )
    assert summary.num_prepared == len(times)
    rate = (len(times) - WARM_UP) / (times[-1] - times[WARM_UP - 1])
    return Timing(times[0] - start, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times mammo prepare --engine ray beside --engine local.")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        phantoms, data = Path(scratch) / "phantoms", Path(scratch) / "data"
        write_phantoms(phantoms, num_patients=13, workers=count_cores())
        write_links(phantoms, data, arguments.images)
        ratios = []
        for repeat in range(arguments.repeats):
            local = measure(data, Path(scratch) / f"local_{repeat}", map_unordered, arguments.workers)
            print(f"local: first image after {local.start_s:.1f} s, {local.rate:.1f} images/s", flush=True)
            start = time.perf_counter()
            with connect(None) as cluster:
                connected_s = time.perf_counter() - start
                cache = Path(scratch) / f"ray_{repeat}"
                ray = measure(data, cache, cluster.map_unordered, arguments.workers)
            print(
                f"ray: up after {connected_s:.1f} s, first image {ray.start_s:.1f} s later, "
                f"{ray.rate:.1f} images/s",
                flush=True,
            )
            ratios.append(ray.rate / local.rate)
        print(f"ray / local: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
