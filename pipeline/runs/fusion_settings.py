"""The settings of `[model]` by which a breast is judged by all its images together."""

from typing import Literal

from pydantic import Field, model_validator

from data_prep.settings import StrictSettings


class FusionSettings(StrictSettings):
    """What of `[model]` joins the images of a breast."""

    fusion: Literal["none", "views", "exam"] = "none"
    """What a probability is of: `none` judges each image by itself, `views` a breast by all its images
    together, `exam` also beside the other breast's. Two more layers see what the encoder makes of each
    image."""

    fusion_patches: int = Field(default=16, ge=0, le=4096)
    """With `fusion`: how many patches of an image its layers see beside the image's own vector, those of
    largest contrast."""

    views_per_breast: Literal[0, 1] = 0
    """With `fusion`: 0 judges a breast by all its images; 1 shows one at a time, not told of which view, so
    that their number tells nothing, and takes the mean."""

    @model_validator(mode="after")
    def _check_fusion(self) -> "FusionSettings":
        if self.fusion == "exam" and self.views_per_breast:
            raise ValueError(
                'model.views_per_breast 1 does not go with fusion "exam", where the number of the other '
                'breast\'s images could tell: set model.fusion to "views", or model.views_per_breast to 0'
            )
        return self


def require_fusable(fusion: str, *, mixup: float, compiles: bool) -> None:
    """Makes sure that a training of whole breasts asks for nothing that knows single images alone.

    Raises:
        ValueError: if it does.
    """
    if fusion != "none" and mixup:
        raise ValueError(
            "train.mixup blends single images, not breasts: set it to 0, or model.fusion to none"
        )
    if fusion != "none" and compiles:
        raise ValueError(
            "train.compile needs batches of one size, and breasts have different numbers of images: set it "
            "to false, or model.fusion to none"
        )
