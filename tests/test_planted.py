"""Whatever stands where mammo writes harms nothing and keeps nobody waiting: links, pipes, folders."""

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import tomli_w

from tests.data_prep.data_folder import find_image, make_data
from tests.forked import run
from tests.pipeline.tiny import (
    make_class_recipe,
    make_exams,
    make_recipe,
    write_cache,
    write_class_folder,
    write_test_data,
)

SECRET = b"what others must not lose"
MOST_SECONDS = 10.0
OUT = "out"
PASSING = {"prepare": ["journal.jsonl"], "predict": ["out.csv.partial", "out_failures.csv"], "train": []}
"""Files that are gone, or not needed, when all went well."""

READS = {
    "prepare": ["data/train.csv", "data/train_images/5/97.dcm"],
    "verify": ["cache/settings.toml", "cache/manifest.csv", "cache/exams.csv", "cache/images/*/*.png"],
    "train": ["recipe.toml", "cache/settings.toml", "cache/manifest.csv", "cache/images/*/*.png"],
    "classes": ["classes.toml", "classes/*/*.png"],
    "predict": ["run/fold_0/model.safetensors", "run/settings.toml", "tests/test.csv", "tests/*/*/*.png"],
    "evaluate": ["run/settings.toml", "run/folds.csv", "run/fold_0/oof.csv", "run/fold_0/history.csv"],
    "explain": ["run/settings.toml", "run/fold_0/model.safetensors", "data/train_images/5/97.dcm"],
    "inspect": ["data/train_images/5/97.dcm"],
    "collect": ["labels.csv", "data/train_images/5/97.dcm"],
    "check": ["submission.csv", "tests/test.csv"],
}
"""What commands read, in the working folder."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a cache, a run, recipes and tables: what commands read."""
    place = tmp_path_factory.mktemp("planted")
    data = make_data(place / "data", 4)
    write_test_data(place / "tests", make_exams(2, split="test"))
    cache = write_cache(place / "cache", make_exams(4))
    (place / "recipe.toml").write_text(tomli_w.dumps(make_recipe(epochs=1).model_dump()))
    (place / "classes.toml").write_text(tomli_w.dumps(make_class_recipe(epochs=1).model_dump()))
    (place / "labels.csv").write_text(
        f"file,patient_id,laterality,cancer\n{find_image(data, '97').relative_to(data)},5,R,1\n"
    )
    (place / "submission.csv").write_text("prediction_id,cancer\n")
    write_class_folder(place / "classes")
    train = ["train", f"{place}/recipe.toml", "--cache", str(cache.folder)]
    run("-m", "pipeline", *train, "--run", f"{place}/run").check_returncode()
    return place


@pytest.fixture(scope="module")
def commands(place: Path) -> dict[str, list[str]]:
    """Small commands, each of which writes below the folder `OUT` in its working folder."""
    image = str(find_image(place / "data", "97"))
    train = ["train", f"{place}/recipe.toml", "--cache", f"{place}/cache", "--run", OUT, "--fold", "0"]
    classes = ["train", f"{place}/classes.toml", "--data", f"{place}/classes", "--run", OUT]
    predict = ["--data", f"{place}/tests", "--probabilities", "--workers", "0"]
    prepare = ["--cache", OUT, "--set", "prepare.side=32", "--workers", "0"]
    return {
        "prepare": ["prepare", f"{place}/data", *prepare],
        "train": train,
        "classes": classes,
        "predict": ["predict", f"{place}/run", "--out", f"{OUT}/out.csv", *predict],
        "export": ["export", f"{place}/run", "--out", OUT],
        "inspect": ["inspect", image, "--out", f"{OUT}/a.png"],
        "explain": ["explain", f"{place}/run", image, "--out", f"{OUT}/a.png"],
        "collect": ["collect", f"{place}/data", "--labels", f"{place}/labels.csv", "--out", OUT],
        "phantom": ["phantom", OUT, "--patients", "1", "--rows", "64", "--columns", "64"],
        "verify": ["verify", f"{place}/cache"],
        "pack": ["pack", f"{place}/cache"],
        "evaluate": ["evaluate", f"{place}/run"],
        "check": ["check", f"{place}/submission.csv", "--data", f"{place}/tests"],
    }


