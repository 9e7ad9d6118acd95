"""The flow of cases: every row of the table is accounted for."""

import pandas as pd
import pytest

from data_prep.cache.folder import Cache, CacheSettings
from data_prep.errors import UserError
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.storage.atomic import write_json
from pipeline.evaluation.artifacts import evaluate_run
from pipeline.evaluation.audit.flow import FLOW_COLUMNS, OTHER_IMAGES, describe_flow
from pipeline.evaluation.audit.traits import CROP_ASPECT, CROP_SIZE, FILE_SIZE, OF_CACHE, read_file_traits
from tests.data_prep.cache_folder import STAGES
from tests.pipeline.synthetic_run import make_oof, write_run


def make_cache(folder, oof, failed):
    """A cache of these images, of which some could not be prepared; its tables without the pictures."""
    cache = Cache(folder)
    cache.open_for(CacheSettings(split="train", prepare=PrepareSettings()))
    records = {}
    for number, (patient_id, image_id) in enumerate(zip(oof["patient_id"], oof["image_id"], strict=True)):
        ids = {"patient_id": patient_id, "image_id": image_id}
        if image_id in failed:
            records[image_id] = {**ids, "reason": failed[image_id], "message": "it is so"}
        else:
            sources = {
                "source_bytes": 1_000 + number,
                "bytes_read": 10,
                "source_sha256": "a",
                "image_sha256": "b",
            }
            records[image_id] = {**ids, **sources, **STAGES, "laterality": "L", "patches": 5}
    cache.write_tables(records)
    cache.write_exams(oof.drop(columns=["fold", "probability"]))
    return cache


def test_every_image_is_predicted_failed_or_lost(tmp_path):
    oof = make_oof(num_patients=20, num_cancers=6).assign(view="CC", age=50.0)
    oof.loc[:9, "age"] = None
    by_breast = oof.groupby(["patient_id", "laterality"])["image_id"]
    sick = oof[oof["cancer"] == 1].iloc[0]
    both = by_breast.get_group((sick["patient_id"], sick["laterality"]))
    single = oof[oof["cancer"] == 0]["image_id"].iloc[0]
    failed = dict.fromkeys(both, "truncated") | {single: "not_dicom"}
    cache = make_cache(tmp_path / "cache", oof, failed)
    flow = describe_flow(oof[~oof["image_id"].isin(failed)], cache)
    assert list(flow.steps) == FLOW_COLUMNS
    assert flow.steps.to_numpy().tolist() == [
        ["in the cache", 80, 40, 6],
        ["failed: not_dicom", 1, 1, 0],
        ["failed: truncated", 2, 1, 1],
        ["predicted", 77, 39, 5],
        ["lost", 2, 1, 1],
    ]
    assert flow.num_lost_cancers == 1
    assert flow.missing["view"] == 0
    assert flow.missing["age"] == pytest.approx(oof[~oof["image_id"].isin(failed)]["age"].isna().mean())
    assert flow.unknown == ""


def test_rows_without_a_file_are_counted_and_their_cancers_are_lost(tmp_path):
    """Of one breast with cancer both files are absent, of a healthy one one."""
    oof = make_oof(num_patients=20, num_cancers=6)
    sick = oof[oof["cancer"] == 1].iloc[0]
    both = oof[(oof["patient_id"] == sick["patient_id"]) & (oof["laterality"] == sick["laterality"])]
    absent = [*both["image_id"], oof[oof["cancer"] == 0]["image_id"].iloc[0]]
    there = oof[~oof["image_id"].isin(absent)]
    cache = make_cache(tmp_path / "cache", there, {})
    tables = [table.drop(columns=["fold", "probability"]) for table in (there, oof)]
    cache.write_exams(tables[0], tables[1][~tables[1]["image_id"].isin(there["image_id"])])
    flow = describe_flow(there, cache)
    assert flow.steps.to_numpy().tolist() == [
        ["in the table", 80, 40, 6],
        ["left out: no file", 3, 2, 1],
        ["in the cache", 77, 39, 5],
        ["predicted", 77, 39, 5],
        ["lost", 2, 1, 1],
    ]
    assert flow.num_lost_cancers == 1
    cache = make_cache(tmp_path / "again", oof, {})
    cache.write_exams(tables[1], tables[1])  # as a killed command may leave them
    assert describe_flow(oof, cache).steps["step"].tolist() == ["in the cache", "predicted"]


