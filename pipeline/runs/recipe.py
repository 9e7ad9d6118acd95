"""The settings of a recipe, in the tables `[prepare]`, `[model]`, `[augment]`, `[train]`, `[pretrain]`."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from data_prep.preprocessing.settings import PrepareSettings
from data_prep.settings import StrictSettings, load_settings
from pipeline.runs.augment_settings import AugmentSettings
from pipeline.runs.fusion_settings import FusionSettings, require_fusable
from pipeline.runs.image_size import SIDE, link_sizes
from pipeline.runs.other_names import MODEL, TRAIN
from pipeline.runs.pretrain_settings import PretrainSettings
from pipeline.runs.setting_types import Inputs, Workers
from pipeline.runs.shipped_recipes import find_recipe

Precision = Literal["float32", "bf16", "fp16"]
AuxiliaryName = Literal["biopsy", "invasive", "difficult_negative_case", "BIRADS", "density", "view", "age"]


class ModelSettings(FusionSettings):
    """`[model]`: the Vision Transformer. The defaults: ViT-S/16, grey images of 512 px, one logit."""

    other_names: ClassVar[Mapping[str, str]] = MODEL
    image_size: int = Field(default=512, ge=16, le=4096)
    """Rows and columns of the input, in pixels: that of `prepare.side`, as one of the two sets
    both."""

    patch_size: int = Field(default=16, ge=1, le=512)
    """Rows and columns of a patch, in pixels."""

    in_channels: Literal[1, 3] = 1
    """1 for grey images, 3 for colour."""

    num_classes: int = Field(default=1, ge=1, le=100_000)
    """Number of logits: 1 for mammograms, else the number of classes."""

    width: int = Field(default=384, ge=1, le=8192)
    """Length of a token's vector (D in the paper): ViT-Ti 192, ViT-S 384, ViT-B 768."""

    depth: int = Field(default=12, ge=1, le=128)
    """Number of encoder layers."""

    num_heads: int = Field(default=6, ge=1, le=128)
    """Attention heads per layer: ViT-Ti 3, ViT-S 6, ViT-B 12."""

    mlp_ratio: float = Field(default=4.0, gt=0.0, le=16.0)
    """Width of the MLP's hidden layer, in multiples of `width`."""

    qkv_bias: bool = True
    """Whether queries, keys and values have biases; `true` follows the weights of `train.init`."""

    qk_norm: bool = False
    """Whether each head's queries and keys go through a LayerNorm; `false` follows the weights of
    `train.init`."""

    attention: Literal["auto", "sdpa", "explicit"] = "auto"
    """`sdpa` is torch's fused kernel, `explicit` the paper's formula; the results are equal to rounding.
    `auto` is `explicit` on a CPU in bf16, where it trains 1.3 times as fast and needs memory for the weights
    of all layers, else `sdpa`."""

    pool: Literal["cls", "gap"] = "cls"
    """What the head sees: `cls` is the class token's vector, `gap` the mean of the patches' vectors."""

    head: Literal["linear", "mlp"] = "linear"
    """`linear` is one linear layer; `mlp` has a hidden layer with tanh before it, as the paper pre-trains."""

    pos_embed: Literal["learned", "sincos2d"] = "learned"
    """Position embeddings: `learned` for each position, or `sincos2d`, fixed waves along rows and columns."""

    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of values dropped after the embedding and after every dense layer but qkv."""

    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Stochastic depth: share of images that skip the branches of the last layer; linearly less in earlier
    layers."""

    kept_patches: int = Field(default=0, ge=0, le=2**24)
    """How many patches of an image the layers see, those of largest contrast; 0 is all. A mammogram's other
    patches are background: at 512 px real ones have 220 to 330 with content, and with 383 a training step
    takes a third to a quarter of the time."""

    inputs: Inputs = ()
    """What counts beside the pixels: `["age"]`, the woman's age, or nothing. Each fold learns from the other
    folds' predictions how much it counts. A run that has begun, or is finished, may change it; it is then
    evaluated again."""

    layer_scale: float = Field(default=0.0, ge=0.0, le=1.0)
    """LayerScale: first value of a learned factor per channel of each branch; 0 turns it off, or follows the
    weights of `train.init`."""

    register_tokens: int = Field(default=0, ge=0, le=64)
    """Learned tokens beside the class token that see all, and are left out of every mean and picture
    (arXiv:2309.16588); 0 follows the weights of `train.init`."""

    gradient_checkpointing: bool = False
    """Compute each layer again in the backward pass instead of keeping it: less memory, a third more time. A
    run that has begun may change it."""

    @model_validator(mode="after")
    def _check_shape(self) -> "ModelSettings":
        if self.image_size % self.patch_size:
            raise ValueError(
                f"model.image_size {self.image_size} must be a multiple of model.patch_size {self.patch_size}"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"model.width {self.width} must be a multiple of model.num_heads {self.num_heads}"
            )
        if self.pos_embed == "sincos2d" and self.width % 4:
            raise ValueError(f'model.width {self.width} must be a multiple of 4 with pos_embed "sincos2d"')
        if self.kept_patches > self.grid_size**2:
            raise ValueError(
                f"model.kept_patches {self.kept_patches} must be 0 or at most the {self.grid_size**2} "
                f"patches of an image of {self.image_size} px"
            )
        if self.fusion != "none" and self.fusion_patches > (self.kept_patches or self.grid_size**2):
            raise ValueError(
                f"model.fusion_patches {self.fusion_patches} must be at most the number of patches that the "
                f"layers see, {self.kept_patches or self.grid_size**2}"
            )
        return self

    @property
    def grid_size(self) -> int:
        """Patches along each side of an image."""
        return self.image_size // self.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return 1 + self.register_tokens

    @property
    def num_tokens(self) -> int:
        """Patches that the layers see and the tokens before: 1,025 for all of 512 px in patches of 16."""
        return self.num_prefix_tokens + (self.kept_patches or self.grid_size**2)


