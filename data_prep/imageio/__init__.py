"""Image files to frames: DICOM with its codecs, and raster formats."""
