"""Prepared images as they are read: from a PNG each, or from the pack of all.

`pack.json` says of which manifest `images.npy` was made. A pack of another manifest is left aside.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_prep.cache.folder import Cache
from data_prep.cache.tables import damaged, select_prepared
from data_prep.errors import UserError
from data_prep.imageio.frame import Image
from data_prep.imageio.raster import PNG_SIGNATURE, encode_png
from data_prep.preprocessing.settings import LARGEST_SIDE, PrepareSettings
from data_prep.storage.atomic import make_folder, write_bytes
from data_prep.storage.files import parse_json, read_own, require_own

PNG_HEADER = struct.Struct(">8s4x4s2I2B")  # signature, name of the chunk, width, height, depth, colour type


class PreparedImages(Protocol):
    """Prepared images by row, which cost next to nothing to send to another process."""

    def __len__(self) -> int:
        """Returns the number of rows."""

    def __getitem__(self, row: int, /) -> Image:
        """Reads one image, to do with as one likes.

        Raises:
            UserError: if it cannot be read.
        """


@dataclass(frozen=True)
class PngImages:
    """Images that are read from a PNG each."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int, /) -> Image:
        return read_image(self.paths[row])


class PackedImages:
    """Images that are read from a pack; row k is the pack's row `rows[k]`.

    Raises:
        UserError: if the pack cannot be read.
    """

    def __init__(self, path: Path, rows: NDArray[np.intp]) -> None:
        self._path, self._rows = path, rows
        self._identity = _identify(path)
        self._array: NDArray[Any] | None = map_array(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int, /) -> Image:
        if self._array is None:
            self._array = self._map_again()
        return np.array(self._array[self._rows[row]])

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the pixels behind: another process maps the file itself."""
        return self.__dict__ | {"_array": None}

    def _map_again(self) -> NDArray[Any]:
        """Maps the file that the rows were counted in: another pack's row k may be another image."""
        array = map_array(self._path)
        if _identify(self._path) != self._identity:
            raise UserError(f"{self._path} was packed anew while in use: run the same command again")
        return array


def _identify(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def open_images(cache: Cache, exams: pd.DataFrame) -> PreparedImages:
    """Returns each row's prepared image: from the pack where a current one holds them, else from the PNGs.

    Raises:
        UserError: if the folder is not a finished cache, or its pack cannot be read.
    """
    if is_packed(cache):
        packed = pd.Index(select_prepared(cache.read_manifest())["image_id"])
        rows = packed.get_indexer(exams["image_id"])
        if (rows >= 0).all():
            return PackedImages(pack_path(cache), rows)
    return PngImages(cache.image_paths(exams))


def pack_path(cache: Cache) -> Path:
    """All prepared images, [N, side, side], in the manifest's order."""
    return cache.folder / "images.npy"


def seal_path(cache: Cache) -> Path:
    """Of which manifest the pack was made; written last, removed first."""
    return cache.folder / "pack.json"


def is_packed(cache: Cache) -> bool:
    """Tells whether there is a pack of the manifest as it is now."""
    try:
        seal = parse_json(read_own(seal_path(cache)))
    except (OSError, ValueError):
        return False
    return seal == make_seal(cache) and pack_path(cache).exists()


def make_seal(cache: Cache) -> dict[str, Any]:
    """Returns what `pack.json` says if the pack is one of the manifest as it is now."""
    return {
        "manifest_sha256": hashlib.sha256(read_own(cache.manifest_path)).hexdigest(),
        "num_images": len(select_prepared(cache.read_manifest())),
    }


def map_array(path: Path) -> NDArray[Any]:
    """Maps a pack into memory, read-only.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        return np.asarray(np.load(require_own(path), mmap_mode="r"))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged: make it anew with `mammo pack`, or remove it") from error


def image_type(settings: PrepareSettings) -> np.dtype[Any]:
    """Returns the type of the pixels of prepared images."""
    return np.dtype(np.uint8 if settings.bit_depth == 8 else np.uint16)


def read_exactly(path: Path, sha256: str, settings: PrepareSettings) -> Image:
    """Reads a PNG that must be the one that the manifest knows.

    Raises:
        UserError: if it is missing, damaged, or another one.
    """
    content = read_image_file(path)
    if hashlib.sha256(content).hexdigest() != sha256:  # not decoded: libpng talks to the terminal of damage
        raise UserError(
            f"{path} is not the image that manifest.csv knows: remove it and run the `mammo prepare` "
            "command of this cache again"
        )
    image = decode_image(content, path)
    if image.shape != 2 * (settings.side,) or image.dtype != image_type(settings):
        raise UserError(
            f"{path} is {image.dtype} {list(image.shape)} where settings.toml says {settings.bit_depth} bits "
            f"and side {settings.side}: remove the cache and make it anew"
        )
    return image


def write_image(path: Path, image: Image) -> str:
    """Writes a PNG atomically and returns the file's SHA-256."""
    content = encode_png(image)
    make_folder(path.parent)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def read_image(path: Path) -> Image:
    """Reads a PNG of the cache.

    Raises:
        UserError: if it is missing or damaged.
    """
    return decode_image(read_image_file(path), path)


def read_image_file(path: Path) -> bytes:
    """Returns the bytes of a PNG of the cache.

    Raises:
        UserError: if it is missing or cannot be read.
    """
    again = "run the `mammo prepare` command of this cache again"
    try:
        return read_own(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} cannot be read, it is missing: {again}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): remove it and {again}") from error


def decode_image(content: bytes, path: Path) -> Image:
    """Returns the image of a PNG that was read from `path`.

    Raises:
        UserError: if it is damaged.
    """
    if not _is_ours(content):
        raise damaged(path)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise damaged(path)
    return np.asarray(image, np.uint16) if image.dtype == np.uint16 else np.asarray(image, np.uint8)


def _is_ours(content: bytes) -> bool:
    """Whether it begins like a grey PNG of a size that `prepare` makes; OpenCV would decode anything."""
    if len(content) < PNG_HEADER.size:
        return False
    signature, chunk, width, height, depth, colour_type = PNG_HEADER.unpack_from(content)
    is_grey = (signature, chunk, colour_type) == (PNG_SIGNATURE, b"IHDR", 0) and depth in {8, 16}
    return is_grey and 0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE
