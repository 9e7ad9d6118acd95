"""Throws mutated files at the reader and mutated frames at the decoders.

It does so in a process that may crash, hang or run out of memory.

    python -m tests.campaigns.fuzz --executions 200000 --out /tmp/findings

Execution n is the same in every campaign of a seed. A finding leaves its file in OUT.
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

from data_prep.errors import ImageError
from data_prep.imageio import codecs
from data_prep.imageio.dicom import open_dicom
from data_prep.imageio.frame import Pixels
from data_prep.storage.byte_source import Span
from tests.campaigns.mutations import START, Mutated, mutate
from tests.data_prep.dicom_files import make_breast, make_dataset, write_dicom

REAL_FOLDERS = ["tricky_dicom", "malformed_dicom", "codec_wg04"]
START_BYTES, MAX_SEED_BYTES = 200, 2**19
FRAME_SUFFIX = ".frame"
MEMORY_BYTES = 2**31  # beyond what the process has when it starts
HANGS_AFTER_S = 30.0


@dataclass(frozen=True)
class Seed:
    """What is changed: a file, or the frame of one without its header.

    Attributes:
        syntax, layout: what a decoder must know of a frame; empty for a file.
    """

    content: bytes
    syntax: str = ""
    layout: codecs.Layout | None = None

    @classmethod
    def read(cls, path: Path) -> "Seed":
        """Reads a file; a frame's name tells what a decoder must know."""
        if path.suffix != FRAME_SUFFIX:
            return cls(path.read_bytes())
        _, syntax, *numbers = path.stem.split("_")
        rows, columns, allocated, stored, is_signed = map(int, numbers)
        return cls(path.read_bytes(), syntax, codecs.Layout(rows, columns, allocated, stored, is_signed == 1))


@dataclass
class Campaign:
    """What a campaign did.

    Attributes:
        outcomes: how many executions ended as an image, a decoded frame, or with which reason code.
        findings: one sentence each.
    """

    executions: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0


