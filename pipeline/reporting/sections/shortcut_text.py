"""What a report says of the shortcut audit and of differences between slices: a forest plot and sentences."""

from pipeline.evaluation.audit.shortcuts import COUNTING, LARGEST_AUC, ShortcutAudit, TraitAuc
from pipeline.evaluation.audit.traits import (
    EXAM_ORDER,
    FILE_SIZE,
    IMAGE_ORDER,
    PATIENT_ORDER,
    TRANSFER_SYNTAX,
)
from pipeline.evaluation.estimates import AUC_WEIGHTED, FEW_CANCERS
from pipeline.evaluation.evaluate_oof import Evaluation
from pipeline.reporting.formatting import FIGURE_NAMES, format_figure, format_interval
from pipeline.reporting.tables import Bar, Table, choose_axis, place_on_axis

NOT_IN_PICTURES = {PATIENT_ORDER, EXAM_ORDER, IMAGE_ORDER, FILE_SIZE, TRANSFER_SYNTAX}
"""Traits that no model sees; they tell that cancers and others came by different ways."""
AUDIT_NOTE = (
    "The AUC that each trait has alone, without a look at a pixel. A prediction is scored by the share of "
    "cancers among the other folds' predictions with the same value; numbers are cut at the deciles. A trait "
    f"that tells nothing has 0.5 or a little less. The dotted line is {LARGEST_AUC:.2f}: what lies above it, "
    "and above 0.5 beyond chance (5 %, Holm's correction), is a shortcut. Age may tell: older women have "
    "more cancers everywhere."
)


def tabulate_shortcuts(audit: ShortcutAudit) -> Table:
    """Returns a forest plot: the AUC of each trait alone, of breasts and of images."""
    intervals = [each.interval for each in audit.traits if each.interval is not None]
    start, ticks = choose_axis([interval.low for interval in intervals])
    rows = [
        [
            f"{each.trait}{'' if each.level == 'breast' else ' (images)'}",
            format_figure(each.auc),
            format_interval(each.interval),
            "shortcut" if each.is_shortcut else "",
            "" if each.interval else "the same for all, or for one class",
        ]
        for each in audit.traits
    ]
    bars = [_make_bar(each, start) for each in audit.traits]
    columns = ["trait", "AUC", "95 %", "verdict", "AUC with interval"]
    return Table("What tells the label without a pixel", columns, rows, bars=bars, axis=ticks)


def describe_shortcuts(audit: ShortcutAudit) -> list[str]:
    """Says which traits tell the label, and which figures that spoils; empty where none does."""
    sentences = []
    counting = [each for each in audit.shortcuts if each.trait in COUNTING]
    if counting:
        spoilt = {
            "breast": "all figures per breast, a maximum over views above all",
            "image": "figures per image that count a breast as often as it has images",
        }
        levels = {each.level for each in counting}
        figures = "; ".join(text for level, text in spoilt.items() if level in levels)
        sentences.append(
            f"The label can be told by counting images: {_name(counting)}. That may raise {figures}. Judge "
            f"by the {FIGURE_NAMES[AUC_WEIGHTED]}, which leads here, and not by models of several views."
        )
    others = [each for each in audit.shortcuts if each.trait not in COUNTING]
    seen = [each for each in others if each.trait not in NOT_IN_PICTURES]
    if seen:
        sentences.append(
            f"The label can be told without a look at the tissue: {_name(seen)}. A model can see that in the "
            "picture, so every figure here may owe to it, per breast and per image."
        )
    hidden = [each for each in others if each.trait in NOT_IN_PICTURES]
    if hidden:
        sentences.append(
            f"Cancers and others seem to have come from different sources: {_name(hidden)}. If a model can "
            "see the source in the picture, every figure here, per breast and per image, is too good."
        )
    return sentences


def explain_not_looked_at(audit: ShortcutAudit) -> str:
    """Says what the audit did not look at and why; empty where it looked at all."""
    reasons = dict.fromkeys(audit.not_looked_at.values())
    parts = [
        f"{', '.join(trait for trait, why in audit.not_looked_at.items() if why == reason)}: {reason}"
        for reason in reasons
    ]
    return f"Not looked at: {'; '.join(parts)}." if parts else ""


def describe_heterogeneity(evaluation: Evaluation) -> str:
    """Says how many intervals to expect off the line, and which kinds differ beyond chance."""
    level = evaluation.breasts
    of_images = {kind: p for kind, p in evaluation.images.heterogeneity.items() if kind not in level.kinds}
    shown = [*level.slices, *(part for part in evaluation.images.slices if part.kind in of_images)]
    number = sum("auc" in part.estimate.intervals for part in shown)
    chance = f"Of {number} intervals about 1 in 20 lies off the line by chance alone. " if number > 1 else ""
    values = {**level.heterogeneity, **of_images}
    tested = ", ".join(f"{kind} {p:.3f}" for kind, p in values.items() if p is not None)
    if not tested:
        return (
            f"{chance}No kind has two values with {FEW_CANCERS} or more women with cancer and an AUC below "
            "1, so that none can be tested for differences."
        )
    return (
        f"{chance}The p values of one AUC for all values of a kind that have {FEW_CANCERS} or more women "
        f"with cancer, not corrected for their number: {tested}."
    )


def _name(shortcuts: list[TraitAuc]) -> str:
    """Names traits with their AUCs, each once, with the larger one."""
    largest: dict[str, TraitAuc] = {}
    for each in shortcuts:
        largest.setdefault(each.trait, each)
    return ", ".join(
        f"{each.trait} alone has an AUC of {each.auc:.3f} ({format_interval(each.interval)})"
        for each in largest.values()
    )


def _make_bar(each: TraitAuc, start: float) -> Bar | None:
    if each.auc is None or each.interval is None:
        return None
    values = (each.interval.low, each.auc, each.interval.high, LARGEST_AUC)
    ends = [place_on_axis(value, start) for value in values]
    return Bar(f"AUC {each.auc:.3f}, {format_interval(each.interval)}", *ends)
