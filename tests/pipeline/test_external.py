"""A run on labelled images of elsewhere: predicted as a submission is, judged as by scikit-learn, resumed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from data_prep.cache.build import prepare_dataset
from data_prep.cache.folder import Cache, CacheSettings
from data_prep.errors import UserError
from data_prep.storage.atomic import Journal
from pipeline.evaluation.oof import collect_oof
from pipeline.experiment import evaluate_and_report
from pipeline.external import ExternalResult, evaluate_external, name_set
from pipeline.inference.ensemble import Ensemble
from pipeline.inference.predict_test_set import predict_folder
from pipeline.reporting.cases.case_selection import select_cases
from pipeline.runs.run_folder import Run
from pipeline.training.cross_validate import cross_validate
from tests.pipeline.tiny import PREPARE, heard, make_exams, make_recipe, quiet, write_test_data

SETTINGS = CacheSettings(split="train", prepare=PREPARE)


def prepare(data: Path, folder: Path) -> Cache:
    cache = Cache(folder)
    prepare_dataset(data, cache, SETTINGS, workers=0)
    return cache


def rename(exams: pd.DataFrame, *, patients: str = "h", images: int = 5000) -> pd.DataFrame:
    """The same rows of other women, with other pictures."""
    patient_id = patients + exams["patient_id"]
    return exams.assign(
        patient_id=patient_id,
        image_id=(exams["image_id"].astype(int) + images).astype(str),
        prediction_id=patient_id + "_" + exams["laterality"],
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`own`, the run's data, with its `cache` and `run`; and `north`, of twelve other women."""
    place = tmp_path_factory.mktemp("external")
    exams = make_exams(12, 6).assign(machine_id="49", age=60.0)
    cache = prepare(write_test_data(place / "own", exams), place / "cache")
    run = Run(place / "run")
    cross_validate(make_recipe(epochs=2), cache, run, reporter=quiet())
    evaluate_and_report(run, reporter=quiet())
    others = rename(make_exams(12, 4)).assign(machine_id="7", age=50.0, implant=0)
    write_test_data(place / "north", others)
    return place


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(place / "run", tmp_path / "run")))


def judge(run: Run, data: Path | Cache, name: str = "north", **options) -> ExternalResult:
    return evaluate_external(run, data, name, workers=0, reporter=quiet(), **options)


@pytest.fixture(scope="module")
def judged(place: Path, tmp_path_factory: pytest.TempPathFactory) -> ExternalResult:
    """A copy of the run, judged on `north`; no test changes it."""
    run = Run(Path(shutil.copytree(place / "run", tmp_path_factory.mktemp("judged") / "run")))
    return judge(run, place / "north")


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"patient_id": str, "image_id": str})


def left_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


# What is said


def test_predictions_are_those_of_a_submission_and_each_folds_own(
    judged: ExternalResult, place: Path, tmp_path: Path
) -> None:
    """To the last bit: the same women as a test set."""
    exams = rename(make_exams(12, 4)).drop(columns="cancer")
    tests = write_test_data(tmp_path / "tests", exams)
    submitted = predict_folder(Run(place / "run"), tests, workers=0, reporter=quiet()).images
    kept = read(judged.folder.oof)
    columns = ["probability", "probability_fold_0", "probability_fold_1"]
    assert kept["image_id"].tolist() == submitted["image_id"].tolist()
    assert (kept[columns].to_numpy() == submitted[columns].to_numpy()).all()
    assert kept["file"].tolist() == [f"{image_id}.png" for image_id in kept["image_id"]]


def join(images: pd.DataFrame, column: str) -> pd.DataFrame:
    """Breasts by plain means on the logit."""
    p = images[column]
    joined = images.assign(logit=np.log(p / (1 - p))).groupby(["patient_id", "laterality"], as_index=False)
    breasts = joined.agg({"logit": "mean", "cancer": "first"})
    return breasts.assign(probability=1 / (1 + np.exp(-breasts["logit"])))


