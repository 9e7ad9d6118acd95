"""Compares how fast one process reads a cache's images, in random order, from PNG files and from their pack.

Makes its own cache in a temporary folder: half-black smooth pictures with film grain, which compress as
mammograms do. All files are in the page cache, so this is the cost of the decoder and of the copy.

    python tests/benchmarks/bench_pack.py [--images 2000] [--side 512]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.images import PreparedImages, open_images, write_image
from data_prep.cache.pack import write_pack
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.rsna.exam_table import Split


def draw(seed: int, side: int) -> np.ndarray:
    """Returns a smooth bright half with grain, and black."""
    generator = np.random.default_rng(seed)
    coarse = np.kron(generator.uniform(60, 180, (side // 32, side // 32)), np.ones((32, 32)))
    image = coarse + generator.normal(0, 2, (side, side))
    image[:, side // 2 + int(generator.integers(-side // 8, side // 8)) :] = 0
    return image.astype(np.uint8)


def make_cache(
    folder: Path, num_images: int, side: int, *, split: Split = "train", num_drawn: int | None = None
) -> Cache:
    """Writes what `prepare` would; images beyond those drawn are links to them, every eighth is a cancer."""
    cache = Cache(folder)
    cache.open_for(CacheSettings(split=split, prepare=PrepareSettings(side=side)))
    ids = [str(1000 + number) for number in range(num_images)]
    exams = pd.DataFrame({"patient_id": ids, "image_id": ids, "laterality": "L"})
    if split == "train":
        exams["cancer"] = (np.arange(num_images) % 8 == 0).astype(int)
    else:
        exams["prediction_id"] = exams["patient_id"] + "_L"
    records: dict[str, dict[str, str]] = {}
    for number, image_id in enumerate(ids):
        path, original = cache.image_path(image_id, image_id), ids[number % (num_drawn or num_images)]
        if original == image_id:
            checksum = write_image(path, draw(number, side))
        else:
            path.parent.mkdir(parents=True)
            path.hardlink_to(cache.image_path(original, original))
            checksum = records[original]["image_sha256"]
        records[image_id] = {"patient_id": image_id, "image_id": image_id, "image_sha256": checksum}
    cache.write_exams(exams)
    cache.write_tables(records)
    return cache


def reads_per_second(images: PreparedImages, repeats: int = 3) -> float:
    """Reads all images in random order and returns the fastest of some rounds."""
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for row in order:
            images[row]
        times.append(time.perf_counter() - start)
    return len(images) / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares reading from PNG files and from a pack.")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=512)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = make_cache(Path(folder), arguments.images, arguments.side)
        exams = cache.read_exams()
        files_mb = sum(path.stat().st_size for path in cache.image_paths(exams)) / 1e6
        from_files = reads_per_second(open_images(cache, exams))
        start = time.perf_counter()
        path = write_pack(cache, workers=0)
        seconds = time.perf_counter() - start
        from_pack = reads_per_second(open_images(cache, exams))
        print(f"PNG files {files_mb:8.0f} MB {from_files:9.0f} reads/s")
        print(
            f"pack      {path.stat().st_size / 1e6:8.0f} MB {from_pack:9.0f} reads/s, made in {seconds:.1f} s"
        )
        print(f"ratio     {from_pack / from_files:8.1f}x")


if __name__ == "__main__":
    main()