class TrainSettings(StrictSettings):
    """`[train]`: folds, batches, optimisation. The defaults are the baseline recipe."""

    other_names: ClassVar[Mapping[str, str]] = TRAIN
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Draws folds, first weights, order and augmentation."""

    init: str = ""
    """First weights: `timm:<model>`, the path of a `.safetensors` or `.pth` file with timm's names (or
    DINOv2's and MAE's own), or an earlier run of `train` or `pretrain`, whose patients keep their folds;
    empty draws them. In a path, `{fold}` stands for the fold's number."""

    keep_head: bool = False
    """Take the head from `init` too, which must be mammo's own weights: the first probabilities are then
    those of the earlier run. Else the head is new."""

    transductive: bool = False
    """Whether `init` may be an encoder of `mammo pretrain` that has seen, without labels, patients whom a
    fold holds out. The figures may then be too good, which the report says."""

    init_normalization: Literal["half", "imagenet", "mammo"] = "half"
    """How the images of a file's model were normalised: `half` is mean and deviation 0.5 (Google's ViTs),
    `imagenet` ImageNet's (DeiT, DINO, MAE), `mammo` its own. Models from timm and mammo's `model.safetensors`
    say it themselves."""

    num_folds: int = Field(default=5, ge=2, le=100)
    """Folds of the cross-validation, drawn by patient and stratified by label."""

    epochs: int = Field(default=20, ge=1, le=10_000)
    """Passes over the training images; with `balanced` sampling, over all negatives."""

    batch_size: int = Field(default=32, ge=2, le=65_536)
    """Images, with `fusion` breasts, per optimizer step, over all processes together."""

    accumulation: int = Field(default=1, ge=1, le=65_536)
    """Parts in which a batch goes through the model, for batches that do not fit in memory. A run that has
    begun may go on with another number, which rounds differently."""

    sampling: Literal["balanced", "weighted", "natural"] = "balanced"
    """`balanced`: all negatives once per epoch and the same number of positives in every batch, at least one;
    none comes again before all have come. `weighted`: each image is drawn by itself. `natural`: every image
    once."""

    positive_share: float = Field(default=0.125, gt=0.0, lt=1.0)
    """Share of positives, unless the sampling is natural. Probabilities are corrected for it."""

    positive_label: float = Field(default=1.0, ge=0.8, le=1.0)
    """Target of the loss for a cancer; below 1 asks for less certainty (soft labels)."""

    positive_weight: float = Field(default=1.0, gt=0.0, le=1000.0)
    """Weight of a positive in the loss. Probabilities are corrected for it."""

    focal_gamma: float = Field(default=0.0, ge=0.0, le=10.0)
    """Above 0: the focal loss, in which easy images count less. Probabilities are not corrected for it, which
    the report says."""

    mixup: float = Field(default=0.0, ge=0.0, le=10.0)
    """Above 0: images are blended in pairs, by shares of Beta(mixup, mixup)."""

    drop_view: float = Field(default=0.2, ge=0.0, lt=1.0)
    """With `fusion`: probability that a training image is left out of its breast; one is always kept."""

    auxiliaries: tuple[AuxiliaryName, ...] = ()
    """Columns of train.csv to learn beside cancer: `biopsy`, `invasive`, `difficult_negative_case`, `BIRADS`,
    `density`, `view`, `age`. Missing values are left out; predictions never use them."""

    auxiliary_weight: float = Field(default=0.1, gt=0.0, le=10.0)
    """Weight of the auxiliaries' mean loss beside that of cancer."""

    optimizer: Literal["adamw", "sgd", "lion", "muon"] = "adamw"
    """`adamw`, `sgd`, `lion` or `muon`. Lion wants a learning rate some ten times lower than AdamW, SGD a far
    higher one. Muon takes the encoder's matrices, AdamW the rest."""

    layer_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    """Each layer's learning rate over that of the layer above it; below 1 for fine-tuning."""

    frozen_layers: int = Field(default=0, ge=0, le=128)
    """Keep the embedding and this many layers as `init` gave them; 0 trains everything."""

    linear_probe: bool = False
    """Train the head alone, and with `fusion` the layers over a breast's images."""

    learning_rate: float = Field(default=3e-4, gt=0.0, le=1.0)
    """Highest learning rate, after the warm-up."""

    warmup_epochs: float = Field(default=1.0, ge=0.0, le=10_000)
    """Epochs in which the learning rate rises from 0; then it falls to 0 along a cosine."""

    weight_decay: float = Field(default=0.05, ge=0.0, le=1.0)
    """Decay of matrices; biases, norms, positions, class token and registers have none."""

    clip_norm: float = Field(default=1.0, gt=0.0)
    """Gradients with a larger norm are scaled down to it."""

    ema_decay: float = Field(default=0.999, ge=0.0, lt=1.0)
    """Decay per step of the averaged weights, which predict; approached slowly at first."""

    select: Literal["last", "best"] = "last"
    """Which epoch's weights predict. `best` takes the epoch with the highest `select_by` on the fold's own
    held-out images, which makes the figures too good; the report says by how much."""

    select_by: Literal["val_auc", "val_average_precision", "val_pf1"] = "val_auc"
    """A breast-level column of `history.csv`: `val_auc`, `val_average_precision` or `val_pf1`."""

    tensorboard: bool = False
    """Write each epoch's figures to `fold_<k>/events` too; needs the extra `tensorboard`."""

    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, faster steps on a GPU."""

    precision: Precision = "bf16"
    """Arithmetic of the forward pass: `bf16`, `fp16` or `float32`. Where the hardware lacks it, the next best
    is taken and saved."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU where there is one."""

    workers: Workers = "auto"
    """Processes that load and augment images; 0 loads in the training process. `auto` is one for each core
    but one, at most 16 beside a GPU and 2 beside a CPU, and fewer where /dev/shm is small. A run that has
    begun may go on with another number."""

    @model_validator(mode="after")
    def _check_auxiliaries(self) -> "TrainSettings":
        twice = {name for name in self.auxiliaries if self.auxiliaries.count(name) > 1}
        if twice:
            raise ValueError(f"train.auxiliaries names {', '.join(sorted(twice))} twice: name each once")
        return self

    @model_validator(mode="after")
    def _check_head(self) -> "TrainSettings":
        if self.keep_head and not self.init:
            raise ValueError("train.keep_head is true, but train.init names no weights to keep it from")
        return self


