"""Training: the loop and its state, what a fold learns, all folds of a run."""
