"""All commands in odd surroundings, on files with planted patients: the same outputs, and no patient in any.

One process runs them without a network, in a German locale and another time zone, with umask 077 and no home;
another one in plain surroundings.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w
from pydicom import dcmread

from data_prep.phantom.dataset import write_phantoms
from tests.isolation import without_network
from tests.pipeline.tiny import make_recipe

PLANTED = {
    "PatientName": "Weiherer^Annegret",
    "PatientID": "ZX40417",
    "PatientBirthDate": "19511103",
    "PatientAddress": "Lindenweg 7",
    "StudyDate": "20190817",
    "AccessionNumber": "ACC998877",
    "InstitutionName": "Klinikum Musterhausen",
    "ReferringPhysicianName": "Quacksalber^Otto",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.4711.1",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.4711.2",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.4711.3",
}
WORDS = [re.split(r"\^| ", value)[0] for value in PLANTED.values()]
DRIVER = """
import contextlib, io, json, os, sys
from pathlib import Path

def run(arguments):
    out, errors = io.StringIO(), io.StringIO()
    sys.argv = ["mammo", *arguments]
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            app.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, out.getvalue(), errors.getvalue()

if __name__ == "__main__":  # what the command's own processes do not need
    from pipeline.cli import app

    commands, told, umask = sys.argv[1:]
    os.umask(int(umask, 8))
    answers = [run(command) for command in json.loads(Path(commands).read_text())]
    Path(told).write_text(json.dumps(answers))
"""
DIFFERS = {
    ".lock",
    "log.txt",
    "timings.csv",
    "throughput.csv",
    "environment.json",
    "told.json",
    "last.pt",
    "previous.pt",
}
THROUGHPUT = re.compile(rb'<h2 id="throughput">.*?</section>|## Throughput\n.*?(?=## Settings\n)', re.DOTALL)


def plant(path: Path) -> None:
    """Gives a file a patient, also where only a damaged header would show it."""
    dataset = dcmread(path)
    for keyword, value in PLANTED.items():
        setattr(dataset, keyword, value)
    block = dataset.private_block(0x0009, "Weiherer private", create=True)
    block.add_new(1, "LO", PLANTED["PatientName"])
    dataset.save_as(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of a planted patient; one is cut, and in one the name stands where a number should.

    Beside them lies `elsewhere`, other women to judge a run on.
    """
    folder = tmp_path_factory.mktemp("planted") / "data"
    write_phantoms(folder, num_patients=6, seed=3, rows=160, columns=128)
    write_phantoms(folder.parent / "elsewhere", num_patients=3, seed=4, rows=160, columns=128)
    for path in folder.parent.rglob("*.dcm"):
        plant(path)
    files = sorted(folder.rglob("*.dcm"))
    tests = [path for path in files if "test_images" in path.parts]
    tests[0].write_bytes(tests[0].read_bytes()[:700])
    dataset = dcmread(tests[1])
    dataset.NumberOfFrames = 1
    dataset.save_as(tests[1])
    content = tests[1].read_bytes()
    start = content.index(b"\x28\x00\x08\x00IS")  # NumberOfFrames
    end = start + 8 + content[start + 6]
    name = PLANTED["PatientName"].encode() + b" "
    tests[1].write_bytes(content[: start + 6] + bytes([len(name), 0]) + name + content[end:])
    return folder


def make_commands(data: Path) -> list[list[str]]:
    """Every command but `demo`, which is some of the others, and `doctor`, which speaks of the machine."""
    shown = str(min((data / "train_images").rglob("*.dcm")))
    broken = [str(path) for path in sorted((data / "test_images").rglob("*.dcm"))[:2]]
    source, small = str(data), ["--config", "config.toml"]
    return [
        ["phantom", "phantoms", "--patients", "2", "--rows", "96", "--columns", "64"],
        ["collect", source, "--labels", "labels.csv", "--out", "collected"],
        ["prepare", source, "--cache", "cache", *small, "--workers", "2"],
        ["prepare", source, "--cache", "test_cache", "--split", "test", *small, "--workers", "0"],
        ["prepare", source, "--cache", "cache", "--set", "prepare.side=48"],
        ["inspect", shown, "--out", "inspected.png", *small],
        *(["inspect", path, "--out", "broken.png"] for path in broken),
        ["--debug", "inspect", broken[1], "--out", "broken.png"],
        ["verify", "cache", "--data", source, "--workers", "0"],
        ["pack", "cache", "--workers", "0"],
        ["train", "config.toml", "--cache", "cache", "--run", "run"],
        ["evaluate", "run"],
        ["evaluate", "run", "--data", str(data.parent / "elsewhere"), "--workers", "0"],
        ["compare", "run", "again", "--out", "compared.csv"],
        ["predict", "run", "--data", source, "--out", "submission.csv", "--workers", "0", "--probabilities"],
        ["predict", "run", "--cache", "test_cache", "--out", "again.csv", "--probabilities"],
        ["explain", "run", shown, "--out", "explained.png"],
        ["explain", "run", broken[0], "--out", "broken.png"],
        ["export", "run"],
        ["check", "submission.csv", "--data", source],
    ]