def test_what_a_cache_got_after_the_training_is_not_lost(tmp_path):
    """Of 10 patients more: one breast with cancer has one image that failed, a negative one has two."""
    every = make_oof(num_patients=30, num_cancers=12)
    trained = every["patient_id"].astype(int) < 20
    later = every[~trained]
    sick = later[later["cancer"] == 1]["image_id"].iloc[0]
    negative = later[later["cancer"] == 0].groupby(["patient_id", "laterality"])["image_id"]
    failed = dict.fromkeys([sick, *next(iter(negative))[1]], "truncated")
    cache = make_cache(tmp_path / "cache", every, failed)
    flow = describe_flow(every[trained], cache)
    in_run = int(every[trained]["cancer"].sum()) // 2
    assert 0 < in_run < 12
    assert flow.steps.to_numpy().tolist() == [
        ["in the cache", 120, 60, 12],
        ["failed: truncated", 3, 2, 1],
        ["predicted", 80, 40, in_run],
        ["not in this run", 37, 19, 12 - in_run],
        ["lost", 2, 1, 0],
    ]
    assert flow.num_lost_cancers == 0


def test_an_image_that_fails_now_but_was_predicted_is_predicted(tmp_path):
    oof = make_oof(num_patients=4, num_cancers=2)
    cache = make_cache(tmp_path / "cache", oof, {oof["image_id"].iloc[0]: "truncated"})
    assert describe_flow(oof, cache).steps["num_images"].tolist() == [16, 16]


@pytest.mark.parametrize("column", ["image_id", "patient_id"])
def test_a_cache_without_a_predicted_image_is_not_at_hand(tmp_path, column):
    oof = make_oof(num_patients=4, num_cancers=2)
    cache = make_cache(tmp_path / "cache", oof, {})
    with pytest.raises(UserError, match=OTHER_IMAGES):
        describe_flow(oof.assign(**{column: "7" + oof[column]}), cache)


def test_other_data_at_the_place_of_the_cache_lose_no_cancer(tmp_path):
    oof = make_oof(num_patients=20, num_cancers=6)
    make_cache(tmp_path / "cache", oof.assign(patient_id="7" + oof["patient_id"]), {})
    run = write_run(tmp_path / "run", oof)
    write_json(run.environment, {"cache": str(tmp_path / "cache")})
    evaluation = evaluate_run(run)
    assert OTHER_IMAGES in evaluation.flow.unknown
    assert evaluation.flow.num_lost_cancers == 0
    assert OTHER_IMAGES in evaluation.audit.not_looked_at[FILE_SIZE]


def test_without_a_cache_only_what_was_predicted_is_known():
    oof = make_oof(num_patients=20, num_cancers=6)
    flow = describe_flow(oof, None, unknown="it is gone")
    assert flow.steps.to_numpy().tolist() == [["predicted", 80, 40, 6]]
    assert (flow.num_lost_cancers, flow.missing, flow.unknown) == (0, {}, "it is gone")


def test_the_traits_of_files_are_those_of_the_manifest(tmp_path):
    oof = make_oof(num_patients=4, num_cancers=2)
    files = read_file_traits(make_cache(tmp_path / "cache", oof, {oof["image_id"].iloc[0]: "truncated"}))
    assert list(files) == ["image_id", *OF_CACHE]
    known = files[files["image_id"] != oof["image_id"].iloc[0]]
    assert (known[CROP_SIZE] == 32 * 64).all()
    assert (known[CROP_ASPECT] == 0.5).all()
    assert set(known[FILE_SIZE]) == set(range(1_001, 1_016))
    assert files[pd.isna(files[FILE_SIZE])]["image_id"].tolist() == [oof["image_id"].iloc[0]]


def test_a_flow_counts_the_breasts_of_each_exam(tmp_path):
    """Ten women with two exams each; a cache that knows no exams counts women's breasts alone."""
    oof = make_oof(num_patients=20, num_cancers=6)
    number = oof["patient_id"].astype(int)
    oof = oof.assign(patient_id=(number % 10).astype(str), exam_id=(number // 10).astype(str))
    cache = make_cache(tmp_path / "cache", oof, {})
    assert describe_flow(oof, cache).steps.to_numpy().tolist() == [
        ["in the cache", 80, 40, 6],
        ["predicted", 80, 40, 6],
    ]
    assert describe_flow(oof.drop(columns="exam_id").assign(cancer=0), cache).steps[
        "num_breasts"
    ].tolist() == [20, 20]
