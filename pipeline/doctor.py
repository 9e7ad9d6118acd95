"""Whether this installation and this machine can do the work, and what mends what cannot.

Knows no other module that needs a package: they are looked up by their metadata, and what may crash runs in a
child process. `pipeline.__main__` asks it where the command line itself cannot be loaded.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.parallel.resource_limits import SHARED_MEMORY, count_cores, count_memory_bytes

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
ENOUGH_SHARED_GB = 1.0  # of loader workers: two waiting batches each, of 8 MB (32 images of 512 px) and more
C_COMPILERS = ["cc", "gcc", "clang"]

PACKAGES_BY_MODULE = {
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
COMPATIBLE = "from pipeline.runtime.torchvision_compat import allow_torchvision_import as allow; allow()"
TORCHVISION = "import torchvision; print(torchvision.__version__)"
CODECS = """
import numpy as np
from data_prep.imageio import codecs
from data_prep.storage.byte_source import Span
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
import json, torch
if torch.cuda.is_available():
    count = torch.cuda.device_count()
    gigabytes = torch.cuda.get_device_properties(0).total_memory / 1e9
    bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    found = f"{count} x {torch.cuda.get_device_name(0)}, {gigabytes:.0f} GB, {bf16}"
    capabilities = [torch.cuda.get_device_capability(number) for number in range(count)]
    print(json.dumps([found, capabilities, torch.cuda.get_arch_list() if torch.version.cuda else []]))
"""
KERNELS = """
import sys, torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
try:
    for number in range(torch.cuda.device_count()):
        x = torch.randn(3, 2, 6, 128, 64, device=f"cuda:{number}", dtype=dtype, requires_grad=True)
        (x @ x.transpose(-2, -1)).sum().item()
        with sdpa_kernel(fused):
            scaled_dot_product_attention(*x).sum().backward()
        assert x.grad.isfinite().all(), "gradients that are not finite"
except (RuntimeError, AssertionError) as error:
    sys.exit(str(error).partition("\\n")[0])
print("matrix product and fused attention run")
"""
"""The first line of an error alone: the last of CUDA's is advice to programmers."""


@dataclass(frozen=True)
class Check:
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
        return f"{self.name}: {self.problem}; fix it with: {self.remedy}"


def run_checks(folder: Path = Path()) -> Iterator[Check]:
    """Yields what was found, one thing after the other; `folder` is where there should be space."""
    checks: list[Callable[[], Check]] = [
        lambda: Check("Python", platform.python_version()),
        check_packages,
        check_opencv,
        check_imports,
        check_torchvision,
        check_codecs,
        check_gpu,
        check_compiler,
        lambda: Check("cores", str(count_cores())),
        check_memory,
        check_shared_memory,
        lambda: check_disk(folder),
    ]
    for check in checks:
        yield check()


def check_packages() -> Check:
    """What mammo requires, by the versions that its own metadata ask for."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return Check("packages", "packaging: none", "cannot be compared", "pip install packaging")
    try:
        requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        return Check("packages", "", f"{DISTRIBUTION} is not installed", "pip install -c constraints.txt .")
    needed = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = {str(each): found for each in needed if (found := _find_version(each)) != ""}
    if not wrong:
        return Check("packages", f"{len(needed)} as required")
    found = ", ".join(f"{needs} (found {found})" for needs, found in wrong.items())
    command = " ".join(f"'{needs}'" for needs in wrong)
    return Check("packages", found, "other versions than required", f"pip install {command}")


def _find_version(requirement: "Requirement") -> str:
    """Returns the version that does not fit, or an empty text if it does."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "none"
    return "" if requirement.specifier.contains(found, prereleases=True) else found


def check_opencv() -> Check:
    """OpenCV, which comes in four packages that write into the same folder."""
    present = [name for name in OPENCV if _is_installed(name)]
    if len(present) < 2:
        return Check("OpenCV", "".join(present) or "none")
    remedy = f"pip uninstall -y {' '.join(present)} && pip install opencv-python-headless"
    return Check("OpenCV", " and ".join(present), "installed more than once, so parts of both", remedy)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_imports() -> Check:
    """Whether the compiled packages can be loaded at all."""
    together, _ = run_child(f"{COMPATIBLE}; import {', '.join(PACKAGES_BY_MODULE)}")
    if together:
        return Check("imports", ", ".join(PACKAGES_BY_MODULE))
    each = {
        name: run_child(f"{COMPATIBLE if name == 'timm' else 'pass'}; import {name}")
        for name in PACKAGES_BY_MODULE
    }
    broken = {name: said for name, (is_sound, said) in each.items() if not is_sound}
    found = "; ".join(f"{name}: {said}" for name, said in broken.items())
    packages = " ".join(PACKAGES_BY_MODULE[name] for name in broken)
    return Check("imports", found, "cannot be loaded", f"pip install --force-reinstall {packages}")