EXIT_CODES = [0, 0, 0, 1, 2, 0, 1, 1, 1, 0, 0, 0, 0, 0, 2, 1, 1, 0, 1, 0, 0]


class World:
    """A folder in which all commands have run, and what they said."""

    def __init__(self, folder: Path, data: Path, prefix: list[str], umask: str, **environment: str) -> None:
        self.folder = folder
        folder.mkdir()
        recipe = make_recipe(epochs=1).model_dump()
        (folder / "config.toml").write_text(tomli_w.dumps(recipe))
        exams = pd.read_csv(data / "train.csv")
        files = [f"train_images/{row.patient_id}/{row.image_id}.dcm" for row in exams.itertuples()]
        exams[["patient_id", "laterality", "view", "cancer"]].assign(file=files).to_csv(
            folder / "labels.csv", index=False
        )
        (folder / "driver.py").write_text(DRIVER)
        (folder / "commands.json").write_text(json.dumps(make_commands(data)))
        variables = (
            os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)} | environment
        )
        command = [*prefix, sys.executable, "driver.py", "commands.json", "told.json", umask]
        subprocess.run(command, cwd=folder, env=variables, check=True, timeout=600)
        self.told: list[tuple[int, str, str]] = json.loads((folder / "told.json").read_text())

    def files(self) -> dict[str, bytes]:
        """Every file but those that name times or the machine; reports without their throughput."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]
        own = [path for path in paths if path.name not in DIFFERS and "__pycache__" not in path.parts]
        contents = {str(path.relative_to(self.folder)): path.read_bytes() for path in own}
        return {name: re.sub(THROUGHPUT, b"", content) for name, content in contents.items()}


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("plain") / "world", data, [], "022", LC_ALL="C.UTF-8", TZ="UTC")


@pytest.fixture(scope="module")
def odd(data: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    surroundings: dict[str, Any] = {"LC_ALL": "de_DE.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Chatham"}
    surroundings |= {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent", "MPLCONFIGDIR": ""}
    folder = tmp_path_factory.mktemp("odd") / "world"
    return World(folder, data, without_network(), "077", **surroundings)


@pytest.mark.slow
def test_every_command_ends_as_it_should_without_a_network(odd: World) -> None:
    codes = [code for code, _, _ in odd.told]
    assert codes == EXIT_CODES, codes
    assert not [errors for _, _, errors in odd.told if "Traceback" in errors]


@pytest.mark.slow
def test_locale_time_zone_umask_and_home_make_no_difference(plain: World, odd: World) -> None:
    found, expected = odd.files(), plain.files()
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert "run/external/elsewhere/report.html" in expected
    assert {"run/report.html", "cache/qc.html", "submission.csv", "explained.png"} <= set(expected)


@pytest.mark.slow
def test_nothing_of_the_patient_is_in_any_output_log_or_error(plain: World, data: Path) -> None:
    assert all(word in "".join(map(str, plain_values(data))) for word in WORDS)
    for path in plain.folder.rglob("*"):
        if path.is_file() and data not in path.resolve().parents:
            content = path.read_bytes()
            assert not [word for word in WORDS if word.encode() in content], path
    assert (plain.folder / "cache/manifest.csv").exists()


def plain_values(data: Path) -> list[str]:
    """What the files hold, so that the search has something that it could find."""
    dataset = dcmread(min((data / "train_images").rglob("*.dcm")), stop_before_pixels=True)
    return [str(dataset.get(keyword)) for keyword in PLANTED]
