"""Encoders that have learned from mammograms without labels: a masked autoencoder."""