def plant(kind: str, path: Path, elsewhere: Path, *, is_folder: bool) -> None:
    """Puts something in a file's or a folder's place, a link to what belongs to others for one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(elsewhere if is_folder else elsewhere / "secret")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        (path / "inside").mkdir(parents=True)


def choose_unlike(places: Iterable[str]) -> list[str]:
    """Returns one of each kind: what ends alike, as deep in the tree, has one writer."""
    return [*{(Path(place).suffix, place.count("/")): place for place in places}.values()]


def try_at(
    arguments: list[str], kind: str, names: dict[str, bool], folder: Path, *, finished: Path | None = None
) -> CompletedProcess[str]:
    """Plants in all places, each with whether it is a folder's, and runs the command, on a run if named."""
    shutil.rmtree(folder, ignore_errors=True)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(parents=True)
    (elsewhere / "secret").write_bytes(SECRET)
    if finished is not None:
        shutil.copytree(finished, folder / OUT)
    for name, is_folder in names.items():
        plant(kind, folder / OUT / name, elsewhere, is_folder=is_folder)
    began = time.monotonic()
    ended = run("-m", "pipeline", *arguments, cwd=folder)
    what = f"a {kind} in place of {', '.join(names)}: {ended}"
    assert time.monotonic() - began < MOST_SECONDS + 60, what  # much more than that on a busy machine
    assert "Traceback" not in ended.stderr, what
    assert ended.returncode in {0, 1, 2}, what
    assert ended.returncode == 0 or ended.stderr.count("\n") == 1, what
    assert [path.name for path in elsewhere.iterdir()] == ["secret"], what
    assert (elsewhere / "secret").read_bytes() == SECRET, what
    return ended


def try_links(
    arguments: list[str], files: Iterable[str], folder: Path, *, finished: Path | None = None
) -> None:
    """Plants links in the places of files, in all at once, so that one command may pass them all by.

    What it refuses is left out, and the others are tried again; all are tried alone where it names none.
    """
    left = dict.fromkeys(files, False)
    while left:
        ended = try_at(arguments, "link", left, folder, finished=finished)
        if ended.returncode == 0:
            return
        refused = [name for name in left if name in ended.stderr]
        if not refused:
            break
        del left[max(refused, key=len)]
    for name in left:
        try_at(arguments, "link", {name: False}, folder, finished=finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["prepare", "train", "classes", "predict", "inspect", "explain", "collect", "phantom"]
)
def test_what_is_planted_in_the_place_of_any_output_is_not_followed(
    commands: dict[str, list[str]], tmp_path: Path, name: str
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    run("-m", "pipeline", *commands[name], cwd=whole).check_returncode()
    written = sorted((whole / OUT).rglob("*"))
    places = {str(path.relative_to(whole / OUT)): path.is_dir() for path in written}
    places |= dict.fromkeys(PASSING.get(name, []), False)
    places = {place: places[place] for place in choose_unlike(places)}
    files = [place for place, is_folder in places.items() if not is_folder]
    for place in places.keys() - set(files):
        try_at(commands[name], "link", {place: True}, tmp_path / "try")
    try_links(commands[name], files, tmp_path / "try")
    for kind in ("pipe", "folder"):
        try_at(commands[name], kind, {files[-1]: False}, tmp_path / "try")


@pytest.mark.slow
def test_what_is_planted_in_the_place_of_an_exported_model_is_not_followed(
    commands: dict[str, list[str]], tmp_path: Path
) -> None:
    """Links alone, since an export takes long and writes as all do."""
    files = dict.fromkeys(["fold_0.onnx", "fold_1.onnx"], False)
    ended = try_at(commands["export"], "link", files, tmp_path / "try")
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in (tmp_path / "try" / OUT).iterdir() if not path.is_symlink()} == {*files}


@pytest.mark.slow
def test_what_is_planted_in_the_place_of_an_evaluation_is_not_followed(
    commands: dict[str, list[str]], tmp_path: Path
) -> None:
    """Its report's too, and what it reads of the run."""
    finished = Path(commands["predict"][1])
    files = choose_unlike(path.name for path in sorted(finished.iterdir()) if path.is_file())
    try_links(["evaluate", OUT], files, tmp_path / "try", finished=finished)


@pytest.mark.slow
@pytest.mark.parametrize("name", READS)
def test_a_pipe_in_the_place_of_an_input_keeps_nobody_waiting(
    place: Path, commands: dict[str, list[str]], tmp_path: Path, name: str
) -> None:
    own = tmp_path / "try"
    for pattern in READS[name]:
        path = min(place.glob(pattern))
        shutil.copytree(place, own)
        (own / path.relative_to(place)).unlink()
        os.mkfifo(own / path.relative_to(place))
        began = time.monotonic()
        ended = run(
            "-m", "pipeline", *(word.replace(str(place), str(own)) for word in commands[name]), cwd=own
        )
        what = f"a pipe in place of {path.relative_to(place)}: {ended}"
        assert time.monotonic() - began < MOST_SECONDS + 60, what
        assert "Traceback" not in ended.stderr, what
        assert ended.returncode in {0, 1, 2}, what
        assert ended.returncode != 2 or ended.stderr.count("\n") == 1, what
        shutil.rmtree(own)
