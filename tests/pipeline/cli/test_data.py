"""`mammo verify` and `mammo pack`: what they say, on which stream, and how they end."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from data_prep.cache.images import is_packed
from data_prep.errors import FolderInUse, UserError
from data_prep.storage.locks import locked
from pipeline.cli.app import app
from tests.data_prep.cache_folder import Made, fail, make_cache


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Thirty images of which one failed."""
    return make_cache(tmp_path, num_images=30)


def mammo(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


def test_a_pack_is_made_and_told_with_its_size(made: Made) -> None:
    ended = mammo("pack", made.cache.folder, "--workers", 0)
    assert ended.exit_code == 0, ended.output
    assert "pack: 29/29 images" in ended.stdout
    assert ended.stdout.splitlines()[-1] == f"{made.cache.folder}/images.npy: 0.0 MB"
    assert ended.stderr == ""
    assert is_packed(made.cache)


def test_a_sound_cache_is_one_sentence(made: Made) -> None:
    ended = mammo("verify", made.cache.folder, "--data", made.data, "--workers", 0)
    assert ended.exit_code == 0, ended.output
    sentence = (
        "29 images agree with the manifest, and 29 source files (1 of them in part, the rest was never read)"
    )
    assert ended.stdout.splitlines()[-1] == f"{made.cache.folder}: {sentence}"
    assert ended.stderr == ""


def test_images_that_failed_are_named_with_file_and_reason(made: Made) -> None:
    records = made.cache.read_records()
    for image_id in [str(number) for number in range(13, 38)]:
        records[image_id] |= fail(image_id) | {"file": f"exam/{image_id}.dcm"}
    for image_id in range(14, 38):
        made.png(str(image_id)).unlink()
    made.cache.write_tables(records)
    ended = mammo("verify", made.cache.folder, "--workers", 0)
    assert (ended.exit_code, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    start = lines.index("warning: 25 of 30 images failed to prepare (25 truncated):")
    assert lines[start + 1] == "  2/13 (exam/13.dcm): truncated: it ends too early"
    assert lines[start + 21] == f"  and 5 more in {made.cache.failures_path}"
    assert lines[-1] == f"{made.cache.folder}: 5 images agree with the manifest"


def test_a_problem_is_a_line_and_the_exit_code_is_1(made: Made) -> None:
    made.source("11").write_bytes(b"another")
    assert mammo("verify", made.cache.folder, "--workers", 0).exit_code == 0
    ended = mammo("verify", made.cache.folder, "--data", made.data, "--workers", 0)
    assert ended.exit_code == 1
    assert ended.stderr.startswith("1/11: ")
    assert ended.stderr.count("\n") == 1
    assert "agree" not in ended.stdout


def test_of_many_problems_twenty_are_shown_and_the_others_counted(made: Made) -> None:
    for image_id in range(14, 39):
        made.png(str(image_id)).unlink()
    ended = mammo("verify", made.cache.folder, "--workers", 0)
    assert ended.exit_code == 1
    lines = ended.stderr.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 5 more problems"


@pytest.mark.parametrize("command", ["verify", "pack"])
def test_a_cache_that_its_first_command_still_makes_is_in_use(made: Made, command: str) -> None:
    made.cache.manifest_path.unlink()
    with locked(made.cache.folder):
        ended = mammo(command, made.cache.folder, "--workers", 0)
    assert isinstance(ended.exception, FolderInUse)


@pytest.mark.parametrize("command", ["verify", "pack"])
def test_a_damaged_manifest_is_one_sentence(made: Made, command: str) -> None:
    made.cache.manifest_path.write_bytes(bytes(range(256)))
    ended = mammo(command, made.cache.folder, "--workers", 0)
    assert isinstance(ended.exception, UserError)
    assert "manifest.csv is damaged: remove it and run the `mammo prepare`" in str(ended.exception)


@pytest.mark.parametrize("command", ["verify", "pack"])
def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path, command: str) -> None:
    ended = mammo(command, tmp_path / "absent")
    assert isinstance(ended.exception, UserError)
    assert "is not a cache" in str(ended.exception)
    assert not (tmp_path / "absent").exists()
