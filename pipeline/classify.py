"""An image folder's classes as a task for the trainer, and a run of it. Knows no folds and no mammograms.

Of `[train]` everything counts but `num_folds`, `positive_share` and what `FOR_MAMMOGRAMS` lists: each epoch
goes once through all training images, in an order drawn from (seed, epoch). `[prepare]` does not count: the
images are squares of `model.image_size`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.augment import Augmentation
from pipeline.class_metrics import cross_entropy, number_labels, top_k_accuracy
from pipeline.dataset import CachedImages, in_order, load_batches
from pipeline.image_folder import TEST, TRAIN, ImageFolder, read_image_folder
from pipeline.interrupt import StopRequest
from pipeline.predict import BATCH_SIZE, Arithmetic, find_logits
from pipeline.progress import Reporter
from pipeline.ranks import ALONE, Ranks
from pipeline.run import ClassRun, prediction_columns, probability_column
from pipeline.sampler import Rows, plan_natural
from pipeline.settings import ModelSettings, Recipe, TrainSettings
from pipeline.start_run import (
    has_begun,
    held_for_all,
    require_space_for,
    resolve,
    say_if_ranks_changed,
    start_run,
)
from pipeline.train import Trainer

FOR_MAMMOGRAMS = ["sampling", "positive_label", "positive_weight", "focal_gamma", "auxiliaries"]
MOST_NAMED = 5  # of the images that cannot be read


def train_classes(
    recipe: Recipe, data: Path, run: ClassRun, *, reporter: Reporter, ranks: Ranks = ALONE
) -> None:
    """Trains on a folder's training images and predicts its test images; a run that was broken off goes on.

    Several ranks train together; the first has begun or checked the run before the others look.

    Raises:
        UserError: if recipe, folder and run do not fit together, or an image cannot be read.
        Interrupted: after a signal; a checkpoint is saved.
        TrainingStopped: if a loss is not finite or no checkpoint can be read.
    """
    with ranks.first_goes_first():
        recipe = resolve(recipe)
        _require_settings_count(recipe.train)
        folder = read_image_folder(data, seed=recipe.train.seed)
        require_model_fits(recipe.model, folder)
    with StopRequest() as stop, held_for_all(run.folder, ranks):
        with ranks.first_goes_first():
            if ranks.is_first:
                _start(recipe, folder, run, num_ranks=ranks.size)
                require_space_for(recipe, run.folder, [run.training])
                say_if_ranks_changed(run, ranks, reporter)
            is_finished, is_new = run.training.is_finished, not has_begun(run.folder)
        if is_finished:
            reporter.say(f"{run.name}: finished before")
            return
        task = ClassTask(recipe, folder, name=run.name)
        reporter.say(
            f"{len(folder.labels)} classes, {len(task.training)} images for training, {len(task.test)} for "
            f"the test ({folder.origin})"
        )
        # Before all images are read: a wrong train.init shows at once.
        trainer = Trainer(recipe, task, run.training, reporter=reporter, ranks=ranks)
        if is_new and ranks.is_first:
            _require_readable(folder, recipe.model, stop, reporter)
        trainer.run(stop)


def _require_settings_count(settings: TrainSettings) -> None:
    """Refuses what is for mammograms alone, rather than leave it out without a word."""
    if settings.select != "last":
        raise UserError('train.select "best" would choose the epoch by the test split: set it to "last"')
    for name in FOR_MAMMOGRAMS:
        default = TrainSettings.model_fields[name].default
        if getattr(settings, name) != default:
            raise UserError(
                f"train.{name} is for mammograms alone and does nothing for a folder of classes: "
                f"leave it at {default!r}"
            )


def require_model_fits(model: ModelSettings, folder: ImageFolder) -> None:
    """Makes sure that the model has an output for each class.

    Raises:
        UserError: with the number that it must have.
    """
    num_classes = len(folder.labels)
    if model.num_classes != num_classes:
        raise UserError(
            f"model.num_classes is {model.num_classes} and must be {num_classes}, the number of classes in "
            f"{folder.folder}: add --set model.num_classes={num_classes}"
        )


def _start(recipe: Recipe, folder: ImageFolder, run: ClassRun, *, num_ranks: int) -> None:
    """Makes the run folder, or checks that it was made by the same recipe on the same images."""
    origin = {"data": str(folder.folder), "split": folder.origin, "processes": num_ranks}
    start_run(run, recipe, table=folder.images, path=run.images, origin=origin)
    if not run.read_images().equals(folder.images):
        raise UserError(f"{run.folder} has other images or labels than {folder.folder}: choose another --run")


def _require_readable(
    folder: ImageFolder, model: ModelSettings, stop: StopRequest, reporter: Reporter
) -> None:
    """Reads every image once, so that all broken ones are known before the training and not in its midst."""
    images = folder.open_images(folder.images, side=model.image_size, channels=model.in_channels)
    broken: list[str] = []
    with reporter.track("reading every image once", len(images)) as advance:
        for path in images.find_unreadable():
            stop.raise_if_made()
            broken += [path.relative_to(folder.folder).as_posix()] if path else []
            advance(note=f"{len(broken)} broken" if broken else "")
    if broken:
        more = f" and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
        raise UserError(
            f"{len(broken)} of the {len(images)} images in {folder.folder} cannot be read: "
            f"{', '.join(broken[:MOST_NAMED])}{more}; replace them, or remove them and their lines in any "
            "list, and give the same command again"
        )


class ClassTask:
    """Learns a folder's classes; `pipeline.task.Task` says what each part is for."""

    logit_shift = 0.0

    def __init__(self, recipe: Recipe, folder: ImageFolder, *, name: str) -> None:
        self.settings = recipe.train
        self.name = name
        self.seed = recipe.train.seed
        self.init = recipe.train.init
        self.model = recipe.model
        self.labels = folder.labels
        self.training, self.test = folder.split(TRAIN), folder.split(TEST)
        shape = {"side": recipe.model.image_size, "channels": recipe.model.in_channels}
        self.held_out = folder.open_images(self.test, **shape)
        self.dataset = CachedImages(
            folder.open_images(self.training, **shape),
            augmentation=Augmentation(recipe.augment),
            seed=recipe.train.seed,
        )
        self._classes = number_labels(self.training["label"], self.labels)
        shares = np.bincount(self._classes, minlength=len(self.labels)) / len(self.training)
        self.first_logits: NDArray[np.float64] = np.log(shares)  # each class has a training image

    def plan(self, epoch: int) -> list[Rows]:
        """Returns the rows of each batch of an epoch: every image once, in parts of equal size."""
        entropy = [self.settings.seed, epoch]
        return plan_natural(len(self.training), batch_size=self.settings.batch_size, entropy=entropy)

    def losses(self, logits_BK: Tensor, rows_B: Tensor) -> Tensor:
        """Returns each image's cross-entropy."""
        classes_B = torch.as_tensor(self._classes[rows_B.numpy()], device=logits_BK.device)
        return F.cross_entropy(logits_BK, classes_B, reduction="none")

    def name_rows(self, rows: list[int]) -> list[str]:
        """Returns paths below the folder."""
        return list(self.training["image"].iloc[rows])

    def predict(
        self,
        model: nn.Module,
        arithmetic: Arithmetic,
        rows: Sequence[int],
        on_batch: Callable[[int], None],
    ) -> NDArray[np.float64]:
        """Returns the probabilities [N, K] of these test images."""
        batches = load_batches(
            CachedImages(self.held_out),
            in_order(rows, BATCH_SIZE),
            workers=self.settings.workers,
            device=arithmetic.device,
        )
        probabilities = [np.empty((0, len(self.labels)))]
        for images_BCHW, rows_B in batches:
            logits_BK = find_logits(model, images_BCHW, arithmetic)
            probabilities.append(logits_BK.softmax(dim=1).cpu().numpy())
            on_batch(len(rows_B))
        return np.concatenate(probabilities)

    def tabulate(self, probabilities_NK: NDArray[np.float64]) -> pd.DataFrame:
        """Returns the table of `predictions.csv`."""
        predicted = probabilities_NK.argmax(axis=1)
        table = self.test[["image", "label"]].assign(
            predicted=np.array(self.labels, dtype=object)[predicted], probability=probabilities_NK.max(axis=1)
        )
        columns = pd.DataFrame(probabilities_NK, columns=[*map(probability_column, self.labels)])
        return pd.concat([table, columns], axis=1)[prediction_columns(self.labels)]

    def measure(self, predicted: pd.DataFrame) -> dict[str, float]:
        """Returns loss and accuracy of the test images; nothing is chosen by them."""
        classes = number_labels(predicted["label"], self.labels)
        probabilities_NK = predicted[[*map(probability_column, self.labels)]].to_numpy()
        return {
            "test_loss": cross_entropy(classes, probabilities_NK),
            "test_accuracy": top_k_accuracy(classes, probabilities_NK, k=1),
        }