def write_seeds(folder: Path, real_data: Path | None = None) -> list[Path]:
    """Writes small files in every encoding and the compressed frames that they hold.

    With real data, its odd files that are not too large and their frames are there too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels = make_breast(70, 50)
    elements = {
        "BitsStored": 12,
        "WindowCenter": [2048, 100],
        "WindowWidth": [4096, 50],
        "PixelPaddingValue": 0,
    }
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [256, 0, 8], bytes(512)
    plain = [
        codecs.IMPLICIT_VR_LITTLE_ENDIAN,
        codecs.EXPLICIT_VR_LITTLE_ENDIAN,
        codecs.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
        codecs.RLE_LOSSLESS,
        codecs.JPEG_LOSSLESS_SV1,
        codecs.JPEG_2000_LOSSLESS,
        codecs.HTJ2K_LOSSLESS,
    ]
    seeds = [write_dicom(folder / f"{name}.dcm", pixels, transfer_syntax=name, **elements) for name in plain]
    jp2 = {"transfer_syntax": codecs.JPEG_2000_LOSSLESS, "jp2": True}
    seeds.append(write_dicom(folder / "jp2.dcm", pixels, **jp2, **elements))
    seeds.append(write_dicom(folder / "lut.dcm", pixels, VOILUTSequence=[lut], BitsStored=12))
    grey = (pixels >> 4).astype(np.uint8)
    frames = {
        codecs.JPEG_BASELINE: imagecodecs.jpeg8_encode(grey),
        codecs.JPEG_LS_LOSSLESS: imagecodecs.jpegls_encode(grey),
    }
    seeds += [_write_frame(folder / f"{name}.dcm", grey, name, frame) for name, frame in frames.items()]
    seeds += find_real_seeds(real_data) if real_data else []
    return seeds + [
        frame for number, path in enumerate(seeds) for frame in _write_frame_of(path, number, folder)
    ]


def _write_frame_of(path: Path, number: int, folder: Path) -> list[Path]:
    """Writes the compressed frame of a file, if it has one and is sound enough to be opened."""
    try:
        file = open_dicom(path)
    except ImageError:
        return []
    if file.header.transfer_syntax in codecs.NATIVE:
        return []
    layout = file.layout
    numbers = (layout.rows, layout.columns, layout.bits_allocated, layout.bits_stored, int(layout.is_signed))
    name = "_".join(map(str, (number, file.header.transfer_syntax, *numbers)))
    frame = folder / f"{name}{FRAME_SUFFIX}"
    frame.write_bytes(file.encoded.all())
    return [frame]


def _write_frame(path: Path, pixels: Pixels, name: str, frame: bytes) -> Path:
    dataset = make_dataset(pixels)
    write_dicom(path, pixels)
    dataset.file_meta = _make_meta(name)
    dataset.PixelData = encapsulate([frame])
    dataset.save_as(path, enforce_file_format=True)
    return path


def _make_meta(name: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = name
    return meta


def find_real_seeds(real_data: Path) -> list[Path]:
    """Returns the odd real files, sorted."""
    paths = (path for name in REAL_FOLDERS for path in (real_data / name).rglob("*") if path.is_file())
    return sorted(path for path in paths if START_BYTES < path.stat().st_size <= MAX_SEED_BYTES)


def make(seeds: list[Seed], seed: int, number: int) -> tuple[Seed, Mutated, np.random.Generator]:
    """Returns the sound file or frame of an execution, and what it is changed to."""
    generator = np.random.default_rng([seed, number])
    sound, other = (seeds[int(k)] for k in generator.integers(len(seeds), size=2))
    if not sound.syntax:
        return sound, mutate(sound.content, other.content, generator), generator
    behind_room = mutate(bytes(START) + sound.content, other.content, generator)  # which is left as it is
    return sound, Mutated(behind_room.content[START:], behind_room.is_cut), generator


def execute(path: Path, seeds: list[Seed], seed: int, number: int) -> str:
    """Reads a changed file or decodes a changed frame; returns `image` or the reason code.

    Raises:
        AssertionError: if an image is not what its header says, or was made of a cut frame.
    """
    sound, changed, generator = make(seeds, seed, number)
    level = int(generator.choice([0, 0, 1, 2, 5]))
    try:
        image = _read(path, replace(sound, content=changed.content), level)
    except ImageError as error:
        return error.reason
    if changed.is_cut:
        assert np.array_equal(image, _read(path, sound, level)), "an image of a cut frame"
    return "image" if not sound.syntax else "frame"


def _read(path: Path, seed: Seed, level: int) -> Pixels:
    if seed.layout:
        frame = Span.of(seed.content)
        level = min(level, codecs.find_max_level(frame, seed.syntax, seed.layout))
        return codecs.decode(frame, seed.syntax, seed.layout, level)  # which itself compares the size
    path.write_bytes(seed.content)
    file = open_dicom(path)
    level = min(level, file.max_level)
    image = file.read_frame(level).pixels
    sizes = zip(image.shape, (file.rows, file.columns), strict=True)  # averaging drops what fills no block
    assert all(size in {whole >> level, -(-whole >> level)} for size, whole in sizes), "another size"
    assert image.dtype.kind in "iu", "an image of no integers"
    return image


def run_executions(sink: Connection, seeds: list[Path], seed: int, numbers: range, folder: Path) -> None:
    """In the supervised process: says which execution begins, and what became of it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = MEMORY_BYTES + 1024 * _status_kilobytes("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders in C complain there
    contents = [Seed.read(path) for path in seeds]
    for number in numbers:
        sink.send((number, "begins"))
        try:
            sink.send((number, execute(folder / "a.dcm", contents, seed, number)))
        except BaseException as error:  # that is the question
            sink.send((number, f"!{type(error).__name__}: {error}"[:300]))
    sink.send((numbers.stop, "done"))


def _status_kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def fuzz(seeds: list[Path], numbers: range, *, seed: int = 0, out: Path | None = None) -> Campaign:
    """Runs executions one after the other, in processes that are replaced when they die or hang."""
    campaign, started, at = Campaign(), time.monotonic(), numbers.start
    contents = [Seed.read(path) for path in seeds]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        while at < numbers.stop:
            source, sink = context.Pipe(duplex=False)
            rest = range(at, numbers.stop)
            child = context.Process(target=run_executions, args=(sink, seeds, seed, rest, Path(folder)))
            child.start()
            sink.close()
            at, problem = _follow(source, child, campaign, at)
            if problem:
                _note(campaign, problem, at, make(contents, seed, at)[1].content, out)
                at += 1
    campaign.executions = len(numbers)
    campaign.seconds = time.monotonic() - started
    return campaign


def _follow(
    source: Connection, child: multiprocessing.process.BaseProcess, campaign: Campaign, at: int
) -> tuple[int, str]:
    """Listens to a process; returns the execution that it stopped at, and why it has not got further."""
    allowed = HANGS_AFTER_S + 60  # it imports first
    while True:
        try:
            if not source.poll(allowed):
                child.kill()
                child.join()
                campaign.outcomes["hang"] += 1
                return at, "hangs"
            at, said = source.recv()
        except EOFError:
            child.join()
            campaign.outcomes["crash"] += 1
            code = child.exitcode or 0
            return at, f"crash: {signal.Signals(-code).name if code < 0 else code}"
        allowed = HANGS_AFTER_S
        if said == "done":
            child.join()
            return at, ""
        if said.startswith("!"):
            campaign.outcomes["uncaught"] += 1
            child.kill()
            child.join()
            return at, said[1:]
        if said != "begins":
            campaign.outcomes[said] += 1


def _note(campaign: Campaign, problem: str, number: int, content: bytes, out: Path | None) -> None:
    campaign.findings.append(f"execution {number}: {problem}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{number}.dcm").write_bytes(content)


def main() -> None:
    """Runs a campaign on all cores and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("fuzz_findings"))
    options = parser.parse_args()
    real = os.environ.get("MAMMO_REAL_DATA")
    edges = np.linspace(0, options.executions, options.workers + 1).astype(int).tolist()
    parts = [range(a, b) for a, b in pairwise(edges)]
    with tempfile.TemporaryDirectory() as folder:
        seeds = write_seeds(Path(folder) / "seeds", Path(real) if real else None)
        run = partial(fuzz, seeds, seed=options.seed, out=options.out)
        with ThreadPoolExecutor(len(parts)) as pool:
            campaigns = list(pool.map(run, parts))
    outcomes = sum((each.outcomes for each in campaigns), Counter())
    findings = [finding for each in campaigns for finding in each.findings]
    figures = {
        "executions": options.executions,
        "seed": options.seed,
        "seed_files": len(seeds),
        "seconds": round(max(each.seconds for each in campaigns)),
        "outcomes": dict(outcomes.most_common()),
        "findings": findings,
    }
    print(json.dumps(figures, indent=2))
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