def test_figures_are_scikit_learns(judged: ExternalResult, place: Path) -> None:
    """Of the ensemble at the threshold of submissions, and of each fold's model at that of single models."""
    metrics = json.loads(judged.folder.metrics.read_bytes())
    images = read(judged.folder.oof)
    breasts = join(images, "probability")
    labels, found = breasts["cancer"], metrics["pooled"]
    of_run = json.loads((place / "run/metrics.json").read_bytes())
    threshold = of_run["threshold_of_mean"]
    assert metrics["threshold"] == metrics["threshold_of_mean"] == threshold
    assert metrics["external"]["threshold_of_one_model"] == of_run["threshold"]
    assert metrics["decision_curve"]["points"] == []
    assert metrics["repeats"] is None
    assert found["auc"] == pytest.approx(roc_auc_score(labels, breasts["probability"]))
    assert found["average_precision"] == pytest.approx(
        average_precision_score(labels, breasts["probability"])
    )
    assert found["brier"] == pytest.approx(brier_score_loss(labels, breasts["probability"]))
    recalled = breasts["probability"] >= threshold
    assert found["pf1_transferred"] == pytest.approx(f1_score(labels, recalled, zero_division=0))
    assert metrics["images"]["pooled"]["auc"] == pytest.approx(
        roc_auc_score(images["cancer"], images["probability"])
    )
    for row in metrics["folds"]:
        own = join(images, f"probability_fold_{row['fold']}")
        assert row["auc"] == pytest.approx(roc_auc_score(own["cancer"], own["probability"]))
        assert row["pf1_transferred"] == pytest.approx(
            f1_score(own["cancer"], own["probability"] >= of_run["threshold"], zero_division=0)
        )
        assert row["num_breasts"] == 24
    assert all(name in found["interval_95"] for name in ("auc", "brier"))


def test_the_threshold_is_carried_over_as_a_probability_and_as_a_recall_rate(
    judged: ExternalResult, place: Path
) -> None:
    metrics = json.loads(judged.folder.metrics.read_bytes())
    own = join(collect_oof(Run(place / "run")), "probability")
    threshold = metrics["threshold"]
    rate = (own["probability"] >= metrics["external"]["threshold_of_one_model"]).mean()
    assert metrics["recall_rate"] == pytest.approx(rate)
    carried = metrics["external"]["carried_thresholds"]
    assert carried["recall_rate"]["value"] == pytest.approx(rate)
    breasts = join(read(judged.folder.oof), "probability")
    allowed = int(np.floor(rate * len(breasts) + 0.5))
    highest = breasts.sort_values("probability", ascending=False)["probability"].iloc[:allowed]
    assert carried["recall_rate"]["threshold"] == pytest.approx(highest.min())
    assert carried["recall_rate"]["share_recalled"] == pytest.approx(allowed / len(breasts))
    recalled = breasts["probability"] >= highest.min() - 1e-12
    assert carried["recall_rate"]["pf1"] == pytest.approx(
        f1_score(breasts["cancer"], recalled, zero_division=0)
    )
    assert carried["probability"]["share_recalled"] == pytest.approx(
        (breasts["probability"] >= threshold).mean()
    )


