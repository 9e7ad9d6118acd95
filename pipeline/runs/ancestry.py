"""The runs whose weights a run has started from: it has learned from their patients too."""

from pathlib import Path

from data_prep.errors import UserError
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import Run

TIMM = "timm:"
"""How `train.init` begins where it names a model of timm, which has learned from no mammogram."""


def find_earlier_run(init: str) -> Run | None:
    """Returns the run that `train.init` names; None where it names weights, or nothing.

    Raises:
        UserError: if it is a folder but not a finished run.
    """
    if not (init and Path(init).is_dir()):
        return None
    run = Run(Path(init))
    run.require_finished()
    return run


def list_ancestors(init: str) -> tuple[list[Run], str]:
    """Follows `train.init` from run to run.

    Returns:
        The runs, the nearest first, and why the patients of a further one are not known; empty where all are.
    """
    runs: list[Run] = []
    while init and not init.startswith(TIMM):
        run = _find_run(Path(init))
        if run is None:
            return runs, f"nobody knows whom the weights of train.init {init} have learned from"
        if any(run.folder.resolve() == known.folder.resolve() for known in runs):
            break
        runs.append(run)
        try:
            init = load_recipe(run.settings).train.init
        except UserError as error:
            return runs, str(error)
    return runs, ""


def _find_run(path: Path) -> Run | None:
    """Returns the run that a folder is, or whose fold's weights a file is."""
    run = Run(path if path.is_dir() else path.parent.parent)
    is_of_fold = path.is_dir() or path.parent.name.startswith("fold_")
    return run if is_of_fold and run.folds.exists() else None
