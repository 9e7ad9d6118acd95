"""A submission of several runs: the mean of their log-odds, recalled as their joint evaluation would."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from typer.testing import CliRunner

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.cli.app import app
from pipeline.evaluation.evaluate_oof import evaluate_oof
from pipeline.evaluation.oof import collect_oof
from pipeline.experiment import evaluate_and_report
from pipeline.inference.predict_test_set import predict_folder
from pipeline.inference.several_runs import find_joint_rule, join_oof, join_predictions
from pipeline.inference.submission import predict_submission
from pipeline.runs.run_folder import Run
from pipeline.training.cross_validate import cross_validate
from tests.pipeline.tiny import make_exams, make_recipe, quiet, write_cache, write_test_data


@pytest.fixture(scope="module")
def runs(unbroken: Run, cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two runs of the same folds with other weights; no test changes them."""
    place = tmp_path_factory.mktemp("several")
    shutil.copytree(unbroken.folder, place / "first")
    first, second = Run(place / "first"), Run(place / "second")
    cross_validate(make_recipe(epochs=1, learning_rate=5e-3), cache, second, reporter=quiet())
    for run in (first, second):
        evaluate_and_report(run, reporter=quiet())
    return [first, second]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_test_data(tmp_path / "data", make_exams(3, split="test"))


def predict(runs: list[Run], data: Path, **options):
    return predict_submission(
        runs, data, data.parent / "submission.csv", workers=0, reporter=quiet(), **options
    )


def test_an_image_has_the_mean_of_the_runs_log_odds(runs: list[Run], data: Path) -> None:
    predict(runs, data, probabilities=True)
    each = [predict_folder(run, data, workers=0, reporter=quiet()).images for run in runs]
    joint = pd.read_csv(data.parent / "submission_images.csv", dtype={"image_id": str}).set_index("image_id")
    for name in ("probability", "probability_fold_0", "probability_fold_1"):
        expected = np.mean([logit(images[name].to_numpy()) for images in each], axis=0)
        found = joint.loc[each[0]["image_id"], name]
        np.testing.assert_allclose(logit(found), expected, rtol=1e-9)
    assert not [*data.parent.glob("*.partial")]


def test_the_threshold_is_that_of_their_joint_evaluation(runs: list[Run], data: Path) -> None:
    joint = join_oof(runs)
    evaluation = evaluate_oof(joint)
    rule = find_joint_rule(joint, "rate")
    assert rule.threshold == pytest.approx(evaluation.threshold_of_mean, rel=1e-12)
    assert rule.rate == pytest.approx(evaluation.recall_rate, rel=1e-12)
    made = predict(runs, data)
    breasts = pd.read_csv(made.breasts_path)
    assert breasts["threshold"].to_numpy() == pytest.approx(rule.threshold)
    expected = (breasts["probability"] >= rule.threshold).astype(int)
    assert made.table["cancer"].tolist() == expected.tolist()


def test_a_run_with_itself_is_that_run(runs: list[Run], data: Path) -> None:
    predicted = predict_folder(runs[0], data, workers=0, reporter=quiet())
    twice = join_predictions([predicted, predicted])
    np.testing.assert_allclose(twice.images["probability"], predicted.images["probability"], rtol=1e-12)
    with pytest.raises(UserError, match="a run is named twice"):
        join_oof([runs[0], runs[0]])
    copy = Run(Path(shutil.copytree(runs[0].folder, data.parent / "copy")))
    oof = collect_oof(runs[0])
    np.testing.assert_allclose(join_oof([runs[0], copy])["probability"], oof["probability"], rtol=1e-12)


def test_runs_on_other_images_cannot_share_a_cache(runs: list[Run], tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(runs[0].folder, tmp_path / "copy")))
    copy.settings.write_text(copy.settings.read_text().replace("bit_depth = 8", "bit_depth = 16"))
    source = write_cache(tmp_path / "cache", make_exams(2, split="test"))
    with pytest.raises(UserError, match=r"take differently prepared images .* name --data instead"):
        predict_submission(
            [runs[0], copy], source, tmp_path / "a.csv", workers=0, reporter=quiet(), probabilities=True
        )


def test_an_image_that_one_run_cannot_use_has_the_others_probability(runs: list[Run], data: Path) -> None:
    first, second = (predict_folder(run, data, workers=0, reporter=quiet()) for run in runs)
    columns = [name for name in first.images if name.startswith("probability")]
    first.images.loc[0, columns] = np.nan
    joint = join_predictions([first, second]).images
    np.testing.assert_allclose(joint.loc[0, columns], second.images.loc[0, columns], rtol=1e-12)
    second.images.loc[0, columns] = np.nan
    assert join_predictions([first, second]).images.loc[0, columns].isna().all()


def test_what_was_broken_off_goes_on(runs: list[Run], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predict(runs, data, probabilities=True).table

    def stop(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.inference.submission.write_submission", stop)
        with pytest.raises(KeyboardInterrupt):
            predict(runs, data, probabilities=True)
    assert len([*data.parent.glob("submission.csv.[12].partial")]) == 2
    assert predict(runs, data, probabilities=True).table.equals(whole)


def test_runs_that_do_not_fit_are_refused(runs: list[Run], cache: Cache, tmp_path: Path) -> None:
    otherwise = Run(tmp_path / "otherwise")
    cross_validate(make_recipe(epochs=1, seed=1), cache, otherwise, reporter=quiet())
    with pytest.raises(UserError, match=r"has fold \d in one and \d in the other; train both with the same"):
        join_oof([runs[0], otherwise])
    fewer = Run(tmp_path / "fewer")
    small = write_cache(tmp_path / "cache", make_exams(9))
    cross_validate(make_recipe(epochs=1), small, fewer, reporter=quiet())
    with pytest.raises(UserError, match="they have not learned from the same images, of which 136 is in one"):
        join_oof([runs[0], fewer])


def test_the_command_asks_where_to_write(runs: list[Run], data: Path) -> None:
    command = ["predict", *(str(run.folder) for run in runs), "--data", str(data), "--workers", "0"]
    refused = CliRunner().invoke(app, command)
    assert "a submission of 2 runs has no folder of its own: give --out CSV" in str(refused.exception)
    ended = CliRunner().invoke(app, [*command, "--probabilities", "--out", str(data.parent / "a.csv")])
    assert ended.exit_code == 0, ended.output
    assert len(pd.read_csv(data.parent / "a.csv")) == 6
