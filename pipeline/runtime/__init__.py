"""The machine under a training: precision, processes, signals, progress."""
