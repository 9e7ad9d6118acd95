"""Synthetic mammograms: drawn, written as DICOM, and laid out as a data set."""
