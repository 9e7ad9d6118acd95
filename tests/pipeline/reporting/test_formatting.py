"""Figures as people read them: small thresholds keep digits that tell them apart."""

import math

import pytest

from pipeline.reporting.formatting import format_named, format_threshold


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[
            (0.5, "0.500"),
            (0.1, "0.100"),
            (0.0999, "0.0999"),
            (0.0123456, "0.0123"),
            (0.00098765, "0.000988"),
        ],
        *[(0.0, "0.000"), (1.0, "1.000"), (None, "undefined"), (math.nan, "undefined")],
    ],
)
def test_a_threshold_has_three_digits(value: float | None, text: str) -> None:
    assert format_threshold(value) == text


def test_other_figures_have_three_decimals() -> None:
    assert format_named("pf1", 0.0123456) == "0.012"
    assert format_named("threshold_best", 0.0123456) == "0.0123"
