"""What a report says of the weights that a run has started from."""

from data_prep.errors import UserError
from pipeline.runs.ancestry import list_ancestors
from pipeline.runs.recipe import ModelSettings, Recipe, load_recipe
from pipeline.runs.run_folder import Run, RunFolder, TrainingFolder, read_table

COLUMNS = ["tensor", "outcome", "detail"]


def describe_first_weights(run: RunFolder) -> str:
    """Says where a run's first weights came from, what became of them and what was trained.

    Empty where they were drawn, or nothing can be read of it.
    """
    try:
        recipe = load_recipe(run.settings)
    except UserError:  # the page shows the settings as they are
        return ""
    if not recipe.train.init:
        return ""
    sentences = [
        f"Training started from {recipe.train.init}, {_describe_model(recipe.model)}.",
        _describe_tensors(run),
        _describe_trained(recipe),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


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


def _describe_model(model: ModelSettings) -> str:
    """Names what such weights may bring that the paper's model has not."""
    parts = {
        f"{model.register_tokens} register tokens": model.register_tokens > 1,
        "1 register token": model.register_tokens == 1,
        "LayerScale": model.layer_scale > 0,
        "normalised queries and keys": model.qk_norm,
        "no biases of queries, keys and values": not model.qkv_bias,
    }
    *others, last = [part for part, is_there in parts.items() if is_there] or ["the plain architecture"]
    return f"with {', '.join(others)} and {last}" if others else f"with {last}"


def _describe_tensors(run: RunFolder) -> str:
    """Counts what became of the tensors, of the first training that has kept it."""
    paths = [TrainingFolder(folder).initial_weights for folder in sorted(run.folder.glob("fold_*"))]
    path = next(
        (each for each in [TrainingFolder(run.folder).initial_weights, *paths] if each.exists()), None
    )
    if path is None:
        return ""
    try:
        table = read_table(path, COLUMNS, keep_default_na=False)
    except UserError:
        return ""
    is_left_out = table["outcome"] == "left out"
    counts = [
        f"{number} {outcome}" for outcome, number in table["outcome"][~is_left_out].value_counts().items()
    ]
    reasons = table.loc[is_left_out, "detail"].value_counts()
    left_out = [f"{number} left out ({reason})" for reason, number in reasons.items()]
    return f"Tensors: {', '.join([*counts, *left_out])}."


def _describe_trained(recipe: Recipe) -> str:
    settings = recipe.train
    head = "The head was taken over" if settings.keep_head else "The head was new"
    if settings.linear_probe:
        return f"{head} and alone was trained."
    if settings.frozen_layers:
        return f"{head}; the embedding and the first {settings.frozen_layers} layers stayed as they came."
    return f"{head}."
