"""The gallery: the right breasts, the right pictures, and a sentence where there are none."""

import base64
import html
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import expit, logit

from data_prep.cache.folder import Cache
from data_prep.cache.images import read_image
from data_prep.errors import UserError
from data_prep.imageio.frame import Box
from data_prep.preprocessing.placement import Placement
from pipeline.evaluation.artifacts import evaluate_run
from pipeline.evaluation.evaluate_oof import evaluate_oof
from pipeline.experiment import evaluate_and_report
from pipeline.models.attention import find_maps
from pipeline.models.normalization import to_tensor
from pipeline.models.weights_file import load_weights
from pipeline.reporting.cases.case_selection import select_cases
from pipeline.reporting.cases.gallery import SIDES_PX, Crop, encode_within, find_cut, open_cache, show_cases
from pipeline.reporting.report import write_report
from pipeline.runs.recipe import load_recipe
from tests.pipeline.synthetic_run import add_exam_columns, make_oof
from tests.pipeline.tiny import heard, quiet


def join(probabilities):
    """The mean on the logit."""
    return expit(np.mean(logit(probabilities)))


def choose_slowly(oof):
    """The most confident right and wrong breasts, by plain loops over the predictions."""
    breasts = {}
    for row in oof.itertuples():
        breasts.setdefault((row.patient_id, row.laterality), []).append(row)
    scores = [
        (join([row.probability for row in rows]), rows[0].cancer, rows[0].fold, key)
        for key, rows in breasts.items()
    ]

    def f1(threshold, pairs):
        called = [cancer for score, cancer in pairs if score >= threshold]
        return 2 * sum(called) / (len(called) + sum(cancer for _, cancer in pairs))

    thresholds = {}
    for fold in {score[2] for score in scores}:
        others = [(score, cancer) for score, cancer, other, _ in scores if other != fold]
        thresholds[fold] = max((f1(score, others), score) for score, _ in others)[1]
    chosen = {}
    for title, cancer, is_called, sign in (
        ("Cancers found", 1, True, -1),
        ("Cancers missed", 1, False, 1),
        ("False alarms", 0, True, -1),
        ("Rightly not recalled", 0, False, 1),
    ):
        of_kind = [s for s in scores if s[1] == cancer and (s[0] >= thresholds[s[2]]) == is_called]
        chosen[title] = [key for *_, key in sorted(of_kind, key=lambda s: (sign * s[0], *s[3]))][:3]
    return chosen


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_most_confident_breasts_are_chosen(seed):
    oof = make_oof(seed=seed)
    choice = select_cases(evaluate_oof(oof))
    found = {
        group.title: [(case.patient_id, case.laterality) for case in group.cases] for group in choice.groups
    }
    assert found == choose_slowly(oof)
    assert sum(group.num_all for group in choice.groups) == 120
    for group in choice.groups:
        for case in group.cases:
            assert case.probability == pytest.approx(join([view.probability for view in case.views]))
            assert case.is_recalled == (group.title in {"Cancers found", "False alarms"})


def test_the_best_threshold_stands_in_where_a_fold_has_no_other():
    oof = make_oof(num_folds=2)
    oof.loc[oof["fold"] == 1, "cancer"] = 0
    evaluation = evaluate_oof(oof)
    choice = select_cases(evaluation)
    assert choice.held_against == "the best pooled threshold"
    assert {case.threshold for group in choice.groups for case in group.cases} == {evaluation.threshold}
    assert select_cases(evaluate_oof(make_oof(num_cancers=0))).groups == []


def test_all_views_of_a_breast_are_shown_in_a_fixed_order():
    choice = select_cases(evaluate_oof(add_exam_columns(make_oof())))
    assert all(
        [view.view for view in case.views] == ["CC", "MLO"] for group in choice.groups for case in group.cases
    )


def read_address(address):
    kind, encoded = re.match(r"data:image/(\w+);base64,(.*)", address).groups()
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        assert picture.format.lower() == kind
        return np.asarray(picture)


