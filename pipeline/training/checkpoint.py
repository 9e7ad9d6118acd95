"""Checkpoints that a training goes on from: after a kill, at least one of the last two is whole."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from data_prep.errors import TrainingStopped, printable
from data_prep.storage.atomic import replacing
from data_prep.storage.files import NotAFile, open_own
from pipeline.models.torch_file import load_tensors
from pipeline.runs.run_folder import TrainingFolder

Checkpoint = dict[str, Any]

log = logging.getLogger(__name__)


def save_checkpoint(folder: TrainingFolder, checkpoint: Checkpoint) -> None:
    """Writes `last.pt`; what was there becomes `previous.pt`. A kill leaves at least one of them whole."""
    with replacing(folder.last) as stream:
        torch.save(checkpoint, stream)
        if folder.last.exists():
            folder.last.replace(folder.previous)


class CheckpointWriter:
    """Writes checkpoints while the training goes on, one after the other.

    What went wrong with one is raised by the next call; the end of the block waits for the last.
    """

    def __init__(self, folder: TrainingFolder) -> None:
        self._folder = folder
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True)
        if error is None:
            self.wait()
        elif self._pending and (lost := self._pending.exception()):  # beside what ends the block already
            log.warning("the last checkpoint is not written: %s", printable(str(lost)))

    def submit(self, checkpoint: Checkpoint) -> None:
        """Copies the checkpoint, as the training is about to change it, and begins to write it."""
        self.wait()
        self._pending = self._executor.submit(save_checkpoint, self._folder, _copy(checkpoint))

    def wait(self) -> None:
        """Waits until nothing is left to write.

        Raises:
            OSError: if that was not possible.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _copy(value: Any) -> Any:
    """Returns nested dictionaries and lists with copies of their tensors, on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copy(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_copy(each) for each in value]
    return value


def load_checkpoint(folder: TrainingFolder) -> Checkpoint | None:
    """Reads the newest readable checkpoint onto the CPU; None where training has not begun.

    Raises:
        TrainingStopped: if there are checkpoints and none can be read.
        OSError: if something else stands in the place of one.
    """
    candidates = [path for path in (folder.last, folder.previous) if path.exists()]
    for path in candidates:
        try:
            with open_own(path) as stream:
                checkpoint: Checkpoint = load_tensors(stream)
        except NotAFile:
            raise
        except Exception as error:  # torch.load names no set of errors for damaged files
            log.warning(
                "%s cannot be read (%s); trying the checkpoint before it",
                printable(str(path)),
                type(error).__name__,
            )
        else:
            if path == folder.previous:
                folder.last.unlink(missing_ok=True)  # else the next save would put it in this one's place
            return checkpoint
    if candidates:
        raise TrainingStopped(
            f"no checkpoint in {folder.folder} can be read: remove that folder to train the fold anew"
        )
    return None
