"""The training of one fold: a plain loop that can be stopped anywhere and goes on from its checkpoint.

Knows nothing of the other folds and of the run's reports.
"""

import math
import time
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_prep.cache import Cache
from data_prep.errors import TrainingStopped
from data_prep.files import write_csv
from data_prep.pack import Images, open_images
from pipeline.aggregate import to_breasts
from pipeline.augment import Augmentation
from pipeline.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_weights
from pipeline.dataset import CachedImages, load_batches
from pipeline.interrupt import StopRequest
from pipeline.metrics import measure
from pipeline.optim import (
    Average,
    autocast,
    learning_rate_at,
    make_average,
    make_optimizer,
    set_learning_rate,
)
from pipeline.predict import Arithmetic, predict_cached
from pipeline.progress import Reporter
from pipeline.run import OOF_COLUMNS, FoldFolder
from pipeline.sampler import Rows, log_odds, plan_epoch
from pipeline.settings import Recipe
from pipeline.vit import VisionTransformer

SECONDS_BETWEEN_SAVES = 300.0


@dataclass(frozen=True)
class FoldImages:
    """The images of one fold's training and validation.

    Attributes:
        training, validation: exam tables.
        training_images, validation_images: each row's image.
    """

    training: pd.DataFrame
    validation: pd.DataFrame
    training_images: Images
    validation_images: Images

    @classmethod
    def split(cls, exams: pd.DataFrame, folds: pd.DataFrame, fold: int, cache: Cache) -> "FoldImages":
        """Takes a fold's patients for validation and all others for training."""
        held_out = set(folds.loc[folds["fold"] == fold, "patient_id"])
        is_held_out = exams["patient_id"].isin(held_out)
        training, validation = (exams[rows].reset_index(drop=True) for rows in (~is_held_out, is_held_out))
        return cls(training, validation, open_images(cache, training), open_images(cache, validation))


