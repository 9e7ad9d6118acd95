"""What a report says where the label can be told without a pixel, and of slices and lost cancers."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from pipeline.evaluation.artifacts import evaluation_to_json
from pipeline.evaluation.audit.flow import FLOW_COLUMNS, LOST, PREDICTED, Flow
from pipeline.evaluation.audit.shortcuts import NUM_BINS, ShortcutAudit, TraitAuc
from pipeline.evaluation.audit.traits import BOTH_VIEWS, FILE_SIZE, NUM_IMAGES
from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.estimates import AUC_WEIGHTED
from pipeline.evaluation.evaluate_oof import evaluate_oof
from pipeline.reporting.sections.shortcut_text import (
    describe_heterogeneity,
    describe_shortcuts,
    explain_not_looked_at,
    tabulate_shortcuts,
)
from pipeline.reporting.standard_tables import (
    describe_flow,
    describe_lost_cancers,
    tabulate_cells,
    tabulate_flow,
    tabulate_rates,
)
from pipeline.reporting.text import describe_auc, describe_pooling
from tests.pipeline.synthetic_run import add_exam_columns, make_oof


@pytest.fixture(scope="module")
def usual():
    return evaluate_oof(add_exam_columns(make_oof(num_patients=200, num_cancers=60)))


@pytest.fixture(scope="module")
def counted():
    """Breasts with cancer have two images, the others one."""
    oof = make_oof(num_patients=200, num_cancers=60)
    is_second = oof.duplicated(["patient_id", "laterality"])
    return evaluate_oof(oof[(oof["cancer"] == 1) | ~is_second].reset_index(drop=True))


def judge(*traits):
    return ShortcutAudit(
        [
            TraitAuc(level, name, auc, Interval(auc - 0.05, auc + 0.05, 0), 0.01)
            for level, name, auc in traits
        ],
        {},
    )


def test_where_counting_tells_the_weighted_auc_leads(counted, usual):
    assert usual.lead == ("auc", usual.breasts.pooled)
    assert counted.lead == (AUC_WEIGHTED, counted.images.pooled)
    assert describe_auc(counted).startswith("Shown one image with cancer")
    assert describe_auc(usual).startswith("Shown one breast with cancer")
    (sentence,) = describe_shortcuts(counted.audit)
    assert "images per breast alone has an AUC of 1.000" in sentence
    assert "a maximum over views above all" in sentence
    assert describe_shortcuts(usual.audit) == []


def test_each_shortcut_is_named_once_with_what_it_spoils():
    audit = judge(("breast", NUM_IMAGES, 0.9), ("breast", BOTH_VIEWS, 0.8), ("image", "machine", 0.7))
    counting, machine = describe_shortcuts(audit)
    assert "images per breast alone has an AUC of 0.900 (0.850 to 0.950), CC and MLO present" in counting
    assert "machine alone has an AUC of 0.700" in machine
    assert "all figures per breast" in counting
    assert "as often as it has images" not in counting
    (per_image,) = describe_shortcuts(judge(("image", NUM_IMAGES, 0.7)))
    assert "as often as it has images" in per_image
    assert "all figures per breast" not in per_image
    (hidden,) = describe_shortcuts(judge(("image", FILE_SIZE, 0.9), ("image", "age", 0.9)))
    assert hidden.startswith("Cancers and others seem to have come from different sources: file size")
    assert "age" not in hidden.split(":")[1].split("(")[0]
    assert describe_shortcuts(judge(("breast", "site", 0.6))) == []


def test_the_table_of_shortcuts_has_a_bar_where_there_is_an_interval(usual):
    table = tabulate_shortcuts(usual.audit)
    assert len(table.rows) == len(table.bars) == len(usual.audit.traits)
    for row, bar, each in zip(table.rows, table.bars, usual.audit.traits, strict=True):
        assert row[1] == f"{each.auc:.3f}"
        assert (bar is None) == (each.interval is None)
    assert explain_not_looked_at(usual.audit).startswith("Not looked at: crop size, crop aspect")
    assert explain_not_looked_at(judge()) == ""
    assert NUM_BINS == 10


def test_heterogeneity_is_tested_where_two_values_have_cancers_enough(usual):
    sentence = describe_heterogeneity(usual)
    assert "about 1 in 20 lies off the line by chance alone" in sentence
    for kind in ("laterality", "site", "view"):
        level = usual.images if kind == "view" else usual.breasts
        assert f"{kind} {level.heterogeneity[kind]:.3f}" in sentence
    few = evaluate_oof(make_oof(num_cancers=5))
    assert set(few.breasts.heterogeneity.values()) == {None}
    assert "none can be tested" in describe_heterogeneity(few)


def test_a_difference_of_scale_between_folds_is_a_warning(usual):
    assert describe_pooling(usual.breasts.pooled) == ""
    pooled = usual.breasts.pooled
    apart = replace(pooled, metrics=replace(pooled.metrics, auc_pooled=pooled.metrics.auc - 0.04))
    assert f"the AUC is {pooled.metrics.auc:.3f} within folds" in describe_pooling(apart)


def test_cancers_that_were_lost_are_a_warning():
    steps = pd.DataFrame([(PREDICTED, 78, 39, 5), (LOST, 2, 1, 1)], columns=FLOW_COLUMNS)
    flow = Flow(steps, {"age": 0.25})
    assert describe_lost_cancers(flow).startswith("1 breast with cancer is in no figure here")
    assert describe_lost_cancers(Flow(steps[:1], {}, "it is gone")) == ""
    assert tabulate_flow(flow).rows == [["predicted", "78", "39", "5"], ["lost", "2", "1", "1"]]
    assert "age 25.0" in describe_flow(flow)
    assert "it is gone" in describe_flow(Flow(steps[:1], {}, "it is gone"))


def test_a_figure_without_an_interval_has_the_reason_there(usual):
    (of_women,) = [table for table in usual.operating_point.tables if table.unit == "woman"]
    intervals = {name: found for name, found in of_women.intervals.items() if name != "ppv"}
    women = replace(of_women, intervals=intervals, no_interval={"ppv": "it is so"})
    point = replace(usual.operating_point, tables=[women])
    assert [row[2] for row in tabulate_rates(point).rows if "it is so" in row] == ["it is so"]
    content = evaluation_to_json(replace(usual, operating_point=point))["operating_point"]["woman"]
    assert content["interval_95"]["ppv"] is None
    assert content["no_interval"] == {"ppv": "it is so"}


def test_who_is_recalled_stands_in_tables_and_json(usual):
    point = usual.operating_point
    of_breasts, of_women = tabulate_cells(point).rows
    assert (of_breasts[0], of_women[0]) == ("per breast", "per woman")
    assert sum(int(cell) for cell in of_breasts[1:]) == 400
    assert sum(int(cell) for cell in of_women[1:]) == 200
    assert all(len(row) == 5 for row in tabulate_rates(point).rows)
    for title, *cells in tabulate_rates(point).rows:
        assert all(cells[2:])
        assert [bool(cell) for cell in cells[:2]] == [not title.endswith("in screening")] * 2
    content = json.loads(json.dumps(evaluation_to_json(usual)))["operating_point"]
    assert "screening_ppv" in content["woman"]
    assert "screening_ppv" not in content["breast"]
    assert content["woman"]["true_positives"] == int(of_women[1])
    assert content["screening_prevalence"] == 0.005
    assert content["undefined"] is None
