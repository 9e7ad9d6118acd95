"""Where counting images tells the label, breasts are not learned from all their images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.evaluation.estimates import measure_levels
from pipeline.evaluation.oof import collect_oof
from pipeline.runs.run_folder import Run
from pipeline.training.cross_validate import begin, cross_validate
from pipeline.training.dry_run import make_dry_run
from pipeline.training.fusion.counting import VIEWS_SEEN
from tests.pipeline.tiny import make_exams, make_fused_recipe, quiet, write_cache


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Noise; of breasts without cancer only one view is there."""
    exams = make_exams(num_patients=40, num_cancers=20)
    exams = exams[(exams["cancer"] == 1) | (exams["view"] == "CC")].reset_index(drop=True)
    return write_cache(tmp_path_factory.mktemp("counted") / "cache", exams)


@pytest.mark.parametrize("fusion", ["views", "exam"])
def test_a_training_on_such_breasts_is_refused_with_the_way_out(
    counted: Cache, tmp_path: Path, fusion: str
) -> None:
    run = Run(tmp_path / "run")
    for start in (
        lambda: cross_validate(make_fused_recipe(fusion), counted, run, reporter=quiet()),
        lambda: make_dry_run(make_fused_recipe(fusion), counted, reporter=quiet()),
    ):
        with pytest.raises(UserError, match=r"AUC of (1\.00|0\.9.).* to count them: add .*model.views_per"):
            start()
    assert not run.folder.exists()


def test_with_one_view_at_a_time_nothing_is_learned_of_their_number(counted: Cache, tmp_path: Path) -> None:
    """All is noise, and that an image is an MLO would tell cancer: breasts stay near chance."""
    run = Run(tmp_path / "run")
    recipe = make_fused_recipe(views_per_breast=1, epochs=30, learning_rate=3e-3)
    cross_validate(recipe, counted, run, reporter=quiet())
    of_breasts, _ = measure_levels(collect_oof(run))
    assert abs(of_breasts.figures["auc"] - 0.5) < 0.2


def test_breasts_whose_number_of_images_tells_nothing_are_taken(cache: Cache, tmp_path: Path) -> None:
    exams = pd.concat([make_exams(num_patients=40, num_cancers=20)], ignore_index=True)
    exams = exams[np.random.default_rng(0).random(len(exams)) < 0.8].reset_index(drop=True)
    some = write_cache(tmp_path / "cache", exams)
    assert make_dry_run(make_fused_recipe(), some, reporter=quiet()).num_parameters > 0


def drop(exams: pd.DataFrame, rows: "pd.Series[bool]") -> pd.DataFrame:
    return exams[~rows].reset_index(drop=True)


def of_one_breast(exams: pd.DataFrame) -> pd.DataFrame:
    """Women with cancer have pictures of that breast alone."""
    is_sick = exams.groupby("patient_id")["cancer"].transform("max") == 1
    return drop(exams, is_sick & (exams["cancer"] == 0))


def with_a_spot_view(exams: pd.DataFrame) -> pd.DataFrame:
    """Three images each, one of which is a spot view of the cancer, or a CC again."""
    third = exams[exams["view"] == "CC"]
    third = third.assign(image_id="9" + third["image_id"], view=np.where(third["cancer"] == 1, "AT", "CC"))
    return pd.concat([exams, third], ignore_index=True)


@pytest.mark.parametrize(
    ("change", "fusion", "is_refused"),
    [
        (of_one_breast, "exam", True),
        (of_one_breast, "views", False),
        (with_a_spot_view, "views", True),
        (with_a_spot_view, "exam", True),
    ],
)
def test_what_the_model_sees_is_counted_and_nothing_else(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], fusion: str, is_refused: bool
) -> None:
    cache = write_cache(tmp_path / "cache", change(make_exams(num_patients=40, num_cancers=20)))
    if is_refused:
        with pytest.raises(UserError, match=f'"{VIEWS_SEEN}" alone tells cancer'):
            draw_plan(fusion, cache)
    else:
        draw_plan(fusion, cache)


def draw_plan(fusion: str, cache: Cache) -> None:
    begin(make_fused_recipe(fusion), cache, Run(cache.folder.parent / "run"))