def check_torchvision() -> Check:
    """Torchvision, which must be built for the very torch that is there; mammo itself can do without."""
    is_sound, said = run_child(TORCHVISION)
    if is_sound:
        return Check("torchvision", said)
    what = "not built for this torch" if _is_installed("torchvision") else "none"
    return Check("torchvision", f"{what}: mammo works without it")


def check_codecs() -> Check:
    """Encodes and decodes a tiny image with each codec."""
    is_sound, said = run_child(CODECS)
    if is_sound:
        return Check("codecs", said)
    return Check("codecs", said, "do not work", "pip install --force-reinstall imagecodecs pillow")


def check_gpu() -> Check:
    """GPUs that torch can use; a driver or a GPU that it cannot use is a problem, no GPU is none."""
    is_sound, said = run_child(GPU)
    if said and is_sound:
        return check_kernels(*json.loads(said))
    if shutil.which("nvidia-smi") is None:
        return Check("GPU", "none: training takes the CPU")
    remedy = "install a torch for your CUDA, see pytorch.org/get-started, or update the driver"
    return Check("GPU", said or "nvidia-smi is there, but torch finds no GPU", "not usable", remedy)


def check_kernels(gpus: str, capabilities: list[tuple[int, int]], architectures: list[str]) -> Check:
    """What torch can do on the GPUs that it has found, given what it was compiled for, if that is known."""
    for major, minor in capabilities if architectures else []:
        if not any(runs_on(architecture, (major, minor)) for architecture in architectures):
            found = f"{gpus}; this torch is built for {' '.join(architectures)}"
            return Check("GPU", found, f"no kernels for sm_{major}{minor}", _remedy_for((major, minor)))
    is_sound, said = run_child(KERNELS)
    if is_sound:
        return Check("GPU", f"{gpus}; {said}")
    remedy = "update the driver, install another torch, or work on the CPU with CUDA_VISIBLE_DEVICES="
    return Check("GPU", f"{gpus}; {said}", "computes nothing, or has no fused attention", remedy)


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether what was compiled for an architecture, such as "sm_86", runs on a GPU of this capability.

    Machine code runs on later GPUs of the same generation, PTX (`compute_`) on all later ones; what ends in
    "a" nowhere else, what ends in "f" in its generation (CUDA C++ Programming Guide, compute capabilities).
    """
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if parts is None:
        return False
    built = int(parts[2]), int(parts[3])
    if parts[4] == "a":
        return capability == built
    is_any_later = parts[1] == "compute" and not parts[4]
    return capability >= built and (is_any_later or capability[0] == built[0])


def _remedy_for(capability: tuple[int, int]) -> str:
    if capability >= (7, 5):
        return "pip install --upgrade torch torchvision, or a torch for your GPU, see pytorch.org/get-started"
    return "install a torch that is older than 2.15 and built with CUDA 12.6, see pytorch.org/get-started"


def check_compiler() -> Check:
    """A C compiler and Python's headers, which torch.compile asks for and nothing else."""
    compiler = next(filter(shutil.which, [os.environ.get("CC", ""), *C_COMPILERS]), None)
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    lacking = [*([] if compiler else ["no compiler"]), *([] if headers.exists() else [f"no {headers}"])]
    if not lacking:
        return Check("C compiler", str(compiler))
    return Check("C compiler", f"{' and '.join(lacking)}: only train.compile needs that")


def check_memory() -> Check:
    """The memory of the machine, or of the container."""
    whole = count_memory_bytes() / 1e9
    found = f"{whole:.0f} GB"
    if whole < ENOUGH_MEMORY_GB:
        return Check("memory", found, "little", "lower train.batch_size, or raise train.accumulation")
    return Check("memory", found)


def check_shared_memory() -> Check:
    """What loader workers pass batches through; containers often have 64 MB."""
    if not SHARED_MEMORY.is_dir():
        return Check("shared memory", f"no {SHARED_MEMORY}")
    free = shutil.disk_usage(SHARED_MEMORY).free / 1e9
    found = f"{free:.2f} GB free in {SHARED_MEMORY}"
    if free < ENOUGH_SHARED_GB:
        remedy = "docker run --shm-size 8g, or --set train.workers=0"
        return Check("shared memory", found, "little for workers that pass on batches of images", remedy)
    return Check("shared memory", found)


def check_disk(folder: Path) -> Check:
    """Space where the command is given."""
    free = shutil.disk_usage(folder).free / 1e9
    found = f"{free:.0f} GB free in {folder.resolve()}"
    if free < ENOUGH_DISK_GB:
        return Check("disk", found, "less than a cache of all RSNA images needs", "put CACHE elsewhere")
    return Check("disk", found)


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
