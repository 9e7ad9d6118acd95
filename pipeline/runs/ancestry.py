"""The runs whose weights a run has started from: it has learned from their patients too."""

from pathlib import Path

from data_prep.errors import UserError
from pipeline.runs.pretrain_run import PretrainRun
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import Run

TIMM = "timm:"
"""How `train.init` begins where it names a model of timm, which has learned from no mammogram."""


def find_earlier_run(init: str) -> Run | None:
    """Returns the run that `train.init` names; None where it names weights, a pretraining, or nothing.

    Raises:
        UserError: if it is a folder but not a finished run.
    """
    if not (init and Path(init).is_dir()) or find_pretraining(init):
        return None
    run = Run(Path(init))
    if find_pretraining(str(run.folder.parent)):
        raise UserError(
            f"train.init {init} is a folder of a pretraining: name {run.folder.parent}, of which each fold "
            "takes its own encoder"
        )
    run.require_finished()
    return run


def find_pretraining(init: str) -> PretrainRun | None:
    """Returns the pretraining that `train.init` names; None where it names something else, or nothing."""
    run = PretrainRun(Path(init))
    return run if init and run.kind == "pretraining" else None


def belongs_to_one_split(init: str) -> bool:
    """Whether first weights go with the folds of one cross-validation alone."""
    pretraining = find_pretraining(init)
    has_folds = pretraining is not None and bool(pretraining.list_folds())
    return "{fold}" in init or has_folds or find_earlier_run(init) is not None


def list_ancestors(init: str) -> tuple[list[Run], str]:
    """Follows `train.init` from run to run.

    Returns:
        The runs, the nearest first, and why the patients of a further one are not known; empty where all are.
        Whom an encoder was pretrained on tells `find_first_pretraining`.
    """
    runs, unknown, _ = _trace(init)
    return runs, unknown


def find_first_pretraining(init: str) -> PretrainRun | None:
    """Returns the pretraining that `train.init`, or that of a run before, has started from."""
    return _trace(init)[2]


def _trace(init: str) -> tuple[list[Run], str, PretrainRun | None]:
    runs: list[Run] = []
    while init and not init.startswith(TIMM):
        path = Path(init)
        folders = (PretrainRun(folder) for folder in (path, path.parent, path.parent.parent))
        if pretraining := next((folder for folder in folders if folder.kind == "pretraining"), None):
            return runs, "", pretraining
        run = _find_run(path)
        if run is None:
            return runs, f"nobody knows whom the weights of train.init {init} have learned from", None
        if any(run.folder.resolve() == known.folder.resolve() for known in runs):
            break
        runs.append(run)
        try:
            init = load_recipe(run.settings).train.init
        except UserError as error:
            return runs, str(error), None
    return runs, "", None


def _find_run(path: Path) -> Run | None:
    """Returns the run that a folder is, or whose fold's weights a file is."""
    run = Run(path if path.is_dir() else path.parent.parent)
    is_of_fold = path.is_dir() or path.parent.name.startswith("fold_")
    return run if is_of_fold and run.folds.exists() else None
