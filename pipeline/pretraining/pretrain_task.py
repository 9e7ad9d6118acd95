"""The masked autoencoder as a task for the trainer: what an encoder learns of images without labels."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.augmentation import Augmentation
from pipeline.data.loader import ImageDataset
from pipeline.data.sampler import Rows, plan_natural
from pipeline.models.vit import VisionTransformer
from pipeline.models.weights_file import HEAD_ENTRY
from pipeline.pretraining.images import Sources, Split
from pipeline.pretraining.masked_autoencoder import MaskedAutoencoder, count_visible
from pipeline.pretraining.probe import Probe
from pipeline.runs.pretrain_run import hash_ids, hash_pictures
from pipeline.runs.recipe import Recipe
from pipeline.runtime.precision import ComputeSettings
from pipeline.training.task import Judgement, SingleImages


class PretrainTask(SingleImages):
    """Learns to predict hidden patches; `Task` says what each part is for. Its "logit" is an image's loss."""

    logit_shift = 0.0

    def __init__(
        self, recipe: Recipe, sources: Sources, split: Split, *, fold: int | None, probe: Probe | None
    ) -> None:
        self.recipe = recipe
        self.split = split
        self.name = "pretraining" if fold is None else f"fold {fold}"
        self.entropy = [recipe.train.seed, 0 if fold is None else fold]
        self.seed = int(np.random.SeedSequence(self.entropy).generate_state(1)[0])
        self.init = recipe.train.init
        self.dataset = ImageDataset(
            sources.pick(split.training), augmentation=Augmentation(recipe.augment), seed=recipe.train.seed
        )
        self.targets = torch.zeros(len(split.training))
        num_visible = count_visible(
            torch.tensor(recipe.model.num_tokens - recipe.model.num_prefix_tokens), recipe.pretrain.visible
        )
        self.model = recipe.model.model_copy(update={"kept_patches": max(1, int(num_visible))})
        self.first_logits: NDArray[np.float64] = np.zeros(recipe.model.num_classes)
        patients, pictures = hash_ids(split.seen["patient_id"].unique()), hash_pictures(split.seen)
        seen = {"patients": sorted(patients), "pictures": sorted(pictures)}
        self.about = {"seen": seen, HEAD_ENTRY: False}
        self.held_out = sources.pick(split.judged)
        self.probe = probe

    def make_model(self) -> nn.Module:
        """Returns encoder and decoder."""
        return MaskedAutoencoder(self.recipe.model, self.recipe.pretrain)

    def pick_encoder(self, model: nn.Module) -> VisionTransformer:
        """Returns the encoder."""
        assert isinstance(model, MaskedAutoencoder)
        return model.encoder

    def pick_kept(self, model: nn.Module) -> VisionTransformer:
        """Returns the encoder: the decoder is thrown away."""
        return self.pick_encoder(model)

    def plan(self, epoch: int) -> list[Rows]:
        """Returns the rows of each batch of an epoch: every image once."""
        batch_size = self.recipe.train.batch_size
        return plan_natural(len(self.split.training), batch_size=batch_size, entropy=[*self.entropy, epoch])

    def losses(self, logits_BK: Tensor, targets_B: Tensor) -> Tensor:
        """Returns each image's loss, which the model itself computes."""
        del targets_B
        return logits_BK[:, 0]

    def name_rows(self, rows: list[int]) -> list[str]:
        """Returns image ids."""
        return list(self.split.training["image_id"].iloc[rows])

    def to_probabilities(self, logits_BK: Tensor) -> NDArray[np.float64]:
        """Returns each image's loss, [B, 1]."""
        return logits_BK[:, :1].cpu().numpy()

    def judge(self, probabilities_MN: NDArray[np.float64]) -> Judgement:
        """Returns the loss of each held-out image, and their mean."""
        losses_M = probabilities_MN[:, 0]
        table = self.split.judged[["patient_id", "image_id"]].assign(loss=losses_M)
        return Judgement(table, {"val_loss": float(losses_M.mean())})

    def measure(
        self, model: nn.Module, epoch: int, compute: ComputeSettings, on_batch: Callable[[int], None]
    ) -> dict[str, float]:
        """Returns what the linear probe finds, where it is that epoch's turn."""
        assert isinstance(model, MaskedAutoencoder)
        if self.probe is None or epoch % self.recipe.pretrain.probe_every:
            return {}
        return {"probe_auc": self.probe.measure(model, compute, on_batch)}
