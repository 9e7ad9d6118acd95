"""The state that a training begins or goes on with: checkpoint, first weights, optimizer. Takes no step."""

import torch

from data_prep.files import write_csv
from pipeline.checkpoint import load_checkpoint
from pipeline.optim import freeze, make_average, make_optimizer
from pipeline.predict import Arithmetic
from pipeline.progress import Reporter
from pipeline.ranks import Ranks
from pipeline.run import TrainingFolder
from pipeline.settings import TrainSettings
from pipeline.task import Task
from pipeline.training_state import State
from pipeline.vit import VisionTransformer
from pipeline.weights import load_initial_weights


def load_state(
    task: Task,
    settings: TrainSettings,
    folder: TrainingFolder,
    arithmetic: Arithmetic,
    *,
    reporter: Reporter,
    ranks: Ranks,
) -> State:
    """Returns the state of the newest checkpoint, or the first one.

    Raises:
        TrainingStopped: if there are checkpoints and none can be read.
        UserError: if the first weights cannot be used.
    """
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        torch.manual_seed(task.seed)
        return _make_state(_make_first_model(task, settings, folder, reporter, ranks), settings, arithmetic)
    state = _make_state(VisionTransformer(task.model), settings, arithmetic)
    state.restore(checkpoint)
    reporter.say(f"{task.name}: goes on after epoch {state.epoch}, batch {state.batch}")
    return state


def _make_first_model(
    task: Task, settings: TrainSettings, folder: TrainingFolder, reporter: Reporter, ranks: Ranks
) -> VisionTransformer:
    """Returns the model as it is before the first step; a training that goes on does not ask for it."""
    model = VisionTransformer(task.model)
    if task.init:
        rows = load_initial_weights(model, task.init, settings.init_normalization)
        if ranks.is_first:
            write_csv(folder.initial_weights, rows)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in rows["outcome"].value_counts().items())
        reporter.say(f"{task.name}: starts from {task.init}: tensors {counts}")
    with torch.no_grad():
        model.head.bias.copy_(torch.from_numpy(task.first_logits))
    return model


def _make_state(model: VisionTransformer, settings: TrainSettings, arithmetic: Arithmetic) -> State:
    model.to(arithmetic.device)
    freeze(model, settings)
    return State(
        model,
        make_average(model, settings),
        make_optimizer(model, settings),
        torch.amp.GradScaler(arithmetic.device, enabled=arithmetic.precision == "fp16"),
    )
