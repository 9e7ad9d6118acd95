"""Sends very many files through `prepare` at once and watches memory, processes, handles and what is left.

python -m tests.campaigns.load --images 20000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from data_prep.imageio import codecs
from tests.data_prep.dicom_files import make_breast, write_dicom

SYNTAXES = [
    codecs.EXPLICIT_VR_LITTLE_ENDIAN,
    codecs.JPEG_2000_LOSSLESS,
    codecs.JPEG_LOSSLESS_SV1,
    codecs.RLE_LOSSLESS,
]
SAMPLE_EVERY_S = 0.1


@dataclass
class Watched:
    """What `prepare` took and left.

    Attributes:
        rss_mb: memory of the command and its workers together, at each look.
        handles: open files of the command, at each look.
        left_processes, left_files: what was there after its end and should not be.
    """

    exit_code: int = 0
    seconds: float = 0.0
    rss_mb: list[float] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)
    left_processes: int = 0
    left_files: list[str] = field(default_factory=list)

    def growth_mb(self) -> float:
        """How much the peak of the last third lies above that of the third before it."""
        third = len(self.rss_mb) // 3
        return max(self.rss_mb[2 * third :]) - max(self.rss_mb[third : 2 * third])


def write_load(folder: Path, *, num_images: int, num_files: int, share_bad: float) -> int:
    """Makes a data set of hard links to few files, some of them cut; returns how many images are bad."""
    store = folder / "store"
    rows, num_bad = [], round(share_bad * num_images)
    for number in range(num_files):
        options = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096}
        pixels = make_breast(96 + number % 7, 64, seed=number)
        write_dicom(store / f"{number}.dcm", pixels, transfer_syntax=SYNTAXES[number % 4], **options)
    whole = (store / "0.dcm").read_bytes()
    (store / "bad.dcm").write_bytes(whole[: len(whole) // 2])
    for number in range(num_images):
        patient, image = number // 4 + 1, number + 1
        is_bad = number * num_bad // num_images != (number + 1) * num_bad // num_images
        place = folder / f"train_images/{patient}/{image}.dcm"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(store / ("bad.dcm" if is_bad else f"{number % num_files}.dcm"))
        rows.append((patient, image, "LR"[number % 2], patient % 25 // 24))
    columns = ["patient_id", "image_id", "laterality", "cancer"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "train.csv", index=False)
    return num_bad


def prepare_watched(data: Path, cache: Path, *, workers: int) -> Watched:
    """Prepares a data set in a session of its own, with a folder for temporary files of its own."""
    watched, started = Watched(), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pipeline", "prepare", str(data), "--cache", str(cache)]
        command += ["--set", "prepare.side=32", "--workers", str(workers), "--allow-failures"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": temporary}
        with subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as run:
            while run.poll() is None:
                members = find_session(run.pid)
                watched.rss_mb.append(sum(read_rss_mb(pid) for pid in members))
                watched.handles.append(count_handles(run.pid))
                time.sleep(SAMPLE_EVERY_S)
        watched.exit_code = run.returncode
        watched.seconds = time.monotonic() - started
        watched.left_processes = len(find_left(run.pid))
        watched.left_files = [path.name for path in Path(temporary).iterdir()]
    watched.left_files += [
        path.name for path in cache.rglob("*") if path.name.startswith((".tmp-", "journal"))
    ]
    return watched


def find_session(leader: int) -> list[int]:
    """Returns the processes of a session."""
    return [
        pid
        for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
        if _session_of(pid) == leader
    ]


def find_left(leader: int) -> list[int]:
    """Returns the processes of a session that has ended, after a while for those that notice it."""
    deadline = time.monotonic() + 120
    while (left := find_session(leader)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:  # it ended meanwhile
        return -1


def read_rss_mb(pid: int) -> float:
    """Returns a process's resident memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, IndexError):
        return 0.0


def count_handles(pid: int) -> int:
    """Returns how many files a process has open."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0


def main() -> None:
    """Runs the load and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data, cache = Path(name) / "data", Path(name) / "cache"
        num_bad = write_load(data, num_images=options.images, num_files=200, share_bad=0.01)
        watched = prepare_watched(data, cache, workers=options.workers)
        counts = pd.read_csv(cache / "manifest.csv")["status"].value_counts().to_dict()
    figures = {
        "images": options.images,
        "bad": num_bad,
        "counts": counts,
        "exit_code": watched.exit_code,
        "seconds": round(watched.seconds),
        "peak_rss_mb": round(max(watched.rss_mb)),
        "growth_of_the_last_third_mb": round(watched.growth_mb(), 1),
        "most_handles": max(watched.handles),
        "left_processes": watched.left_processes,
        "left_files": watched.left_files,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
