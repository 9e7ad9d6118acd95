"""Times `mammo prepare` over many files: two workers against one, a resume with nothing to do, and memory.

Writes phantoms, which takes a while, and prepares them several times. Rates are taken between the first and
the last image, so that the start of Python and of the workers does not count.

    python tests/benchmarks/bench_prepare_many.py [--patients 500] [--data FOLDER]
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from data_prep.cache.build import build_cache
from data_prep.cache.folder import Cache, CacheSettings
from data_prep.parallel.resource_limits import count_cores
from data_prep.phantom.dataset import write_phantoms
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.rsna.exam_table import read_exams, require_images

SETTINGS = CacheSettings(split="train", prepare=PrepareSettings())
POLL_S = 0.05


class MemoryWatch(threading.Thread):
    """Notes the resident memory of this process and its children, in MB, about twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ends = threading.Event()
        self.samples: list[tuple[float, float]] = []

    def run(self) -> None:
        while not self.ends.wait(POLL_S):
            self.samples.append((resident_mb("self"), max(map(resident_mb, child_ids()), default=0.0)))


def resident_mb(process: str) -> float:
    """Returns the resident memory of a process, 0 where it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * 4096 / 2**20


def child_ids() -> list[str]:
    """Returns the ids of the workers, whichever thread has started them."""
    return [pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]


def measure(data: Path, cache: Path, workers: int) -> None:
    """Prepares the data and prints the rate and the memory at a tenth of the way and at the end."""
    located = require_images(read_exams(data, "train"), data, "train")
    times: list[float] = []
    watch = MemoryWatch()
    watch.start()
    summary = build_cache(
        located.exams,
        located.paths,
        Cache(cache),
        SETTINGS,
        workers=workers,
        on_image=lambda _: times.append(time.perf_counter()),
    )
    watch.ends.set()
    watch.join()
    rate = (len(times) - 1) / (times[-1] - times[0])
    early, late = (watch.samples[int(share * len(watch.samples))] for share in (0.1, 0.95))
    largest = max(sample[1] for sample in watch.samples)
    print(f"{summary.num_prepared} images, {workers} workers: {rate:.1f} images/s", flush=True)
    print(f"  driver {early[0]:.0f} MB at a tenth, {late[0]:.0f} MB late; largest worker {largest:.0f} MB")


def measure_resume(data: Path, cache: Path) -> None:
    """Times the whole command where there is nothing to do."""
    command = [sys.executable, "-m", "pipeline", "prepare", str(data), "--cache", str(cache)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"resume: {time.perf_counter() - start:.2f} s: {done.stdout.strip().splitlines()[-2]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times mammo prepare over many files.")
    parser.add_argument("--patients", type=int, default=500, help="Phantom patients, four images each.")
    parser.add_argument("--data", type=Path, help="A data set to use instead.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = arguments.data or Path(scratch) / "data"
        if arguments.data is None:
            write_phantoms(data, num_patients=arguments.patients, workers=count_cores())
        for repeat in range(2):
            for workers in (1, 2):
                measure(data, Path(scratch) / f"cache_{workers}_{repeat}", workers)
        measure_resume(data, Path(scratch) / "cache_2_0")


if __name__ == "__main__":
    main()
