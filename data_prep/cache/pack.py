"""All prepared images in one memory-mapped file, for GPUs that outrun PNG files: written and checked."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.cache.folder import Cache
from data_prep.cache.images import (
    image_type,
    is_packed,
    make_seal,
    map_array,
    pack_path,
    read_exactly,
    seal_path,
)
from data_prep.cache.tables import select_prepared
from data_prep.errors import UserError
from data_prep.imageio.frame import Image
from data_prep.parallel.executor import map_unordered
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.storage.atomic import preallocate, remove_temporaries, write_json
from data_prep.storage.locks import locked


def find_pack_problem(cache: Cache) -> str | None:
    """Returns what is wrong with a pack but for its pixels; no pack is not a problem."""
    path, seal = pack_path(cache), seal_path(cache)
    if not path.exists() and not seal.exists():
        return None
    if not is_packed(cache):
        return (
            f"{path.name} is not a whole pack of this manifest and is not used: run `mammo pack` again, "
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


class _PackRow(NamedTuple):
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
        rows = map(_PackRow, range(len(manifest)), cache.image_paths(manifest), manifest["image_sha256"])
        with preallocate(pack_path(cache), len(header) + len(manifest) * image_bytes) as stream:
            stream.write(header)
            for outcome in map_unordered(partial(_read, settings), rows, workers=workers):
                if outcome.result is None:
                    raise UserError(
                        f"{outcome.item.path} could not be read, {outcome.message}: use fewer --workers"
                    )
                stream.seek(len(header) + outcome.item.row * image_bytes)
                stream.write(outcome.result.tobytes())
                on_image(1)
            seal_path(cache).unlink(missing_ok=True)  # before the new file takes its name
        write_json(seal_path(cache), make_seal(cache))
    return pack_path(cache)


def _make_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _read(settings: PrepareSettings, row: _PackRow) -> Image:
    return read_exactly(row.path, row.sha256, settings)
