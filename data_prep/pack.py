"""One memory-mapped file of all prepared images, for GPUs that outrun PNG files; and reading from either.

`pack.json` says of which manifest `images.npy` was made. A pack of another manifest is left aside.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_prep.cache import PREPARED, Cache, decode_image, read_image, read_image_file
from data_prep.engine import map_unordered
from data_prep.errors import UserError
from data_prep.files import preallocate, remove_temporaries, write_json
from data_prep.frame import Image
from data_prep.locks import locked
from data_prep.settings import PrepareSettings


class Images(Protocol):
    """Prepared images by row, which cost next to nothing to send to another process."""

    def __len__(self) -> int:
        """Returns the number of rows."""

    def __getitem__(self, row: int, /) -> Image:
        """Reads one image, to do with as one likes.

        Raises:
            UserError: if it cannot be read.
        """


@dataclass(frozen=True)
class ImageFiles:
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
            raise UserError(f"{self._path} was packed anew while in use: give the same command again")
        return array


def _identify(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def open_images(cache: Cache, exams: pd.DataFrame) -> Images:
    """Returns each row's prepared image: from the pack where a current one holds them, else from the PNGs.

    Raises:
        UserError: if the folder is no finished cache, or its pack cannot be read.
    """
    if is_packed(cache):
        packed = pd.Index(select_prepared(cache.read_manifest())["image_id"])
        rows = packed.get_indexer(exams["image_id"])
        if (rows >= 0).all():
            return PackedImages(pack_path(cache), rows)
    return ImageFiles(cache.image_paths(exams))


def pack_path(cache: Cache) -> Path:
    """All prepared images, [N, side, side], in the manifest's order."""
    return cache.folder / "images.npy"


def seal_path(cache: Cache) -> Path:
    """Of which manifest the pack was made; written last, removed first."""
    return cache.folder / "pack.json"


def is_packed(cache: Cache) -> bool:
    """Tells whether there is a pack of the manifest as it is now."""
    try:
        seal = json.loads(seal_path(cache).read_bytes())
    except (OSError, ValueError):
        return False
    return seal == _make_seal(cache) and pack_path(cache).exists()


def _make_seal(cache: Cache) -> dict[str, Any]:
    return {
        "manifest_sha256": hashlib.sha256(cache.manifest_path.read_bytes()).hexdigest(),
        "num_images": len(select_prepared(cache.read_manifest())),
    }


def select_prepared(manifest: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of images that could be prepared."""
    return manifest[manifest["status"] == PREPARED]


def map_array(path: Path) -> NDArray[Any]:
    """Maps a pack into memory, read-only.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged: make it anew with `mammo pack`, or remove it") from error


def find_pack_problem(cache: Cache) -> str | None:
    """Returns what is wrong with a pack but for its pixels; no pack is no problem."""
    path, seal = pack_path(cache), seal_path(cache)
    if not path.exists() and not seal.exists():
        return None
    if not is_packed(cache):
        return (
            f"{path.name} is no whole pack of this manifest and is not used: give `mammo pack` again, "
            f"or remove {path.name} and {seal.name}"
        )
    settings = cache.settings().prepare
    try:
        array = map_array(path)
    except UserError as error:
        return str(error)
    shape = (len(select_prepared(cache.read_manifest())), settings.side, settings.side)
    if (array.shape, array.dtype) == (shape, image_type(settings)):
        return None
    return (
        f"{path} is {array.dtype} {list(array.shape)}, not {image_type(settings)} {list(shape)}: pack it anew"
    )


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
            f"{path} is not the image that manifest.csv knows: remove it and give the `mammo prepare` "
            "command of this cache again"
        )
    image = decode_image(content, path)
    if image.shape != 2 * (settings.side,) or image.dtype != image_type(settings):
        raise UserError(
            f"{path} is {image.dtype} {list(image.shape)} where settings.toml says {settings.bit_depth} bits "
            f"and side {settings.side}: remove the cache and make it anew"
        )
    return image


class _Place(NamedTuple):
    row: int
    path: Path
    sha256: str


def write_pack(cache: Cache, *, workers: int, on_image: Callable[[int], None] = lambda _: None) -> Path:
    """Packs all prepared images and returns the pack's path; a kill leaves the old pack or none.

    Raises:
        UserError: if the cache is not finished, is in use, has no image, or an image is not as it was made.
    """
    settings = cache.settings().prepare
    with locked(cache.folder):
        manifest = select_prepared(cache.read_manifest())
        if manifest.empty:
            raise UserError(f"{cache.folder} has no prepared image to pack: see {cache.failures_path}")
        remove_temporaries(cache.folder)
        header = _make_header((len(manifest), settings.side, settings.side), image_type(settings))
        image_bytes = settings.side**2 * image_type(settings).itemsize
        places = map(_Place, range(len(manifest)), cache.image_paths(manifest), manifest["image_sha256"])
        with preallocate(pack_path(cache), len(header) + len(manifest) * image_bytes) as stream:
            stream.write(header)
            for outcome in map_unordered(partial(_read, settings), places, workers=workers):
                if outcome.result is None:
                    raise UserError(
                        f"{outcome.item.path} could not be read, {outcome.message}: use fewer --workers"
                    )
                stream.seek(len(header) + outcome.item.row * image_bytes)
                stream.write(outcome.result.tobytes())
                on_image(1)
            seal_path(cache).unlink(missing_ok=True)  # before the new file takes its name
        write_json(seal_path(cache), _make_seal(cache))
    return pack_path(cache)


def _make_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _read(settings: PrepareSettings, place: _Place) -> Image:
    return read_exactly(place.path, place.sha256, settings)