def test_calibration_is_what_the_runs_own_breasts_teach(judged: ExternalResult, place: Path) -> None:
    """Platt's, by scikit-learn's own logistic regression on his smoothed targets."""
    own = join(collect_oof(Run(place / "run")), "probability")
    num_cancers, num_others = own["cancer"].sum(), (1 - own["cancer"]).sum()
    high, low = (num_cancers + 1) / (num_cancers + 2), 1 / (num_others + 2)
    targets = np.where(own["cancer"] == 1, high, low)
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    logits = own[["logit"]].to_numpy()
    model.fit(
        np.concatenate([logits, logits]),
        np.repeat([1, 0], len(own)),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    breasts = read(judged.folder.breasts)
    expected = model.predict_proba(breasts[["logit"]].to_numpy())[:, 1]
    assert breasts["calibrated"].to_numpy() == pytest.approx(expected, rel=1e-3)
    metrics = json.loads(judged.folder.metrics.read_bytes())
    assert metrics["calibration"]["methods"]["platt"]["brier"] == pytest.approx(
        brier_score_loss(breasts["cancer"], breasts["calibrated"])
    )


def test_tables_of_cases_hold_every_image_and_breast(judged: ExternalResult) -> None:
    images, breasts = read(judged.folder.images), read(judged.folder.breasts)
    assert (len(images), len(breasts)) == (48, 24)
    p = images["probability"]
    assert images["logit"].to_numpy() == pytest.approx(np.log(p / (1 - p)).to_numpy())
    by_breast = images.groupby("prediction_id")
    assert breasts["logit"].to_numpy() == pytest.approx(by_breast["logit"].mean()[breasts["prediction_id"]])
    for column in ("calibrated", "recalled", "threshold"):
        assert (by_breast[column].first()[breasts["prediction_id"]].to_numpy() == breasts[column]).all()
    assert (breasts["recalled"] == (breasts["probability"] >= breasts["threshold"])).all()
    assert set(breasts["views"]) == {"CC+MLO"}
    for fold in (0, 1):
        said = join(images, f"probability_fold_{fold}").set_index(["patient_id", "laterality"])["probability"]
        keys = pd.MultiIndex.from_frame(breasts[["patient_id", "laterality"]])
        assert breasts[f"probability_fold_{fold}"].to_numpy() == pytest.approx(said.reindex(keys).to_numpy())


def test_the_shift_shows_what_differs(judged: ExternalResult) -> None:
    shift = read(judged.folder.shift).set_index(["trait", "value", "statistic"])
    assert shift.loc[("cancer, of breasts", np.nan, "share"), ["run", "external"]].tolist() == [
        6 / 24,
        4 / 24,
    ]
    assert shift.loc[("age", np.nan, "mean"), ["run", "external"]].tolist() == [60, 50]
    assert shift.loc[("machine, of patients", "49", "share"), ["run", "external"]].tolist() == [1, 0]
    brightness = shift.loc[("brightness of pictures", np.nan, "mean")]
    assert 0 < brightness["run"] < 1
    assert 0 < brightness["external"] < 1


def test_the_report_speaks_of_the_set_and_not_of_other_folds(judged: ExternalResult) -> None:
    for path in (judged.folder.report, judged.folder.report_text):
        text = path.read_text()
        assert "run on north" in text
        assert "External evaluation" in text
        assert "none of their pictures is one of the run" in text
        assert "other folds' threshold" not in text.replace("&#39;", "'")
        assert "How this set differs" in text or path == judged.folder.report_text
    assert judged.folder.report.read_text().count("data:image/jpeg;base64,") == sum(
        len(case.views) for case in shown(judged)
    )


def shown(judged: ExternalResult) -> list:
    return [case for group in select_cases(judged.evaluation).groups for case in group.cases]


def test_a_cache_says_what_the_files_say(
    judged: ExternalResult, place: Path, run: Run, tmp_path: Path
) -> None:
    cached = judge(run, prepare(place / "north", tmp_path / "cache"))
    ours, theirs = left_in(cached.folder.folder), left_in(judged.folder.folder)
    alike = ["fold_metrics.csv", "slices.csv", "breasts.csv", "calibration.csv", "threshold_stability.csv"]
    for name in [*alike, "shift.csv", "shortcut_audit.csv"]:
        assert ours[name] == theirs[name], name
    assert ours.keys() == theirs.keys()


# Who was seen before


def test_a_patient_of_the_run_is_refused_by_name_before_an_image_is_read(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ensemble, "predict_each", lambda *_: pytest.fail("an image was predicted"))
    with pytest.raises(UserError, match=r"has learned from 12 patients of this set \(1; 2; 3 and 9 more\)"):
        judge(run, place / "own")
    assert not run.external("north").folder.exists()


def mix(place: Path, folder: Path) -> Path:
    """Three women: one of the run's, one with a picture of the run's woman 2, and one whom nobody knows."""
    exams = make_exams(12, 6)
    known = exams[exams["patient_id"] == "1"]
    north = rename(make_exams(4, 2))
    others = north[north["patient_id"].isin(["h1", "h4"])]
    data = write_test_data(folder, pd.concat([known, others]))
    shutil.copy(place / "own/train_images/2/104.png", data / "train_images/h1/5100.png")
    return data


@pytest.mark.parametrize("kind", ["files", "cache"])
def test_a_picture_of_the_run_is_refused_by_name_or_left_out_with_its_patient(
    run: Run, place: Path, tmp_path: Path, kind: str
) -> None:
    data = mix(place, tmp_path / "mixed")
    source = data if kind == "files" else prepare(data, tmp_path / "mixed_cache")
    with pytest.raises(UserError, match=r"has learned from .* patients? of this set .*--skip-seen"):
        judge(run, source)
    exams = pd.read_csv(data / "train.csv", dtype=str)
    exams[exams["patient_id"] != "1"].to_csv(data / "train.csv", index=False)
    source = data if kind == "files" else prepare(data, tmp_path / "less_cache")
    with pytest.raises(UserError, match=r"1 patient of this set \(h1, whose image 5100 is 2's 104\)"):
        judge(run, source, "less")
    exams.to_csv(data / "train.csv", index=False)
    source = data if kind == "files" else Cache(tmp_path / "mixed_cache")
    reporter = quiet()
    found = evaluate_external(run, source, "skipped", workers=0, reporter=reporter, skip_seen=True)
    assert "2 patients left out, whom the run has learned from: 1, h1; " in heard(reporter)
    assert set(read(found.folder.oof)["patient_id"]) == {"h4"}
    left_out = read(found.folder.left_out).set_index("patient_id")["reason"]
    assert left_out.to_dict() == {"1": "the same patient id", "h1": "the same picture"}
    flow = found.evaluation.flow.steps.set_index("step")["num_images"]
    assert flow["left out: the run has learned from the patient"] == 8
    assert "Left out were 1 with such an id, 1 by a picture." in found.folder.report_text.read_text()


def test_an_older_run_compares_with_its_cache_or_says_that_it_cannot(
    run: Run, place: Path, tmp_path: Path
) -> None:
    data = mix(place, tmp_path / "mixed")
    exams = pd.read_csv(data / "train.csv", dtype=str)
    exams[exams["patient_id"] != "1"].to_csv(data / "train.csv", index=False)
    run.pictures.unlink()
    with pytest.raises(UserError, match="whose image 5100 is 2's 104"):
        judge(run, data)
    run.environment.write_text(json.dumps({"cache": str(tmp_path / "gone")}))
    found = judge(run, data)
    reason = found.evaluation.external.not_compared
    assert reason == f"run keeps no pictures.csv, and the run's cache {tmp_path / 'gone'} is no longer there"
    assert reason in found.folder.report_text.read_text().replace("\\", "")


def test_nothing_but_seen_patients_is_nothing_to_judge(run: Run, place: Path) -> None:
    with pytest.raises(UserError, match="has learned from all patients of this set"):
        judge(run, place / "own", skip_seen=True)


# Broken off and gone on with


def test_what_was_predicted_is_not_predicted_again_and_ends_with_the_same_bytes(
    judged: ExternalResult, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original, append = Ensemble.predict_each, Journal.append

    def count(self, images_BCHW):
        calls.append(len(images_BCHW))
        return original(self, images_BCHW)

    monkeypatch.setattr(Ensemble, "predict_each", count)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", lambda self, record: None if calls else append(self, record))
        patch.setattr("pipeline.external._judge", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            judge(run, place / "north")
    assert sum(calls) == 48
    calls.clear()
    again = judge(run, place / "north")
    assert left_in(again.folder.folder) == left_in(judged.folder.folder)
    calls.clear()
    assert left_in(judge(run, place / "north").folder.folder) == left_in(judged.folder.folder)
    assert not calls


def test_a_name_holds_one_set(run: Run, place: Path, tmp_path: Path) -> None:
    judge(run, place / "north")
    other = write_test_data(tmp_path / "south", rename(make_exams(6, 2), patients="s", images=9000))
    with pytest.raises(UserError, match=r"predicted with another train\.csv: choose another --name"):
        judge(run, other)


def test_broken_and_missing_images_are_told_and_the_rest_is_judged(
    run: Run, place: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(place / "north", tmp_path / "north"))
    (data / "train_images/h1/5100.png").write_bytes(b"no image")
    (data / "train_images/h1/5101.png").unlink()
    found = judge(run, data)
    assert read(found.folder.failures)["image_id"].tolist() == ["5100", "5101"]
    assert found.evaluation.flow.num_lost_cancers == 1
    assert found.evaluation.breasts.pooled.num_breasts == 23


# Names


@pytest.mark.parametrize(("data", "name", "expected"), [("a/north", None, "north"), ("a", "x-1", "x-1")])
def test_a_set_is_called_like_its_folder_or_as_one_likes(data: str, name: str | None, expected: str) -> None:
    assert name_set(Path(data), name) == expected


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="choose a --name of"):
        name_set(Path("/"), name)


# Exams


def test_a_womans_exams_are_kept_apart_and_named(run: Run, place: Path, tmp_path: Path) -> None:
    """Two rounds of each woman, of whom the first two have cancer in the second one."""
    rounds = [
        rename(make_exams(6, cancers), images=images).assign(exam_id=exam)
        for exam, cancers, images in (("1", 0, 5000), ("2", 2, 6000))
    ]
    exams = pd.concat(rounds, ignore_index=True).drop(columns="prediction_id")
    found = judge(run, write_test_data(tmp_path / "rounds", exams))
    pooled = found.evaluation.breasts.pooled
    assert (pooled.num_patients, pooled.num_breasts, pooled.num_cancers) == (6, 24, 2)
    assert [table.unit for table in found.evaluation.operating_point.tables] == ["breast", "exam"]
    for path in (found.folder.oof, found.folder.images, found.folder.breasts):
        assert set(read(path)["exam_id"]) == {1, 2}
    assert len(read(found.folder.breasts)) == 24
    assert "sensitivity per exam" in found.folder.report_text.read_text()


def test_the_users_own_file_names_come_before_those_of_the_layout(
    run: Run, place: Path, tmp_path: Path
) -> None:
    exams = rename(make_exams(4, 2))
    data = write_test_data(tmp_path / "named", exams.assign(file="scan_" + exams["image_id"] + ".dcm"))
    cached = judge(run, prepare(data, tmp_path / "cache"), "cached")
    for found in (judge(run, data), cached):
        table = read(found.folder.oof)
        assert table["file"].tolist() == [f"scan_{image_id}.dcm" for image_id in table["image_id"]]
