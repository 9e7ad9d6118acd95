"""What a report says of the weights that a run started from."""

from data_prep.errors import UserError
from pipeline.runs.ancestry import list_ancestors
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import Run


def describe_transductive(run: Run) -> str:
    """Says that first weights may have seen the patients that they are judged by; empty if they have not.

    That holds for the runs, too, whose weights the run has started from.
    """
    try:
        settings = load_recipe(run.settings).train
        earlier = [load_recipe(each.settings).train for each in list_ancestors(settings.init)[0]]
    except UserError:  # the page shows them as they are
        return ""
    if not any(each.transductive for each in (settings, *earlier)):
        return ""
    return (
        "This run was allowed to start from an encoder that has seen mammograms, without labels, of the very "
        "patients it is judged by (train.transductive). On new patients it may do worse than all of this."
    )