def test_every_image_has_its_picture_and_what_its_own_fold_model_saw(finished):
    """The overlay's strongest patch is that of the model which held the patient out."""
    evaluation = evaluate_run(finished)
    choice = select_cases(evaluation)
    reporter = quiet()
    gallery = show_cases(finished, choice, reporter=reporter)
    assert f"pictures of cases: {len(gallery.tiles)}/{len(gallery.tiles)} images" in heard(reporter)
    assert gallery.missing == []
    recipe = load_recipe(finished.settings)
    cache = open_cache(finished, recipe)
    for case in (case for group in choice.groups for case in group.cases):
        model, _ = load_weights(finished.fold(case.fold), recipe.model)
        for view in case.views:
            image = read_image(cache.image_path(case.patient_id, view.image_id))
            tile = gallery.tiles[view.image_id]
            shown = read_address(tile.mammogram)
            assert shown.shape == (tile.height, tile.width)
            assert np.abs(shown.astype(int) - image[: tile.height, : tile.width]).mean() < 20
            expected = find_maps(model, to_tensor(image)[None]).gradient_rollout[0].numpy()
            overlay = read_address(tile.overlay)[..., 3].astype(int)
            above = expected > expected.mean()
            assert (overlay[~above] == 0).all()
            assert overlay.max() == overlay[np.unravel_index(expected.argmax(), expected.shape)]


def change_cache(run, folder):
    """Lets the run say that its images came from another folder."""
    environment = json.loads(run.environment.read_text()) | {"cache": str(folder), "cache_from_run": ""}
    run.environment.write_text(json.dumps(environment))


def say_missing(run):
    """The sentence of a report whose cases have no pictures."""
    evaluation = evaluate_run(run)
    gallery = show_cases(run, select_cases(evaluation), reporter=quiet())
    assert gallery.tiles == {}
    (sentence,) = gallery.missing
    reporter = quiet()
    page = write_report(run, evaluation, reporter=reporter).read_text("utf-8")
    assert html.escape(sentence, quote=False) in page.replace("&#39;", "'")
    hint = f"the cache can be named: `mammo evaluate {run.folder} --cache CACHE`"
    assert heard(reporter).splitlines() == [f"warning: {sentence}", *([hint] if "cache" in sentence else [])]
    assert "<img" not in page
    return sentence


def test_without_its_cache_a_report_says_so_and_lists_the_cases(finished, tmp_path):
    change_cache(finished, tmp_path / "gone")
    assert say_missing(finished).endswith(f"the run's cache {tmp_path / 'gone'} is no longer there.")
    finished.environment.write_text("{}")
    assert "environment.json names no cache" in say_missing(finished)
    finished.settings.unlink()
    assert "settings.toml does not describe a model" in say_missing(finished)
    cases = select_cases(evaluate_run(finished)).groups[0].cases
    assert f"Patient {cases[0].patient_id}, left" in finished.report.read_text("utf-8")


def test_a_cache_that_is_named_is_the_runs(finished, cache, tmp_path):
    """Both for the pictures and for what is known of files."""
    change_cache(finished, tmp_path / "gone")
    assert (
        f"{tmp_path / 'gone'} is no longer there" in evaluate_run(finished).audit.not_looked_at["file size"]
    )
    reporter = quiet()
    evaluation = evaluate_and_report(finished, reporter=reporter, cache=cache)
    assert evaluation.flow.unknown == ""
    assert "warning: " not in heard(reporter)
    assert "<img" in finished.report.read_text("utf-8")
    with pytest.raises(UserError, match="is not a cache"):
        evaluate_and_report(finished, reporter=reporter, cache=Cache(tmp_path / "gone"))


def test_a_cache_with_other_images_is_not_shown(finished, cache, tmp_path):
    """Made anew with other settings, without an image, or with other pixels under the same name."""
    other = tmp_path / "other"
    shutil.copytree(cache.folder, other)
    change_cache(finished, other)
    settings = (other / "settings.toml").read_text()
    (other / "settings.toml").write_text(settings.replace('fit = "letterbox"', 'fit = "stretch"'))
    assert "was made anew with other settings (fit" in say_missing(finished)
    (other / "settings.toml").write_text(settings)


