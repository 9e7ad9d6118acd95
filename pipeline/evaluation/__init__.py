"""Figures of merit of predictions: formulas, intervals, calibration, slices, comparison of runs."""
