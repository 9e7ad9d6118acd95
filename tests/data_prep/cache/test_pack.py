"""The pack: the images of the manifest in one file, whole or not there, and never another manifest's."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.cache import pack
from data_prep.cache.folder import Cache
from data_prep.cache.images import (
    PackedImages,
    PngImages,
    is_packed,
    open_images,
    pack_path,
    seal_path,
    write_image,
)
from data_prep.cache.pack import write_pack
from data_prep.errors import DiskFull, FolderInUse, UserError
from data_prep.storage.atomic import TEMPORARY_PREFIX, preallocate
from data_prep.storage.locks import locked
from tests.data_prep.cache_folder import Made, fail, make_cache, make_image

ROOT = Path(__file__).parents[3]
PACK = """
import sys
from pathlib import Path
from data_prep.cache.folder import Cache
from data_prep.cache.pack import write_pack
def wait(_):
    print("image", flush=True)
    sys.stdin.readline()
write_pack(Cache(Path(sys.argv[1])), workers=0, on_image=wait)
"""
PREPARED = ["10", "11", "12", "14", "15"]


@pytest.fixture(params=[8, 16], ids=["8 bits", "16 bits"])
def made(tmp_path: Path, request: pytest.FixtureRequest) -> Made:
    """Six images, of which 13 failed."""
    return make_cache(tmp_path, bit_depth=request.param)


def change_image(made: Made, image_id: str) -> None:
    """Does what `prepare` does after a source file has changed."""
    records = made.cache.read_records()
    new = 255 - make_image(image_id, bit_depth=made.cache.settings().prepare.bit_depth)
    records[image_id]["image_sha256"] = write_image(made.png(image_id), new)
    made.cache.write_tables(records)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pack_is_the_prepared_images_in_the_manifests_order(made: Made, workers: int) -> None:
    heard: list[int] = []
    path = write_pack(made.cache, workers=workers, on_image=heard.append)
    bit_depth = made.cache.settings().prepare.bit_depth
    expected = np.stack([make_image(image_id, bit_depth=bit_depth) for image_id in PREPARED])
    packed = np.load(path, mmap_mode="r")
    assert path == made.cache.folder / "images.npy"
    assert packed.dtype == expected.dtype
    np.testing.assert_array_equal(packed, expected)
    assert heard == [1] * 5
    assert path.stat().st_size < expected.nbytes + 200


def test_two_packs_of_a_cache_are_the_same_bytes(made: Made) -> None:
    first = write_pack(made.cache, workers=0).read_bytes()
    seal = seal_path(made.cache).read_bytes()
    assert write_pack(made.cache, workers=2).read_bytes() == first
    assert seal_path(made.cache).read_bytes() == seal


def test_images_come_in_the_order_of_the_exams_from_either(made: Made) -> None:
    exams = made.cache.read_exams().iloc[[3, 0, 4, 0]]
    single = open_images(made.cache, exams)
    write_pack(made.cache, workers=0)
    packed = open_images(made.cache, exams)
    assert (type(single), type(packed)) == (PngImages, PackedImages)
    assert len(single) == len(packed) == 4
    for row in range(4):
        np.testing.assert_array_equal(single[row], packed[row])
        assert single[row].dtype == packed[row].dtype


def test_an_image_of_a_pack_may_be_changed_and_the_pack_stays(made: Made) -> None:
    write_pack(made.cache, workers=0)
    images = open_images(made.cache, made.cache.read_exams())
    before = images[0].copy()
    images[0][:] = 0
    np.testing.assert_array_equal(images[0], before)


def test_a_pack_sends_its_rows_to_another_process_and_no_pixels(tmp_path: Path) -> None:
    made = make_cache(tmp_path, num_images=60)
    path = write_pack(made.cache, workers=0)
    exams = made.cache.read_exams()
    images = open_images(made.cache, exams)
    sent = pickle.dumps(images)
    assert len(sent) < path.stat().st_size / 10
    arrived = pickle.loads(sent)  # noqa: S301
    for row in range(len(exams)):
        np.testing.assert_array_equal(arrived[row], images[row])


def test_another_process_never_reads_another_pack_by_the_same_rows(made: Made) -> None:
    write_pack(made.cache, workers=0)
    sent = pickle.dumps(open_images(made.cache, made.cache.read_exams()))
    write_pack(made.cache, workers=0)
    with pytest.raises(UserError, match="packed anew while in use: run the same command again"):
        pickle.loads(sent)[0]  # noqa: S301


def test_a_pack_that_is_replaced_while_it_is_read_stays_what_it_was(made: Made) -> None:
    write_pack(made.cache, workers=0)
    images = open_images(made.cache, made.cache.read_exams())
    before = images[0]
    change_image(made, "10")
    write_pack(made.cache, workers=0)
    np.testing.assert_array_equal(images[0], before)


# What is out of date


def test_an_image_that_was_prepared_again_is_not_read_from_the_old_pack(made: Made) -> None:
    write_pack(made.cache, workers=0)
    change_image(made, "11")
    images = open_images(made.cache, made.cache.read_exams())
    assert isinstance(images, PngImages)
    assert not np.array_equal(images[1], np.load(pack_path(made.cache))[1])
    write_pack(made.cache, workers=0)
    assert isinstance(open_images(made.cache, made.cache.read_exams()), PackedImages)


def test_an_image_that_failed_meanwhile_makes_the_pack_old(made: Made) -> None:
    write_pack(made.cache, workers=0)
    made.cache.write_tables(made.cache.read_records() | {"10": fail("10")})
    assert not is_packed(made.cache)


def test_images_that_the_pack_lacks_are_read_singly(made: Made) -> None:
    write_pack(made.cache, workers=0)
    everything = made.cache.read_exams(prepared_only=False)
    assert isinstance(open_images(made.cache, everything), PngImages)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", None], ids=repr)
def test_without_a_whole_seal_there_is_no_pack(made: Made, content: bytes | None) -> None:
    write_pack(made.cache, workers=0)
    if content is None:
        seal_path(made.cache).unlink()
    else:
        seal_path(made.cache).write_bytes(content)
    assert not is_packed(made.cache)


@pytest.mark.parametrize("keep", [0, 5, 60, 1000])
def test_a_damaged_pack_is_named(made: Made, keep: int) -> None:
    path = write_pack(made.cache, workers=0)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        UserError, match=r"images\.npy is damaged: make it anew with `mammo pack`, or remove it"
    ):
        open_images(made.cache, made.cache.read_exams())


# What cannot be packed


@pytest.mark.parametrize("damage", ["other", "cut", "gone"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_not_the_manifests_is_not_packed(made: Made, damage: str, workers: int) -> None:
    path = made.png("12")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(made.png("11").read_bytes() if damage == "other" else path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"12\.png .*mammo prepare") as caught:
        write_pack(made.cache, workers=workers)
    assert "\n" not in str(caught.value)
    assert not list(made.cache.folder.glob("*.npy*"))


def test_images_of_another_form_are_not_packed(made: Made) -> None:
    text = made.cache.settings_path.read_text()
    made.cache.settings_path.write_text(text.replace("side = 16", "side = 32"))
    with pytest.raises(
        UserError, match=r"10\.png is uint(8|16) \[16, 16\] where settings\.toml says .* side 32"
    ):
        write_pack(made.cache, workers=0)


def test_a_folder_that_is_no_cache_gets_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a cache"):
        write_pack(Cache(tmp_path / "absent"), workers=0)
    assert not (tmp_path / "absent").exists()


def test_no_image_makes_no_pack(tmp_path: Path) -> None:
    made = make_cache(tmp_path, num_images=1, failed="10")
    with pytest.raises(UserError, match=r"has no prepared image to pack: see .*failures\.csv"):
        write_pack(made.cache, workers=0)


def test_a_cache_in_use_is_left_alone(made: Made) -> None:
    with locked(made.cache.folder), pytest.raises(FolderInUse, match=f"process {os.getpid()} on "):
        write_pack(made.cache, workers=0)


# Broken off


def test_a_full_disk_is_told_before_the_work_and_the_old_pack_stays(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_pack(made.cache, workers=0).read_bytes()
    monkeypatch.setattr(pack, "preallocate", lambda path, num_bytes: preallocate(path, 4 * 10**15))
    heard: list[int] = []
    with pytest.raises(DiskFull, match=r"images\.npy needs"):
        write_pack(made.cache, workers=0, on_image=heard.append)
    assert heard == []
    assert is_packed(made.cache)
    assert pack_path(made.cache).read_bytes() == before


@pytest.mark.parametrize("num_images", range(6))
def test_a_kill_leaves_the_old_pack_or_none(tmp_path: Path, num_images: int) -> None:
    """SIGKILL after so many images, 0 being at once; the next pack clears away what was left."""
    made = make_cache(tmp_path)
    old = write_pack(made.cache, workers=0).read_bytes()
    change_image(made, "10")
    command = [sys.executable, "-c", PACK, str(made.cache.folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        for _ in range(num_images):
            assert run.stdout.readline() == "image\n"
            run.stdin.write("go on\n")
            run.stdin.flush()
        run.send_signal(signal.SIGKILL)
    whole = is_packed(made.cache)
    if not whole:
        assert isinstance(open_images(made.cache, made.cache.read_exams()), PngImages)
    assert whole == (pack_path(made.cache).read_bytes() != old) or not seal_path(made.cache).exists()
    write_pack(made.cache, workers=0)
    assert is_packed(made.cache)
    assert not list(made.cache.folder.rglob(f"{TEMPORARY_PREFIX}*"))


@pytest.mark.parametrize("step", ["unlink", "replace", "write_json"])
def test_no_step_leaves_a_pack_under_another_ones_seal(
    made: Made, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write_pack(made.cache, workers=0)
    change_image(made, "10")

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*(pack, step) if step == "write_json" else (Path, step), die)
        with pytest.raises(KeyboardInterrupt):
            write_pack(made.cache, workers=0)
    assert not is_packed(made.cache)
    np.testing.assert_array_equal(
        open_images(made.cache, made.cache.read_exams())[0],
        255 - make_image("10", bit_depth=made.cache.settings().prepare.bit_depth),
    )
