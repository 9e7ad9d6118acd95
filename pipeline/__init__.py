"""The Vision Transformer, its trainer, prediction, metrics, reports and the command line."""
