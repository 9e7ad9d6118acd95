"""`mammo pretrain`, then `mammo train` from it, and the pages of both."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from data_prep.cache.folder import Cache
from data_prep.settings import dump_settings
from pipeline.cli.app import app
from pipeline.models.patches import cut_into_patches
from pipeline.pretraining.masked_autoencoder import MaskedAutoencoder, normalise_patches
from pipeline.pretraining.report import give_contrast, replace_hidden
from pipeline.runs.pretrain_run import PretrainRun
from pipeline.runs.run_folder import Run
from tests.pipeline.pretraining.test_pretrain import SMALL, make_pretrain_recipe
from tests.pipeline.tiny import MODEL, make_recipe, noise


def mammo(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mae.toml"
    path.write_text(dump_settings(make_pretrain_recipe(probe_every=1)))
    return path


def test_pretrain_fold_by_fold_then_train(config: Path, cache: Cache, tmp_path: Path) -> None:
    run, trained = PretrainRun(tmp_path / "mae"), Run(tmp_path / "run")
    options = [config, "--cache", cache.folder, "--for", cache.folder, "--run", run.folder]
    first = mammo("pretrain", *options, "--fold", 0)
    assert first.exit_code == 0, first.output
    assert first.stdout.splitlines()[-1] == f"{run.folder}: fold 1 still to be trained"
    rest = mammo("pretrain", *options)
    assert rest.exit_code == 0, rest.output
    assert "fold 0: finished before" in rest.stdout
    assert f"loss and reconstructions: {run.report}" in rest.stdout
    page = run.report.read_text()
    assert "One encoder for each of 2 folds" in page
    assert len(re.findall(r'src="data:image/jpeg', page)) == 3 * 6
    assert 'aria-label="AUC of a linear probe over the epochs"' in page
    fine = tmp_path / "fine.toml"
    fine.write_text(dump_settings(make_recipe(init=str(run.folder), epochs=1)))
    again = mammo("train", fine, "--cache", cache.folder, "--run", trained.folder)
    assert again.exit_code == 0, again.output
    assert f"fold 1: starts from {run.training(1).weights}" in again.stdout
    assert "train.transductive)" not in trained.report.read_text()


def test_a_dry_run_plans_each_encoder_and_writes_nothing(config: Path, cache: Cache, tmp_path: Path) -> None:
    options = [config, "--cache", cache.folder, "--run", tmp_path / "mae", "--dry-run"]
    by_fold = mammo("pretrain", *options, "--for", cache.folder)
    assert by_fold.exit_code == 0, by_fold.output
    assert "fold" in by_fold.stdout.splitlines()[1]
    assert "patches of 8 pixels were not counted" in by_fold.stdout
    assert re.search(r"epochs of 2 folds: about \d+ s on this machine", by_fold.stdout)
    single = mammo("pretrain", *options)
    assert single.exit_code == 0, single.output
    assert "fold" not in single.stdout
    assert not (tmp_path / "mae").exists()
    refused = mammo("pretrain", *options, "--set", "train.mixup=0.5")
    assert "train.mixup does nothing in a pretraining" in str(refused.exception)


def test_a_single_encoder_is_refused_and_what_is_allowed_is_said(
    config: Path, cache: Cache, tmp_path: Path
) -> None:
    run, trained = PretrainRun(tmp_path / "mae"), Run(tmp_path / "run")
    done = mammo("pretrain", config, "--cache", cache.folder, "--run", run.folder)
    assert done.exit_code == 0, done.output
    assert "A single encoder." in run.report.read_text()
    fine = tmp_path / "fine.toml"
    fine.write_text(dump_settings(make_recipe(init=str(run.folder), epochs=1)))
    arguments = ["train", fine, "--cache", cache.folder, "--run", trained.folder]
    refused = mammo(*arguments)
    assert refused.exit_code != 0
    assert "that fold 0 holds out" in str(refused.exception)
    allowed = mammo(*arguments, "--set", "train.transductive=true")
    assert allowed.exit_code == 0, allowed.output
    for path in (trained.report, trained.report_text, trained.model_card):
        assert "has seen mammograms, without labels, of the very patients" in path.read_text()


def test_options_that_contradict_each_other_are_refused(config: Path, cache: Cache, tmp_path: Path) -> None:
    for options in ([], ["--cache", cache.folder, "--data", tmp_path]):
        assert "give either --cache CACHE or --data" in str(mammo("pretrain", config, *options).exception)
    for_pictures = mammo("pretrain", config, "--data", tmp_path, "--for", cache.folder)
    assert "a folder of pictures names no patients" in str(for_pictures.exception)
    alone = mammo("pretrain", config, "--cache", cache.folder, "--engine", "ray")
    assert "spreads the encoders of --for and does not go with a single encoder" in str(alone.exception)
    gpus = mammo("pretrain", config, "--cache", cache.folder, "--gpus-per-fold", 1)
    assert "--gpus-per-fold goes with --engine ray" in str(gpus.exception)


# Reconstructions


def test_perfect_predictions_give_the_image_back_and_visible_patches_stay() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(MODEL, SMALL).eval()
    images = torch.from_numpy(noise(1).astype(np.float32) / 64 - 2)[None, None]
    patches = model.choose(images)
    perfect = give_contrast(normalise_patches(patches.pixels), patches.pixels)
    torch.testing.assert_close(replace_hidden(images, patches, perfect), images)
    grey = cut_into_patches(replace_hidden(images, patches, torch.zeros_like(perfect)), MODEL.patch_size)
    original = cut_into_patches(images, MODEL.patch_size)
    is_hidden = torch.zeros(MODEL.grid_size**2, dtype=torch.bool).scatter(
        0, patches.places[0], patches.is_hidden[0]
    )
    assert (grey[0, is_hidden] == 0).all()
    assert torch.equal(grey[0, ~is_hidden], original[0, ~is_hidden])


def test_the_page_shows_the_held_out_image_itself(config: Path, cache: Cache, tmp_path: Path) -> None:
    run = PretrainRun(tmp_path / "mae")
    mammo("pretrain", config, "--cache", cache.folder, "--run", run.folder)
    page = run.report.read_text()
    image_id = re.findall(r"<h4>(\d+)</h4>", page)[0]
    picture = base64.b64decode(re.findall(r"base64,([^\"]+)", page)[0])
    shown = np.asarray(Image.open(io.BytesIO(picture)), float)
    assert np.corrcoef(shown.ravel(), noise(int(image_id)).ravel())[0, 1] > 0.8
