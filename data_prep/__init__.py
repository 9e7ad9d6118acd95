"""DICOM or PNG mammograms in; a cache of square images, exam tables and folds out."""