@dataclass
class State:
    """All that changes while a fold is trained, and so all that a checkpoint holds."""

    model: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    loss_sum: float = 0.0  # over them
    history: list[dict[str, float]] = field(default_factory=list)
    throughput: list[dict[str, float]] = field(default_factory=list)

    def to_checkpoint(self) -> Checkpoint:
        """Returns what `restore` needs, torch's random state included."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "counters": {"epoch": self.epoch, "batch": self.batch, "loss_sum": self.loss_sum},
            "history": self.history,
            "throughput": self.throughput,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to the moment of a checkpoint."""
        self.model.load_state_dict(checkpoint["model"])
        self.average.module.load_state_dict(checkpoint["average"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        torch.set_rng_state(checkpoint["random"])
        counters = checkpoint["counters"]
        self.epoch, self.batch, self.loss_sum = counters["epoch"], counters["batch"], counters["loss_sum"]
        self.history, self.throughput = checkpoint["history"], checkpoint["throughput"]


class FoldTrainer:
    """Trains one fold's model and predicts its held-out images."""

    def __init__(
        self, recipe: Recipe, images: FoldImages, folder: FoldFolder, *, fold: int, reporter: Reporter
    ) -> None:
        self.settings = recipe.train
        self.model_settings = recipe.model
        self.images = images
        self.folder = folder
        self.fold = fold
        self.reporter = reporter
        self.arithmetic = Arithmetic.choose(recipe.train.device, recipe.train.precision)
        self.labels = images.training["cancer"].to_numpy()
        self.dataset = CachedImages(
            images.training_images, augmentation=Augmentation(recipe.augment), seed=recipe.train.seed
        )
        plan = self.plan(0)
        self.batches_per_epoch = len(plan)
        share = log_odds(self.labels[np.concatenate(plan)])
        self.logit_shift = log_odds(self.labels) - share
        self.state = self._make_state(first_logit=share)

    def _make_state(self, first_logit: float) -> State:
        torch.manual_seed(int(np.random.SeedSequence([self.settings.seed, self.fold]).generate_state(1)[0]))
        model = VisionTransformer(self.model_settings)
        nn.init.constant_(model.head.bias, first_logit)
        model.to(self.arithmetic.device)
        return State(
            model,
            make_average(model, self.settings),
            make_optimizer(model, self.settings),
            torch.amp.GradScaler(self.arithmetic.device, enabled=self.arithmetic.precision == "fp16"),
        )

    def plan(self, epoch: int) -> list[Rows]:
        """Returns the rows of each batch of an epoch."""
        return plan_epoch(
            self.labels,
            batch_size=self.settings.batch_size,
            positive_share=self.settings.positive_share,
            seed=self.settings.seed,
            fold=self.fold,
            epoch=epoch,
        )

    def run(self, stop: StopRequest) -> None:
        """Trains from the newest checkpoint, or the start, to the end; `oof.csv` is written last.

        Raises:
            Interrupted: if a stop was asked for; a checkpoint is saved.
            TrainingStopped: if loss or gradient is not finite; the last checkpoint is kept.
        """
        checkpoint = load_checkpoint(self.folder)
        if checkpoint is not None:
            self.state.restore(checkpoint)
            self.reporter.say(
                f"fold {self.fold}: goes on after epoch {self.state.epoch}, batch {self.state.batch}"
            )
        predicted = None
        while self.state.epoch < self.settings.epochs:
            speed = self._train_epoch(stop)
            predicted = self._predict()
            self._end_epoch(predicted, speed)
        if predicted is None:
            predicted = self._predict()
        save_weights(self.folder, self.state.average.module, logit_shift=self.logit_shift)
        write_csv(self.folder.oof, predicted)

    def _train_epoch(self, stop: StopRequest) -> dict[str, float]:
        """Returns how many images this process trained on, and in how many seconds."""
        state, start = self.state, time.perf_counter()
        saved = start
        plan = self.plan(state.epoch)
        keys = [[(state.epoch, int(row)) for row in rows] for rows in plan[state.batch :]]
        batches = load_batches(
            self.dataset, keys, workers=self.settings.workers, pin_memory=self.arithmetic.device == "cuda"
        )
        title = f"fold {self.fold} epoch {state.epoch + 1}/{self.settings.epochs}"
        num_images = sum(map(len, keys))
        with self.reporter.track(title, num_images) as advance:
            for images_BCHW, rows_B in batches:
                state.loss_sum += self._step(images_BCHW, rows_B)
                state.batch += 1
                advance(len(rows_B), note=f"loss {state.loss_sum / state.batch:.4f}")
                if stop.is_made or time.perf_counter() - saved > SECONDS_BETWEEN_SAVES:
                    save_checkpoint(self.folder, state.to_checkpoint())
                    stop.raise_if_made()
                    saved = time.perf_counter()
        return {"images": num_images, "seconds": time.perf_counter() - start}

    def _step(self, images_BCHW: Tensor, rows_B: Tensor) -> float:
        """Takes one optimizer step and returns its loss, before the step."""
        state = self.state
        step = state.epoch * self.batches_per_epoch + state.batch
        set_learning_rate(state.optimizer, self._learning_rate(step))
        images_BCHW = images_BCHW.to(self.arithmetic.device, non_blocking=True)
        labels_B = torch.as_tensor(
            self.labels[rows_B.numpy()], dtype=torch.float32, device=images_BCHW.device
        )
        with autocast(self.arithmetic.precision, self.arithmetic.device):
            logits_B = state.model(images_BCHW).squeeze(1)
        loss = F.binary_cross_entropy_with_logits(logits_B.float(), labels_B)
        value = loss.item()
        self._require_finite("loss", value, rows_B)
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.settings.clip_norm)
        if not state.scaler.is_enabled():  # it leaves steps out where a gradient overflows
            self._require_finite("gradient's norm", norm.item(), rows_B)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.average.update(state.model, step)
        return value

    def _learning_rate(self, step: int) -> float:
        return learning_rate_at(
            step,
            num_steps=self.settings.epochs * self.batches_per_epoch,
            warmup_steps=round(self.settings.warmup_epochs * self.batches_per_epoch),
            peak=self.settings.learning_rate,
        )

    def _require_finite(self, name: str, value: float, rows_B: Tensor) -> None:
        if math.isfinite(value):
            return
        names = ", ".join(self.images.training["image_id"].iloc[rows_B.tolist()])
        raise TrainingStopped(
            f"the {name} is {value} in fold {self.fold}, epoch {self.state.epoch + 1}, images {names}: lower "
            "train.learning_rate or look at these images; the last checkpoint is kept"
        )

    def _predict(self) -> pd.DataFrame:
        """Returns the averaged weights' predictions of the held-out images, an OOF table."""
        table = self.images.validation
        batches = predict_cached(
            self.state.average.module,
            self.images.validation_images,
            logit_shift=self.logit_shift,
            arithmetic=self.arithmetic,
            workers=self.settings.workers,
        )
        probabilities = []
        with self.reporter.track(f"fold {self.fold} validation", len(table)) as advance:
            for probabilities_B in batches:
                probabilities.append(probabilities_B)
                advance(len(probabilities_B))
        return table.assign(fold=self.fold, probability=np.concatenate(probabilities))[OOF_COLUMNS]

    def _end_epoch(self, predicted: pd.DataFrame, speed: dict[str, float]) -> None:
        """Writes history and checkpoint; nothing that was learned is lost from here on.

        The checkpoint comes last: a kill before it makes the epoch, and so the same history, again.
        """
        state = self.state
        state.history.append(
            {
                "epoch": state.epoch + 1,
                "step": (state.epoch + 1) * self.batches_per_epoch,
                "learning_rate": state.optimizer.param_groups[0]["lr"],
                "train_loss": state.loss_sum / state.batch,
                **_validation_figures(predicted),
            }
        )
        state.throughput.append({"epoch": state.epoch + 1, **speed})
        state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0
        write_csv(self.folder.history, pd.DataFrame(state.history))
        write_csv(self.folder.throughput, pd.DataFrame(state.throughput))
        save_checkpoint(self.folder, state.to_checkpoint())


def _validation_figures(predicted: pd.DataFrame) -> dict[str, float]:
    """Returns loss per image and figures per breast; NaN is undefined."""
    cancer = predicted["cancer"].to_numpy()
    probability = predicted["probability"].clip(1e-7, 1 - 1e-7).to_numpy()
    breasts = to_breasts(predicted)
    figures = measure(breasts["cancer"], breasts["probability"], num_images=len(predicted))
    return {
        "val_loss": float(-np.log(np.where(cancer == 1, probability, 1 - probability)).mean()),
        "val_pf1": _or_nan(figures.pf1),
        "val_auc": _or_nan(figures.auc),
        "val_average_precision": _or_nan(figures.average_precision),
    }


def _or_nan(figure: float | None) -> float:
    return math.nan if figure is None else figure
