"""A run beside its repeats, from the folders of all."""

from data_prep.errors import UserError
from pipeline.evaluation.evaluate_oof import Evaluation, require_breasts
from pipeline.evaluation.oof import collect_oof
from pipeline.evaluation.uncertainty.repeats import Repeats, summarise_repeats
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import Run


def compare_repeats(run: Run, evaluation: Evaluation) -> Repeats | None:
    """Sets a run beside its finished repeats; None where there are none.

    Raises:
        UserError: if a repeat is damaged, or is not of the run's breasts and labels.
    """
    repeats = {number: run.repeat(number) for number in run.list_repeats()}
    finished = {number: repeat for number, repeat in repeats.items() if not repeat.unfinished_folds()}
    if not finished:
        return None
    inputs = run.read_inputs()  # a repeat may not have followed the run's yet
    oofs = {number: collect_oof(repeat, inputs=inputs) for number, repeat in finished.items()}
    oofs = {0: evaluation.oof} | oofs
    breasts = {number: require_breasts(oof) for number, oof in oofs.items()}
    labels = ["prediction_id", "cancer", "num_images"]
    for number, repeat in finished.items():
        if not breasts[number][labels].equals(breasts[0][labels]):
            raise UserError(
                f"{repeat.folder} is not of the same breasts and labels as {run.folder}: remove it, and "
                "`mammo train` with --repeats makes it again"
            )
    seeds = {number: _read_seed(run.repeat(number)) for number in oofs}
    return summarise_repeats(oofs, breasts, seeds, figure=evaluation.lead[0])


def _read_seed(run: Run) -> int | None:
    try:
        return load_recipe(run.settings).train.seed
    except UserError:  # the page shows the settings as they are
        return None
