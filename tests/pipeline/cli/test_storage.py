"""The commands with their data in object storage: the same answers, what was saved, and no secrets."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from data_prep.imageio import codecs
from pipeline.cli.app import app
from pipeline.inference.submission_file import write_submission
from pipeline.runs.run_folder import Run
from tests.data_prep.data_folder import find_image, make_data, snapshot
from tests.data_prep.dicom_files import make_breast, write_dicom
from tests.object_store import BUCKET, SECRET, Store
from tests.pipeline.tiny import make_exams, write_test_data

SMALL = ["--set", "prepare.side=32"]


def mammo(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


def test_predictions_are_those_of_the_folder(finished: Run, store: Store, tmp_path: Path) -> None:
    """The bytes of the CSV, the failures too."""
    data = write_test_data(tmp_path / "data", make_exams(3, split="test"))
    broken = sorted((data / "test_images").rglob("*.png"))
    broken[0].write_bytes(b"this is not an image")
    broken[1].unlink()
    store.upload(data)
    outs = {text: tmp_path / f"{number}.csv" for number, text in enumerate([str(data), store.s3, store.http])}
    for text, out in outs.items():
        arguments = ["--data", text, "--out", out, "--probabilities", "--workers", 0]
        ended = mammo("predict", finished.folder, *arguments)
        assert ended.exit_code == 1, ended.output
    for pattern in ("{}.csv", "{}_failures.csv"):
        contents = {(tmp_path / pattern.format(out.stem)).read_bytes() for out in outs.values()}
        assert len(contents) == 1
    assert len(pd.read_csv(tmp_path / "1_failures.csv")) == 2


def test_a_prediction_goes_on_for_the_same_objects_alone(
    finished: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upload(write_test_data(tmp_path / "data", make_exams(3, split="test")))
    out = tmp_path / "out.csv"
    arguments = ["predict", finished.folder, "--data", store.s3, "--out", out, "--probabilities"]
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.inference.submission_file.write_csv", stop)
        assert isinstance(mammo(*arguments, "--workers", 0).exception, KeyboardInterrupt | SystemExit)
    store.forget()
    assert mammo(*arguments, "--workers", 0).exit_code == 0
    assert store.count("GET", ".png") == 0, "all answers stood in the journal"


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_submission_is_checked_against_a_table_in_the_store(store: Store, tmp_path: Path) -> None:
    exams = make_exams(2, split="test")
    store.put("data/test.csv", exams.to_csv(index=False).encode())
    ids = list(exams["prediction_id"].unique())
    breasts = pd.DataFrame({"prediction_id": ids, "probability": [0.1, 0.2, 0.3, 0.4]})
    write_submission(breasts, tmp_path / "a.csv", required_ids=ids)
    ended = mammo("check", tmp_path / "a.csv", "--data", store.s3)
    assert (ended.exit_code, ended.stdout) == (0, f"{tmp_path / 'a.csv'} is valid\n")


def test_prepare_says_what_was_saved_and_verify_what_was_not_read(store: Store, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 2)
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12}
    image = make_breast(1600, 1200)
    path = find_image(data, "97")
    write_dicom(path, image, transfer_syntax=codecs.JPEG_2000_LOSSLESS, **window)
    store.upload(data)
    cache = tmp_path / "cache"
    ended = mammo("prepare", store.s3, "--cache", cache, "--workers", 0, *SMALL)
    assert ended.exit_code == 0, ended.output
    manifest = Cache(cache).read_manifest()
    total, received = manifest["source_bytes"].sum() / 1e6, manifest["bytes_read"].sum() / 1e6
    share = (total - received) / total
    assert share > 0.5
    sentence = f"read from storage: {received:,.1f} MB of the files' {total:,.1f} MB, "
    assert f"{sentence}{total - received:,.1f} MB ({share:.0%}) saved" in ended.stdout
    ended = mammo("verify", cache, "--data", store.s3, "--workers", 0)
    assert ended.exit_code == 0, ended.output
    assert "2 source files (1 of them in part, the rest was never read)" in ended.stdout
    ended = mammo("prepare", data, "--cache", tmp_path / "local", "--workers", 0, *SMALL)
    assert "storage" not in ended.stdout


def test_one_object_is_inspected(store: Store, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 2)
    store.upload(data)
    key = find_image(data, "97").relative_to(data)
    local = mammo("inspect", data / key, "--out", tmp_path / "a.png")
    remote = mammo("inspect", f"{store.s3}/{key}", "--out", tmp_path / "b.png")
    assert remote.exit_code == 0, remote.output
    told, told_here = ("".join(shown.stdout.split()) for shown in (remote, local))
    assert told.replace("b.png", "a.png") == told_here.replace(f"{data / key}", f"{store.s3}/{key}", 1)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    with pytest.raises(UserError, match="it is not there"):
        raise mammo("inspect", f"{store.s3}/nothing.dcm").exception


@pytest.mark.parametrize("command", ["prepare", "verify", "predict", "check", "inspect"])
def test_no_command_takes_an_address_with_a_password(
    command: str, finished: Run, prepared_cache: Path, tmp_path: Path
) -> None:
    url = f"s3://key:{SECRET}@{BUCKET}/data"
    arguments = {
        "prepare": [url, "--cache", tmp_path / "cache"],
        "verify": [prepared_cache, "--data", url],
        "predict": [finished.folder, "--data", url, "--probabilities"],
        "check": [tmp_path / "a.csv", "--data", url],
        "inspect": [url],
    }[command]
    ended = mammo(command, *arguments)
    assert "holds a user name, password or query" in str(ended.exception)
    assert SECRET not in f"{ended.exception}{ended.output}"


@pytest.fixture(scope="module")
def prepared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of two images."""
    folder = tmp_path_factory.mktemp("prepared_cache")
    make_data(folder / "data", 2)
    assert mammo("prepare", folder / "data", "--cache", folder / "cache", "--workers", 0).exit_code == 0
    return folder / "cache"


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_cache_without_a_secret_in_it(
    store: Store, tmp_path: Path
) -> None:
    data, cache = make_data(tmp_path / "data", 12), tmp_path / "cache"
    store.upload(data)
    store.latency_s = 0.2
    command = [sys.executable, "-m", "pipeline", "prepare", store.s3, "--cache", str(cache), *SMALL]
    process = subprocess.Popen([*command, "--workers", "1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not Cache(cache).journal.path.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (cache / "manifest.csv").exists()
    num_known = len(Cache(cache).journal.read())
    store.latency_s = 0.0
    ended = subprocess.run(
        [*command, "--workers", "1"], capture_output=True, check=True, text=True, env=os.environ
    )
    assert f"{12 - num_known} images prepared, {num_known} already there" in ended.stdout
    mammo("prepare", data, "--cache", tmp_path / "local", "--workers", 0, *SMALL)
    files, expected = snapshot(cache), snapshot(tmp_path / "local")
    assert {name: files[name] for name in files if name.endswith(".png")} == {
        name: expected[name] for name in expected if name.endswith(".png")
    }
    everything = b"".join(files.values()) + ended.stdout.encode() + ended.stderr.encode()
    assert SECRET.encode() not in everything
