"""A mammogram explained by a run that judges whole breasts."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.cli.app import app
from pipeline.inference.predict_test_set import predict_folder
from pipeline.reporting.breast_views import Companion
from pipeline.reporting.explain import draw_explanation, explain
from pipeline.runs.run_folder import Run
from pipeline.training.cross_validate import cross_validate
from tests.pipeline.tiny import make_exams, make_fused_recipe, quiet, write_test_data


@pytest.fixture(scope="module")
def run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("exam") / "run")
    recipe = make_fused_recipe("exam", learning_rate=1e-2, ema_decay=0.5)
    cross_validate(recipe, cache, run, reporter=quiet())
    return run


def test_with_all_images_the_probability_is_that_of_predict_and_all_count(run: Run, tmp_path: Path) -> None:
    folder = write_test_data(tmp_path / "data", make_exams(1, split="test"))
    predicted = predict_folder(run, folder, workers=0, reporter=quiet()).images
    expected = predicted.set_index("image_id")["probability"]
    cc, mlo, other_cc, other_mlo = (folder / "test_images/1" / f"{number}.png" for number in range(100, 104))
    beside = [
        Companion(mlo, "MLO", False),
        Companion(other_cc, "cc", True),
        Companion(other_mlo, "MLO", True),
    ]
    found = explain(run, cc, view="CC", companions=beside)
    assert found.probability == pytest.approx(expected["100"], rel=1e-6)
    assert [name for name, _ in found.shares] == [
        "CC 100.png",
        "MLO 101.png",
        "other breast's cc 102.png",
        "other breast's MLO 103.png",
    ]
    assert sum(share for _, share in found.shares) == pytest.approx(1)
    assert min(share for _, share in found.shares) > 0
    assert np.nanmean(found.maps["breast"]) == pytest.approx(1.0, rel=0.05)
    assert draw_explanation(found).startswith(b"\x89PNG")
    alone = explain(run, cc, view="CC")
    assert alone.shares == [("CC 100.png", pytest.approx(1))]
    assert alone.probability != found.probability


def test_a_view_that_is_neither_cc_nor_mlo_is_said(run: Run, tmp_path: Path) -> None:
    folder = write_test_data(tmp_path / "data", make_exams(1, split="test"))
    cc, mlo = (folder / "test_images/1" / f"{number}.png" for number in (100, 101))
    asked = ["explain", run.folder, cc, "--out", tmp_path / "a.png", "--view", "cc", "--beside", f"MLQ={mlo}"]
    shown = CliRunner().invoke(app, [*map(str, asked)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    said = [line for line in shown.stdout.splitlines() if "counts as neither CC nor MLO" in line]
    assert len(said) == 1
    assert said[0].startswith("MLQ: ")
    assert said[0].endswith(", MLO, ML, LM, LMO, SIO")


def test_a_run_that_does_not_see_other_images_refuses_them(unbroken: Run, tmp_path: Path) -> None:
    folder = write_test_data(tmp_path / "data", make_exams(1, split="test"))
    paths = [folder / "test_images/1" / f"{number}.png" for number in (100, 101)]
    with pytest.raises(UserError, match="judges each image by itself"):
        explain(unbroken, paths[0], companions=[Companion(paths[1], "MLO", False)])
