"""Ticks of an axis that is even in log-odds: no two have the same label, however close the ends lie."""

import pytest
from matplotlib.figure import Figure

from pipeline.reporting.plots.svg import set_probability_ticks


@pytest.mark.parametrize(
    ("lowest", "highest"),
    [(0.001, 0.9), (0.2000, 0.2001), (0.3, 0.3), (0.0, 1.0), (1e-7, 1e-6), (0.5, 0.5 + 1e-12)],
)
def test_no_label_stands_twice(lowest: float, highest: float) -> None:
    axes = Figure().subplots()
    set_probability_ticks(axes, lowest, highest)
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels
    assert len(set(labels)) == len(labels)
