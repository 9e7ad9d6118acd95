"""What tests read of a file in one call."""

from data_prep.imageio.dicom import open_dicom
from data_prep.imageio.frame import Frame, Image
from data_prep.preprocessing.preprocess import ManifestRow, preprocess
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.storage.places import ImagePath


def read_frame(path: ImagePath, level: int = 0) -> Frame:
    """Reads and decodes a DICOM file, at 1 / 2**level of its full size."""
    return open_dicom(path).read_frame(level)


def prepare_image(
    path: ImagePath, settings: PrepareSettings, *, laterality: str | None = None
) -> tuple[Image, ManifestRow]:
    """Returns a file's square image and the record of how it was made."""
    stages = preprocess(path, settings, laterality=laterality)
    return stages.image, stages.record
