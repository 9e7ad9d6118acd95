"""The images of chosen breasts: from a cache or from their files, and what models see in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from data_prep.cache.folder import Cache
from data_prep.cache.images import read_image
from data_prep.cache.tables import damaged
from data_prep.errors import ImageError, UserError
from data_prep.imageio.frame import Image
from data_prep.preprocessing.placement import Placement
from data_prep.preprocessing.preprocess import preprocess
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.storage.places import ImagePath
from pipeline.models.attention import Array, find_maps
from pipeline.models.normalization import to_tensor
from pipeline.models.vit import VisionTransformer
from pipeline.reporting.cases.case_selection import Case, CaseView

LARGEST_DIFFERENCE = 0.05
"""Between a probability and what the same model says now; other arithmetic stays far below."""


@dataclass(frozen=True)
class CaseModel:
    """What gave a case its probability: the model that never saw its patient, or several together.

    Attributes:
        models: each with its logit shift; of one that judges whole breasts the part that judges each image.
    """

    models: Sequence[tuple[VisionTransformer, float]]

    def look(self, image: Image, view: CaseView) -> Array:
        """Returns how much each patch speaks for cancer, the mean of the models, each on a scale of its own.

        Raises:
            UserError: if the models no longer say of this image what they said before.
        """
        squares, probabilities = [], []
        for model, logit_shift in self.models:
            maps = find_maps(model, to_tensor(image).unsqueeze(0).to(model.head.weight.device))
            probabilities.append(float(torch.sigmoid(maps.logits[0, 0].double() + logit_shift)))
            square_gg = maps.gradient_rollout[0].double().cpu().numpy()
            squares.append(square_gg / (square_gg.mean() or 1.0) if len(self.models) > 1 else square_gg)
        probability = float(np.mean(probabilities))
        if abs(probability - view.by_pixels) > LARGEST_DIFFERENCE:
            raise UserError(
                f"of image {view.image_id} as it is now the model says {probability:.3f} and said "
                f"{view.by_pixels:.3f} before, so it is another image"
            )
        return np.mean(squares, axis=0)


class CaseImages(Protocol):
    """Where the images of cases come from."""

    def load(self, case: Case, view: CaseView) -> tuple[Image, Placement]:
        """Returns one image as the model sees it, and how it was made.

        Raises:
            UserError: if it is not there, or cannot be used.
        """


@dataclass(frozen=True)
class CachedCaseImages:
    """Images of a cache.

    Attributes:
        records: rows of its manifest by image_id.
    """

    cache: Cache
    records: Mapping[str, Mapping[Any, Any]]

    @classmethod
    def of_cache(cls, cache: Cache) -> "CachedCaseImages":
        """Reads the manifest.

        Raises:
            UserError: if the cache is not finished or damaged.
        """
        records = cache.read_manifest().to_dict("records")
        return cls(cache, {str(record["image_id"]): record for record in records})

    def load(self, case: Case, view: CaseView) -> tuple[Image, Placement]:
        """Reads the PNG."""
        if view.image_id not in self.records:
            raise UserError(f"the cache {self.cache.folder} does not have image {view.image_id}")
        image = read_image(self.cache.image_path(case.patient_id, view.image_id))
        try:
            return image, Placement.from_record(dict(self.records[view.image_id]))
        except (ValueError, TypeError):  # a cell is not what `prepare` writes, or empty
            raise damaged(self.cache.manifest_path) from None


@dataclass(frozen=True)
class FileCaseImages:
    """Images that are prepared anew from their files.

    Attributes:
        paths: by image_id.
    """

    paths: Mapping[str, ImagePath]
    settings: PrepareSettings

    def load(self, case: Case, view: CaseView) -> tuple[Image, Placement]:
        """Prepares the file."""
        try:
            stages = preprocess(self.paths[view.image_id], self.settings, laterality=case.laterality)
        except ImageError as error:
            raise UserError(str(error)) from error
        return stages.image, Placement.from_record(stages.record)
