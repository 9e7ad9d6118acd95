"""The RSNA layout: exam tables, image files by patient, folds, and a way to bring one's own files there."""
