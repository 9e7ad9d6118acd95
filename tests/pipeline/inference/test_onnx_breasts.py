"""Models of whole breasts as ONNX: equal to torch and to `predict`, whichever slots are filled."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.cache.folder import Cache
from data_prep.cache.images import read_image
from pipeline.data.breasts import classify_view
from pipeline.inference.onnx_export import SLOTS, export_onnx
from pipeline.inference.predict_test_set import predict_cache
from pipeline.runs.run_folder import Run
from pipeline.training.cross_validate import cross_validate
from tests.pipeline.tiny import SIDE, make_exams, make_fused_recipe, quiet, write_cache

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("fusion", ["views", "exam"])
def test_a_file_gives_what_predict_gives(cache: Cache, tmp_path: Path, fusion: str) -> None:
    run = Run(tmp_path / "run")
    recipe = make_fused_recipe(fusion, learning_rate=1e-2, ema_decay=0.5, epochs=1)
    cross_validate(recipe, cache, run, reporter=quiet())
    exams = make_exams(3, split="test").drop(index=[1, 4]).reset_index(drop=True)
    test = write_cache(tmp_path / "test", exams)
    expected = predict_cache(run, test, workers=0, reporter=quiet()).images.set_index("image_id")
    breasts = list(exams.groupby(["patient_id", "laterality"]))
    num_slots, generator = SLOTS[fusion], np.random.default_rng(0)
    shape = (len(breasts), num_slots)
    images = generator.integers(0, 256, (*shape, 1, SIDE, SIDE)).astype(np.float32)  # in empty slots too
    present, views, others = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, int)
    for number, ((patient_id, laterality), own) in enumerate(breasts):
        is_other = (exams["patient_id"] == patient_id) & (exams["laterality"] != laterality)
        rows = [(row, 0) for row in own.itertuples()] + [
            (row, 1) for row in exams[is_other].itertuples() if fusion == "exam"
        ]
        places = generator.permutation(num_slots)[: len(rows)]
        for place, (row, is_of_other) in zip(places, rows, strict=True):
            images[number, place, 0] = read_image(test.image_path(row.patient_id, row.image_id))
            present[number, place], others[number, place] = 1, is_of_other
            views[number, place] = classify_view(row.view)
    for fold, exported in enumerate(export_onnx(run, tmp_path / "onnx")):
        assert exported.difference < 1e-5
        session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
        (said,) = session.run(
            ["probability"],
            {"images": images, "present": present, "view_class": views, "other_breast": others},
        )
        firsts = [own["image_id"].iloc[0] for _, own in breasts]
        assert np.abs(said - expected.loc[firsts, f"probability_fold_{fold}"]).max() < 1e-5
