"""A run that takes the woman's age: switched on without training, and the same wherever it predicts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit
from typer.testing import CliRunner

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.classification.train_classes import open_folder
from pipeline.cli.app import app
from pipeline.evaluation.age.age_regression import fit_folds
from pipeline.evaluation.evaluate_oof import evaluate_oof
from pipeline.evaluation.oof import collect_oof
from pipeline.experiment import evaluate_and_report, train_and_evaluate
from pipeline.external import compare_external, evaluate_external
from pipeline.inference.journal import hash_run
from pipeline.inference.onnx_export import export_onnx
from pipeline.inference.predict_test_set import predict_folder
from pipeline.inference.submission import predict_submission
from pipeline.models.normalization import to_tensor
from pipeline.models.weights_file import load_weights
from pipeline.reporting.explain import explain
from pipeline.runs.recipe import ModelSettings, Recipe
from pipeline.runs.run_folder import Run
from tests.pipeline.tiny import (
    MODEL,
    heard,
    make_class_recipe,
    make_exams,
    make_recipe,
    noise,
    quiet,
    write_cache,
    write_class_folder,
    write_test_data,
)

EXPORTED = ["fold_0.onnx", "fold_1.onnx"]


def with_age(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"inputs": ("age",)})})


def give_ages(exams: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Women with cancer are older; of one woman the age is not known."""
    sick = exams.get("cancer", pd.Series(0, index=exams.index)).groupby(exams["patient_id"]).max()
    ages = 50 + 20 * sick + np.random.default_rng(seed).integers(-9, 10, len(sick))
    ages = ages.astype(float).mask(ages.index == "2")
    return exams.assign(age=exams["patient_id"].map(ages))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cache` with ages, `run` without them and `aged`, which takes them since it was trained."""
    place = tmp_path_factory.mktemp("age")
    cache = write_cache(place / "cache", give_ages(make_exams(16, 8)))
    recipe = make_recipe(epochs=1, learning_rate=3e-3)
    train_and_evaluate(recipe, cache, Run(place / "run"), reporter=quiet())
    shutil.copytree(place / "run", place / "aged")
    train_and_evaluate(with_age(recipe), cache, Run(place / "aged"), reporter=quiet())
    return place


@pytest.fixture
def aged(place: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(place / "aged", tmp_path / "aged")))


def test_a_trained_run_takes_age_without_training(place: Path) -> None:
    run, aged = Run(place / "run"), Run(place / "aged")
    for fold in (0, 1):
        for name in ("weights", "oof", "history"):
            assert getattr(run.fold(fold), name).read_bytes() == getattr(aged.fold(fold), name).read_bytes()
    assert (run.read_inputs(), aged.read_inputs()) == ([], ["age"])
    before, after = collect_oof(run), collect_oof(aged)
    assert after["pixel_probability"].equals(before["probability"])
    assert not after["probability"].equals(before["probability"])
    assert pd.read_csv(aged.oof)["probability"].to_numpy() == pytest.approx(after["probability"].to_numpy())
    assert "by the pixels and the woman's age" in aged.report_text.read_text()
    assert "by the pixels alone" in run.report_text.read_text()
    assert "pixels and age" in aged.report.read_text()


def test_repeats_follow_and_are_judged_again(place: Path, tmp_path: Path) -> None:
    cache, run = Cache(place / "cache"), Run(tmp_path / "run")
    recipe = make_recipe(epochs=1, learning_rate=3e-3)
    train_and_evaluate(recipe, cache, run, reporter=quiet(), num_repeats=2)
    reporter = quiet()
    train_and_evaluate(with_age(recipe), cache, run, reporter=reporter)
    assert "run: the woman's age counts from now on" in heard(reporter)
    assert run.repeat(1).read_inputs() == [], "it was not asked for"
    repeats = pd.read_csv(run.repeats).set_index("repeat")
    judged = evaluate_oof(collect_oof(run.repeat(1), inputs=["age"])).breasts.pooled.metrics
    assert repeats.loc[1, "auc"] == pytest.approx(judged.auc), "but counts as the run does"
    train_and_evaluate(with_age(recipe), cache, run, reporter=quiet(), num_repeats=2)
    assert json.loads(run.repeat(1).metrics.read_text())["age"]["is_used"]


def test_what_was_refused_switches_nothing(place: Path, aged: Run, tmp_path: Path) -> None:
    other, before = write_cache(tmp_path / "other", give_ages(make_exams(15, 8))), aged.settings.read_bytes()
    recipe = make_recipe(epochs=1, learning_rate=3e-3)
    with pytest.raises(UserError, match="has other images or labels"):
        train_and_evaluate(recipe, other, aged, reporter=quiet())
    assert aged.settings.read_bytes() == before


def test_what_was_predicted_before_the_switch_is_gone_on_with(place: Path) -> None:
    """A journal holds what the models say of pixels."""
    assert hash_run(Run(place / "run")) == hash_run(Run(place / "aged"))


def test_and_leaves_it_again(place: Path, aged: Run) -> None:
    cache = Cache(place / "cache")
    train_and_evaluate(make_recipe(epochs=1, learning_rate=3e-3), cache, aged, reporter=quiet())
    assert aged.settings.read_bytes() == (place / "run" / "settings.toml").read_bytes()
    assert aged.oof.read_bytes() == (place / "run" / "oof.csv").read_bytes()


def test_a_submission_counts_age_by_what_each_fold_learned(place: Path, aged: Run, tmp_path: Path) -> None:
    data = write_test_data(tmp_path / "data", give_ages(make_exams(3, split="test"), seed=5))
    pixels = predict_folder(Run(place / "run"), data, workers=0, reporter=quiet()).images
    both = predict_folder(aged, data, workers=0, reporter=quiet()).images
    for fold, (learned, _) in fit_folds(collect_oof(aged)).items():
        name = f"probability_fold_{fold}"
        log_odds = logit(pixels[name]).groupby(pixels["prediction_id"]).mean()
        ages = pixels.groupby("prediction_id")["age"].first()[log_odds.index].to_numpy(np.float64)
        found = logit(both[name]).groupby(both["prediction_id"]).mean()
        np.testing.assert_allclose(found, learned(log_odds.to_numpy(), ages), rtol=1e-9)
    means = both[["probability_fold_0", "probability_fold_1"]].mean(axis=1)
    np.testing.assert_allclose(both["probability"], means, rtol=1e-9)
    assert both["pixel_probability"].equals(pixels["probability"])
    assert both["probability"].notna().all(), "of whom the age is not known too"


def test_without_ages_it_predicts_and_says_so(aged: Run, tmp_path: Path) -> None:
    data, reporter = write_test_data(tmp_path / "data", make_exams(2, split="test")), quiet()
    predicted = predict_folder(aged, data, workers=0, reporter=reporter)
    assert predicted.images["probability"].notna().all()
    assert "warning: the run takes the woman's age, and none is recorded here" in heard(reporter)


def test_a_breast_without_an_image_is_judged_by_age(aged: Run, tmp_path: Path) -> None:
    data = write_test_data(tmp_path / "data", give_ages(make_exams(2, split="test")))
    for path in (data / "test_images/1").iterdir():
        path.write_bytes(b"not a picture")
    predicted = predict_folder(aged, data, workers=0, reporter=quiet())
    breasts = predicted.breasts().set_index("prediction_id")["probability"]
    images = predicted.images.set_index("prediction_id")
    assert breasts["1_L"] == pytest.approx(images.loc["1_L", "age_probability"].iloc[0])
    assert breasts["1_L"] != pytest.approx(predicted.prior)


def test_tables_of_cases_have_age_and_both_parts(place: Path, aged: Run, tmp_path: Path) -> None:
    data = write_test_data(tmp_path / "data", give_ages(make_exams(2, split="test")))
    command = ["predict", str(aged.folder), "--data", str(data), "--workers", "0", "--probabilities"]
    ended = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "submission.csv")])
    assert ended.exit_code == 0, ended.output
    for name in ("submission_images.csv", "submission_breasts.csv"):
        table = pd.read_csv(tmp_path / name)
        assert {"age", "pixel_probability", "age_probability", "probability"} <= set(table)
    assert "pixel_probability" not in pd.read_csv(place / "run" / "breasts.csv")


def test_elsewhere_it_is_judged_with_age(aged: Run, tmp_path: Path) -> None:
    exams = give_ages(make_exams(12, 6))
    exams["patient_id"] = "h" + exams["patient_id"]
    exams["prediction_id"] = exams["patient_id"] + "_" + exams["laterality"]
    exams["image_id"] = (exams["image_id"].astype(int) + 5000).astype(str)
    data = write_test_data(tmp_path / "data", exams)
    judged = evaluate_external(aged, data, "north", workers=0, reporter=quiet())
    assert judged.evaluation.age.is_used
    assert {"pixels", "age", "pixels and age"} == set(judged.evaluation.age.rows)
    assert "age_probability" in pd.read_csv(judged.folder.oof)
    assert "by the pixels and the woman's age" in judged.folder.report_text.read_text()


def test_explain_asks_for_the_age(place: Path, aged: Run, tmp_path: Path) -> None:
    data = write_test_data(tmp_path / "data", give_ages(make_exams(1, split="test")))
    path = next((data / "test_images/1").iterdir())
    pixels, unknown = explain(Run(place / "run"), path), explain(aged, path)
    known = explain(aged, path, age=75)
    for fold, (learned, _) in fit_folds(collect_oof(aged)).items():
        said = logit(np.array([pixels.probabilities[fold]]))
        assert logit(known.probabilities[fold]) == pytest.approx(learned(said, np.array([75.0]))[0])
        assert logit(unknown.probabilities[fold]) == pytest.approx(learned(said, np.array([np.nan]))[0])
    refused = CliRunner().invoke(app, ["explain", str(place / "run"), str(path), "--age", "75"])
    assert refused.exit_code == 1
    assert "judges by the pixels alone: leave --age out" in " ".join(
        str(refused.exception or refused.output).split()
    )


@pytest.mark.slow
def test_onnx_takes_the_age(aged: Run, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    exported = export_onnx(aged, tmp_path / "onnx")
    assert [one.path.name for one in exported] == EXPORTED
    images, ages = [noise(seed) for seed in range(3)], np.array([40, 85, np.nan], np.float32)
    learned = fit_folds(collect_oof(aged))
    for fold, one in enumerate(exported):
        session = runtime.InferenceSession(one.path)
        pixels = np.stack(images)[:, None].astype(np.float32)
        theirs, by_pixels = session.run(["probability", "pixel_probability"], {"images": pixels, "age": ages})
        model, shift = load_weights(aged.fold(fold), MODEL)
        with torch.inference_mode():
            logits = model(torch.stack([to_tensor(image) for image in images]))[:, 0]
        both = learned[fold].both
        ours = expit(both(logits.double().numpy() + shift, ages.astype(float)))
        np.testing.assert_allclose(by_pixels, torch.sigmoid(logits + shift), atol=1e-5)
        np.testing.assert_allclose(theirs, ours, atol=1e-6 * max(10, both.slope * both.scores.steepness))


def test_what_was_found_before_the_switch_is_not_gone_by(place: Path, aged: Run, tmp_path: Path) -> None:
    """Neither a threshold nor predictions of an external set."""
    data = write_test_data(tmp_path / "data", give_ages(make_exams(2, split="test")))
    run = Run(Path(shutil.copytree(place / "run", tmp_path / "run")))
    exams = give_ages(make_exams(12, 6))
    exams["patient_id"], exams["image_id"] = "h" + exams["patient_id"], "5" + exams["image_id"]
    exams["prediction_id"] = exams["patient_id"] + "_" + exams["laterality"]
    elsewhere = write_test_data(tmp_path / "elsewhere", exams)
    evaluate_external(run, elsewhere, "north", workers=0, reporter=quiet())
    shutil.copy(aged.settings, run.settings)  # as a switch that was stopped before its evaluation
    with pytest.raises(UserError, match=r"is of before the run's model\.inputs changed"):
        predict_submission([run], data, tmp_path / "a.csv", workers=0, reporter=quiet())
    evaluate_and_report(run, reporter=quiet())
    predict_submission([run], data, tmp_path / "a.csv", workers=0, reporter=quiet())
    evaluate_external(aged, elsewhere, "north", workers=0, reporter=quiet())
    with pytest.raises(UserError, match=r"was judged on north before its model\.inputs changed"):
        compare_external([aged, run], "north")


# What is refused


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["site_id"], "site_id must not count: it tells where a woman was examined"),
        (["machine_id"], "machine_id must not count: it tells where a woman was examined"),
        (["age", "density"], "density must not count: test.csv does not have it"),
        (["BIRADS"], "BIRADS must not count: test.csv does not have it"),
        (["weight"], "'weight' is not known"),
        ("age", "it takes a list"),
    ],
)
def test_what_may_not_count_is_refused_by_name(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSettings(inputs=value)


def test_a_cache_without_ages_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"records no woman.s age: add --set model\.inputs="):
        train_and_evaluate(with_age(make_recipe()), cache, Run(tmp_path / "run"), reporter=quiet())


def test_a_folder_of_classes_has_no_age(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.inputs is for mammograms alone"):
        open_folder(with_age(make_class_recipe()), write_class_folder(tmp_path / "data"))
