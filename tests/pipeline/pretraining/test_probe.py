"""The linear probe: judged by scikit-learn's plain tools, blind to held-out images, and changing nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.pretraining import probe
from pipeline.pretraining.images import Sources
from pipeline.pretraining.masked_autoencoder import MaskedAutoencoder
from pipeline.pretraining.pretrain import begin, pretrain
from pipeline.pretraining.probe import Probe, choose_images, cross_validate_probe
from pipeline.runs.pretrain_run import PretrainRun
from pipeline.runs.recipe import ModelSettings
from pipeline.runtime.precision import ComputeSettings
from tests.pipeline.pretraining.test_pretrain import make_pretrain_recipe, of
from tests.pipeline.tiny import MODEL, make_exams, quiet, write_cache


def draw_features(shift: float, *, num_patients=60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two images of each patient; of every third one they have cancer, and lie elsewhere."""
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(num_patients), 2).astype(str).astype(object)
    labels = (patients.astype(int) % 3 == 0).astype(int)
    return generator.normal(size=(len(labels), 8)) + shift * labels[:, None], labels, patients


def test_it_finds_what_is_there_and_nothing_where_nothing_is() -> None:
    assert cross_validate_probe(*draw_features(1.0), 5, seed=0) > 0.95
    assert 0.3 < cross_validate_probe(*draw_features(0.0), 5, seed=0) < 0.7


def test_a_patients_own_images_do_not_teach_it() -> None:
    """Features that tell patients apart, and nothing else, are worth nothing."""
    _, labels, patients = draw_features(0.0)
    own = np.repeat(np.random.default_rng(1).normal(size=(60, 8)), 2, axis=0)
    assert cross_validate_probe(own, labels, patients, 5, seed=0) < 0.7


def test_half_of_the_images_have_cancer_where_there_are_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MOST_IMAGES", 8)
    table = pd.DataFrame({"image_id": range(20), "cancer": [1] * 6 + [0] * 14})
    assert choose_images(table, seed=0)["cancer"].tolist() == [1] * 4 + [0] * 4
    assert choose_images(table.tail(16), seed=0)["cancer"].tolist() == [1] * 2 + [0] * 6


def test_it_sees_training_images_alone(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = begin(
        make_pretrain_recipe(probe_every=1), of(cache), PretrainRun(tmp_path / "mae"), like=cache.folder
    )
    opened: list[pd.DataFrame] = []
    open_images = Sources.pick
    monkeypatch.setattr(Sources, "pick", lambda self, rows: opened.append(rows) or open_images(self, rows))
    split = plan.split(0)
    Probe(plan.sources, split.training, seed=0)
    (rows,) = opened
    assert set(rows["patient_id"]) <= set(split.training["patient_id"])
    assert not set(rows["patient_id"]) & set(split.judged["patient_id"])


def test_it_stands_in_the_history_and_changes_no_weight(cache: Cache, tmp_path: Path) -> None:
    runs = {every: PretrainRun(tmp_path / str(every)) for every in (0, 2)}
    for every, run in runs.items():
        recipe = make_pretrain_recipe(probe_every=every, epochs=4)
        pretrain(recipe, of(cache), run, reporter=quiet())
    history = pd.read_csv(runs[2].training(None).history)
    assert history["probe_auc"].isna().tolist() == [True, False, True, False]
    assert "probe_auc" not in pd.read_csv(runs[0].training(None).history)
    one, other = (run.training(None).weights.read_bytes() for run in runs.values())
    assert one == other


def test_an_encoder_that_shows_the_label_has_an_auc_of_one(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = begin(make_pretrain_recipe(), of(cache), PretrainRun(tmp_path / "mae"))
    found = Probe(plan.sources, plan.images, seed=0)
    labels = torch.tensor(found._labels.tolist(), dtype=torch.float64)
    shown = iter(labels.split(probe.BATCH_SIZE))
    monkeypatch.setattr(MaskedAutoencoder, "describe", lambda _self, _images: next(shown)[:, None])
    model = MaskedAutoencoder(ModelSettings(**MODEL.model_dump()), plan.recipe.pretrain)
    calls: list[int] = []
    assert found.measure(model, ComputeSettings.choose("cpu", "float32"), calls.append) == 1.0
    assert calls == [0] * 2


def test_without_labels_it_is_refused_before_the_first_epoch(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", make_exams(split="test"))
    with pytest.raises(UserError, match=r"pretrain\.probe_every takes two patients with cancer"):
        pretrain(
            make_pretrain_recipe(probe_every=1), of(cache), PretrainRun(tmp_path / "mae"), reporter=quiet()
        )
