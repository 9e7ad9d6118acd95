"""Predictions of new images by all folds of a run, up to a submission, and models for other programs."""
