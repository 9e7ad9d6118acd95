"""What a report calls things: out of fold, and on an external set, where one ensemble judges all."""

from dataclasses import dataclass

from pipeline.evaluation.evaluate_oof import Evaluation
from pipeline.reporting.formatting import FIGURE_NAMES


@dataclass(frozen=True)
class Wording:
    """The words of one kind of evaluation.

    Attributes:
        kicker: what the page is.
        judge: who gives a breast its probability, in a sentence about the AUC.
        judged: how each breast was judged.
        models: what comes after the number of folds in a count.
        transferred: the threshold of those who are recalled.
        transferred_note: where that threshold comes from.
        chosen: the threshold that curves and stability start from.
        all_folds: what the figures of all folds are of.
        all_column: the same on the terminal.
        folds_column: the figures of each fold there.
        pooled: the curve of all breasts.
        thick_roc: the thick ROC curve.
        roc_note: what that is.
        precision_note: what the thick precision-recall curve is; empty where that needs no word.
        in_each_fold: ` in each fold`, where figures are taken within folds.
        whose: how the highest probabilities are taken where few may be recalled.
        teachers: what calibration was fitted on.
        constant: what a constant probability is taken from.
        one_probability: whose probability a breast is shown with.
        names: of the figures that there are, in the order to show them.
    """

    kicker: str
    judge: str
    judged: str
    models: str
    transferred: str
    transferred_note: str
    chosen: str
    all_folds: str
    all_column: str
    folds_column: str
    pooled: str
    thick_roc: str
    roc_note: str
    precision_note: str
    in_each_fold: str
    whose: str
    teachers: str
    constant: str
    one_probability: str
    names: dict[str, str]


OUT_OF_FOLD = Wording(
    kicker="Out-of-fold evaluation",
    judge="a model",
    judged="Each breast was judged by a model that never saw its patient; its probability is the mean over "
    "its images, on the logit.",
    models="folds",
    transferred="the other folds' threshold",
    transferred_note="The other folds' threshold is the one that was best on all folds but the one that it "
    "is applied to.",
    chosen="the best pooled threshold",
    all_folds="all folds",
    all_column="all",
    folds_column="by fold",
    pooled="pooled",
    thick_roc="mean of folds",
    roc_note="Thick: the mean of the folds' curves, each counting by its pairs, so that its area is the AUC. "
    "Dashed: guessing.",
    precision_note="Thick: all folds in one ranking after their logits were brought to one scale, as for "
    "average precision. ",
    in_each_fold=" in each fold",
    whose="in each fold those with the highest probabilities",
    teachers="the other folds",
    constant="the other folds' prevalence",
    one_probability="A breast is shown with the probability of one model, that of its own fold, which never "
    "saw the patient; the other folds' models have learned from her label, and their probabilities would be "
    "a leak dressed up as evidence.",
    names=FIGURE_NAMES,
)
EXTERNAL = Wording(
    kicker="External evaluation",
    judge="the ensemble of the run's models",
    judged="Each breast was judged by the mean of all folds' models, none of which has learned from these "
    "patients; its probability is the mean over its images, on the logit.",
    models="folds' models, together and each alone",
    transferred="the run's threshold",
    transferred_note="The run's threshold is the one that its submissions use for the mean of all models; a "
    "fold's model alone is held against the one that was best on the run's out-of-fold predictions. Nothing "
    "was chosen on this set but the best threshold, which is a little too good here.",
    chosen="the run's threshold",
    all_folds="the ensemble",
    all_column="ensemble",
    folds_column="each model",
    pooled="ensemble",
    thick_roc="ensemble",
    roc_note="Thin: each fold's model alone. Dashed: guessing.",
    precision_note="",
    in_each_fold="",
    whose="those with the highest probabilities",
    teachers="the run's own out-of-fold predictions, each of a single model",
    constant="the prevalence here",
    one_probability="A breast is shown with the ensemble's probability, as a submission would have it.",
    names={name: title for name, title in FIGURE_NAMES.items() if name != "auc_pooled"}
    | {
        "pf1_transferred": "pF1 at the run's threshold",
        "threshold_transferred": "the run's threshold",
    },
)


def wording_of(evaluation: Evaluation) -> Wording:
    """Returns the words for an evaluation."""
    return OUT_OF_FOLD if evaluation.external is None else EXTERNAL