class Recipe(StrictSettings):
    """A whole recipe, the contents of `configs/*.toml` and of a run's `settings.toml`."""

    prepare: PrepareSettings = PrepareSettings()
    model: ModelSettings = ModelSettings()
    augment: AugmentSettings = AugmentSettings()
    train: TrainSettings = TrainSettings()
    pretrain: PretrainSettings = PretrainSettings()

    @model_validator(mode="after")
    def _check_frozen_layers(self) -> "Recipe":
        frozen, depth = self.train.frozen_layers, self.model.depth
        if frozen > depth:
            raise ValueError(f"train.frozen_layers {frozen} must not exceed model.depth {depth}")
        return self

    @model_validator(mode="after")
    def _check_fusion(self) -> "Recipe":
        require_fusable(self.model.fusion, mixup=self.train.mixup, compiles=self.train.compile)
        return self


def load_recipe(path: Path | None, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe, by path or by name, or without one takes the defaults; then applies overrides.

    One of `prepare.side` and `model.image_size` sets both.

    Raises:
        UserError: naming every problem at once.
    """
    return load_settings(Recipe, path and find_recipe(path), overrides, link=link_sizes)


def load_prepare_settings(path: Path | None, overrides: Iterable[str] = ()) -> PrepareSettings:
    """Reads the `[prepare]` of a recipe, as `load_recipe` does; `prepare.side` need suit no model."""
    link = partial(link_sizes, following=SIDE)
    return load_settings(Recipe, path and find_recipe(path), overrides, link=link).prepare
