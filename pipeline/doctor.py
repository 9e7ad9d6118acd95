"""Whether this installation and this machine can do the work, and what mends what cannot.

Knows no other module that needs a package: they are looked up by their metadata, and what may crash runs in a
child process. `pipeline.__main__` asks it where the command line itself cannot be loaded.
"""

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.machine import count_cores, count_memory_bytes

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "mammo-vit"
OPENCV = [
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
]
SECONDS = 120  # for a child process, which imports torch from a cold disk

ENOUGH_DISK_GB = 5.0  # a cache of all RSNA images
ENOUGH_MEMORY_GB = 4.0  # a training of ViT-Ti on a CPU, batch 32

PACKAGES = {
    "numpy": "numpy",
    "pandas": "pandas",
    "typer": "typer",
    "torch": "torch",
    "timm": "timm",
    "cv2": "opencv-python-headless",
    "albumentations": "albumentations",
    "imagecodecs": "imagecodecs",
    "PIL": "pillow",
    "pydicom": "pydicom",
    "sklearn": "scikit-learn",
}
"""The package of each module that is compiled, or built upon by one, or needed to say anything at all."""
COMPATIBLE = "from pipeline.torchvision_compat import allow_torchvision_import as allow; allow()"
TORCHVISION = "import torchvision; print(torchvision.__version__)"
CODECS = """
import numpy as np
from data_prep import codecs
from data_prep.source import Span
pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
names = {
    "JPEG 2000": codecs.JPEG_2000_LOSSLESS,
    "HTJ2K": codecs.HTJ2K_LOSSLESS,
    "JPEG": codecs.JPEG_LOSSLESS_SV1,
}
layout = codecs.Layout(64, 64, bits_allocated=16, bits_stored=12, is_signed=False)
for name, syntax in names.items():
    stream = codecs.encode(pixels, syntax, bits_stored=12)
    assert np.array_equal(codecs.decode(Span.of(stream), syntax, layout), pixels), name
print(", ".join(names))
"""
GPU = """
import torch
if torch.cuda.is_available():
    gigabytes = torch.cuda.get_device_properties(0).total_memory / 1e9
    bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    print(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {gigabytes:.0f} GB, {bf16}")
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        found: what is there.
        problem: what is wrong with it; empty if nothing is.
        remedy: a command, or what else to do.
    """

    name: str
    found: str
    problem: str = ""
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """What is wrong and what mends it."""
        return f"{self.name}: {self.problem}; mend it with: {self.remedy}"


def examine(folder: Path = Path()) -> Iterator[Finding]:
    """Yields what was found, one thing after the other; `folder` is where there should be space."""
    looks: list[Callable[[], Finding]] = [
        lambda: Finding("Python", platform.python_version()),
        look_at_packages,
        look_at_opencv,
        look_at_imports,
        look_at_torchvision,
        look_at_codecs,
        look_at_gpu,
        lambda: Finding("cores", str(count_cores())),
        look_at_memory,
        lambda: look_at_disk(folder),
    ]
    for look in looks:
        yield look()


def look_at_packages() -> Finding:
    """What mammo requires, by the versions that its own metadata ask for."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return Finding("packages", "packaging: none", "cannot be compared", "pip install packaging")
    try:
        requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        return Finding("packages", "", f"{DISTRIBUTION} is not installed", "pip install -c constraints.txt .")
    needed = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = {str(each): found for each in needed if (found := _find_version(each)) != ""}
    if not wrong:
        return Finding("packages", f"{len(needed)} as required")
    found = ", ".join(f"{needs} (found {found})" for needs, found in wrong.items())
    command = " ".join(f"'{needs}'" for needs in wrong)
    return Finding("packages", found, "other versions than required", f"pip install {command}")


def _find_version(requirement: "Requirement") -> str:
    """Returns the version that does not fit, or an empty text if it does."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "none"
    return "" if requirement.specifier.contains(found, prereleases=True) else found


def look_at_opencv() -> Finding:
    """OpenCV, which comes in four packages that write into the same folder."""
    present = [name for name in OPENCV if _is_installed(name)]
    if len(present) < 2:
        return Finding("OpenCV", "".join(present) or "none")
    remedy = f"pip uninstall -y {' '.join(present)} && pip install opencv-python-headless"
    return Finding("OpenCV", " and ".join(present), "installed more than once, so parts of both", remedy)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def look_at_imports() -> Finding:
    """Whether the compiled packages can be loaded at all."""
    together, _ = run_child(f"{COMPATIBLE}; import {', '.join(PACKAGES)}")
    if together:
        return Finding("imports", ", ".join(PACKAGES))
    each = {
        name: run_child(f"{COMPATIBLE if name == 'timm' else 'pass'}; import {name}") for name in PACKAGES
    }
    broken = {name: said for name, (is_sound, said) in each.items() if not is_sound}
    found = "; ".join(f"{name}: {said}" for name, said in broken.items())
    packages = " ".join(PACKAGES[name] for name in broken)
    return Finding("imports", found, "cannot be loaded", f"pip install --force-reinstall {packages}")


def look_at_torchvision() -> Finding:
    """Torchvision, which must be built for the very torch that is there; mammo itself can do without."""
    is_sound, said = run_child(TORCHVISION)
    if is_sound:
        return Finding("torchvision", said)
    return Finding("torchvision", f"{said} (mammo works around it)")


def look_at_codecs() -> Finding:
    """Encodes and decodes a tiny image with each codec."""
    is_sound, said = run_child(CODECS)
    if is_sound:
        return Finding("codecs", said)
    return Finding("codecs", said, "do not work", "pip install --force-reinstall imagecodecs pillow")


def look_at_gpu() -> Finding:
    """GPUs that torch can use; a driver that it cannot use is a problem, no GPU is none."""
    is_sound, said = run_child(GPU)
    if said and is_sound:
        return Finding("GPU", said)
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "none: training takes the CPU")
    remedy = "install a torch for your CUDA, see pytorch.org/get-started, or update the driver"
    return Finding("GPU", said or "nvidia-smi is there, but torch finds no GPU", "not usable", remedy)


def look_at_memory() -> Finding:
    """The memory of the machine, or of the container."""
    whole = count_memory_bytes() / 1e9
    found = f"{whole:.0f} GB"
    if whole < ENOUGH_MEMORY_GB:
        return Finding("memory", found, "little", "lower train.batch_size, or raise train.accumulation")
    return Finding("memory", found)


def look_at_disk(folder: Path) -> Finding:
    """Space where the command is given."""
    free = shutil.disk_usage(folder).free / 1e9
    found = f"{free:.0f} GB free in {folder.resolve()}"
    if free < ENOUGH_DISK_GB:
        return Finding("disk", found, "less than a cache of all RSNA images needs", "put CACHE elsewhere")
    return Finding("disk", found)


def run_child(program: str) -> tuple[bool, str]:
    """Runs Python and returns whether it ended well, and the last line that it said."""
    try:
        ended = subprocess.run(  # noqa: S603  programs of this module alone  # nosec B603
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {SECONDS} s"
    lines = (ended.stdout if ended.returncode == 0 else ended.stderr).strip().splitlines()
    said = lines[-1] if lines else "" if ended.returncode == 0 else f"ended with {ended.returncode}"
    return ended.returncode == 0, said