def lose(path):
    path.unlink()


def damage(path):
    path.write_bytes(b"no PNG")


@pytest.mark.parametrize(
    ("harm", "reason"), [(lose, "cannot be read, it is missing"), (damage, "is damaged: remove it")]
)
def test_an_image_that_cannot_be_read_is_missing_alone_and_its_place_says_why(
    finished, cache, tmp_path, harm, reason
):
    """All others are shown as before."""
    other = tmp_path / "other"
    shutil.copytree(cache.folder, other)
    change_cache(finished, other)
    evaluation = evaluate_run(finished)
    choice = select_cases(evaluation)
    whole = show_cases(finished, choice, reporter=quiet())
    image_id = choice.groups[-1].cases[0].views[0].image_id
    (path,) = other.rglob(f"{image_id}.png")
    harm(path)
    gallery = show_cases(finished, choice, reporter=quiet())
    assert gallery.missing == []
    assert list(gallery.reasons) == [image_id]
    assert reason in gallery.reasons[image_id]
    assert gallery.tiles == {name: tile for name, tile in whole.tiles.items() if name != image_id}
    page = write_report(finished, evaluation, reporter=quiet()).read_text("utf-8")
    place = re.search(rf'<figure class="view">(?:(?!</figure>).)*{image_id}<.*?</figure>', page, re.DOTALL)[0]
    assert f"No picture: {path} " in place
    reporter = quiet()
    write_report(finished, evaluation, reporter=reporter)
    assert f"warning: 1 image of the cases has no picture: {path} " in heard(reporter)
    assert "--cache" not in heard(reporter)


def test_an_image_of_which_the_model_says_something_else_is_another_image(finished):
    """Of fold 0, whose probabilities are changed; fold 1 is shown."""
    oof = finished.fold(0).oof
    table = pd.read_csv(oof, dtype={"patient_id": str, "image_id": str})
    table["probability"] = 1 - table["probability"]
    table.to_csv(oof, index=False)
    choice = select_cases(evaluate_run(finished))
    gallery = show_cases(finished, choice, reporter=quiet())
    views = {
        view.image_id: case.fold for group in choice.groups for case in group.cases for view in case.views
    }
    assert set(gallery.reasons) == {image_id for image_id, fold in views.items() if fold == 0}
    assert all("so it is another image" in reason for reason in gallery.reasons.values())
    assert set(gallery.tiles) == {image_id for image_id, fold in views.items() if fold == 1}


def test_without_weights_the_mammograms_are_shown_bare(finished):
    for fold in (0, 1):
        finished.fold(fold).weights.unlink()
    gallery = show_cases(finished, select_cases(evaluate_run(finished)), reporter=quiet())
    assert "No attention: fold 0 has no readable model.safetensors." in gallery.missing
    assert gallery.tiles
    assert all(tile.mammogram and not tile.overlay for tile in gallery.tiles.values())


def test_pictures_shrink_until_they_fit():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (512, 256), dtype=np.uint8)
    crops = {str(number): Crop(pixels, None, 512) for number in range(4)}
    largest = encode_within(crops, 10**9)["0"]
    assert (largest.height, largest.width) == (SIDES_PX[0], SIDES_PX[0] // 2)
    limit = 4 * len(largest.mammogram) - 1
    smaller = encode_within(crops, limit)
    assert smaller["0"].height == SIDES_PX[1]
    assert sum(len(tile.mammogram) for tile in smaller.values()) <= limit


def test_an_image_is_cut_to_the_patches_that_show_the_breast():
    """A box of 100 by 30 pixels in a square of 128, with patches of 16."""
    placement = Placement(Box(5, 5, 35, 105), is_flipped=True, scale_x=1.0, scale_y=1.0, top=14)
    rows, columns = find_cut(placement, 16)
    assert (rows, columns) == (slice(0, 8), slice(0, 2))
    assert find_cut(replace(placement, top=16), 16)[0] == slice(1, 8)
