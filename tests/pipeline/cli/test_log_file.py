"""`log.txt` of caches and runs: all that was said, with its time, and no secret."""

import io
import re
import signal
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from rich.console import Console

from data_prep.cache.folder import Cache
from data_prep.settings import dump_settings
from pipeline.cli import app
from pipeline.cli.console import PlainConsole, console
from pipeline.cli.log_file import LOG_NAME, LogFile, LoggingReporter, keep_log
from pipeline.runs.run_folder import Run
from pipeline.runtime.signals import Interrupted
from tests.pipeline.tiny import make_exams, make_recipe, write_cache, write_test_data

LINE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}Z .*\S")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(dump_settings(make_recipe(epochs=1)))
    return path


def mammo(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mammo", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        app.main()
    return end.value.code or 0


def read(folder: Path) -> list[str]:
    lines = (folder / LOG_NAME).read_text().splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    return [line.split(" ", 2)[2] for line in lines]


def test_a_training_says_in_its_log_what_it_says_and_what_stopped_it(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, run = write_cache(tmp_path / "cache", make_exams()), Run(tmp_path / "run")  # nobody else's
    arguments = ["train", config, "--cache", cache.folder, "--run", run.folder]
    assert mammo(monkeypatch, *arguments, "--fold", 0) == 0
    shown = capsys.readouterr().out.splitlines()
    begun, *said = read(run.folder)
    assert begun == f"mammo train {config} --cache {cache.folder} --run {run.folder} --fold 0"
    assert said == [line.rstrip() for line in shown]
    assert said[-1].endswith("fold 1 still to be trained")
    assert mammo(monkeypatch, *arguments, "--set", "train.epoch=1") == 2
    last = read(run.folder)[len(said) + 1 :]
    assert last[0] == f"{begun.removesuffix(' --fold 0')} --set train.epoch=1"
    assert last[1].startswith("mammo: --set train.epoch=1: unknown setting train.epoch")
    assert mammo(monkeypatch, "evaluate", tmp_path) == 2
    assert len(read(run.folder)) == len(said) + 3  # the next command's words are not this run's
    assert not (cache.folder / LOG_NAME).exists()


def test_a_preparation_keeps_a_log_and_its_cache_goes_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    write_test_data(data, make_exams(2, split="test"))
    arguments = ["prepare", data, "--cache", cache, "--config", config, "--workers", 0, "--split", "test"]
    for told in ("8 images prepared, 0 already there", "0 images prepared, 8 already there"):
        assert mammo(monkeypatch, *arguments) == 0
        assert told in "".join(read(cache))
    assert mammo(monkeypatch, "verify", cache) == 0


def test_a_dry_run_and_a_wrong_command_leave_no_log(
    cache: Cache, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    assert mammo(monkeypatch, "prepare", tmp_path / "absent", "--cache", mine) == 2
    assert mammo(monkeypatch, "train", config, "--cache", tmp_path / "absent", "--run", mine) == 2
    assert mammo(monkeypatch, "train", config, "--cache", cache.folder, "--run", mine, "--dry-run") == 0
    assert not list(mine.iterdir())


def test_a_stop_is_the_last_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").touch()

    def stop() -> NoReturn:
        keep_log(tmp_path)
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(app, "app", stop)
    assert mammo(monkeypatch, "train", "smoke", "--cache", "c") == 143
    command, last = read(tmp_path)
    assert last == f"mammo: stopped by SIGTERM; what was done is kept, go on with: {command}"


def test_lines_wait_for_the_folder_and_are_appended(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    log = LogFile(folder)
    log.write("first\n")
    folder.mkdir()
    log.write("second\n\n")
    assert not list(folder.iterdir())
    (folder / "settings.toml").touch()
    log.write("third\nfourth\n")
    LogFile(folder).write("fifth")
    assert read(folder) == ["first", "second", "third", "fourth", "fifth"]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").touch()
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / LOG_NAME).symlink_to(tmp_path / "elsewhere")
    assert LogFile(tmp_path).write("words") == len("words")
    assert (tmp_path / "elsewhere").read_text() == "mine"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("https://user:pass/word@host/x", "https://***@host/x"),
        ("'https://key@host/x' --cache c", "'https://***@host/x' --cache c"),
        ("https://host/x?X-Amz-Signature=abc&y=1 failed", "https://host/x?*** failed"),
        ("who@where.org?", "who@where.org?"),
    ],
)
def test_secrets_of_addresses_are_not_kept(tmp_path: Path, said: str, kept: str) -> None:
    (tmp_path / "settings.toml").touch()
    LogFile(tmp_path).write(said)
    assert read(tmp_path) == [kept]


def test_on_a_terminal_progress_is_in_the_log_as_lines(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").touch()
    shown = PlainConsole(file=io.StringIO(), force_terminal=True)
    shown.log_console = Console(file=LogFile(tmp_path), force_terminal=False)
    with LoggingReporter(shown, shown.log_console).track("work", 2, "steps") as advance:
        advance()
        shown.print("between")
        advance(note="done")
    said = read(tmp_path)
    assert said[0] == "between"
    assert re.fullmatch(r"work: 2/2 steps, [0-9.]+/s, done", said[1])
    assert len(said) == 2
    assert "\x1b" not in "".join(said)


def test_processes_that_train_together_keep_one_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(console, "quiet", True)
    monkeypatch.setattr(console, "log_console", None)
    (tmp_path / "settings.toml").touch()
    keep_log(tmp_path).say("nothing")
    assert not (tmp_path / LOG_NAME).exists()
