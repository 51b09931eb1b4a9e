"""What a run is scored by: mAP, mAUC, mS2, accuracy, macro F1 and calibration, each defined once for the whole package.

The names need no torch, so a config that monitors an unknown metric is refused in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fusionbench.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", bound=Any)  # a tensor or a NumPy array
HEADLINE = ("mAP", "mAUC", "mS2", "accuracy", "F1", "ECE")
PER_CLASS = ("AP", "AUC", "S2", "sensitivity", "specificity", "F1")
ANSWERS = ("answer_accuracy", "answer_none")  # of ``answer_values``
LOWER_IS_BETTER = frozenset({"ECE", "answer_none"})
ECE_BINS = 15


def check_metric(name: str, classes: Sequence[str] = (), further: Sequence[str] = ()) -> None:
    """Refuse a name that ``evaluate`` does not return and no strategy's ``scores`` either.

    Args:
        name: A headline metric or, when ``classes`` are given, one of a class, e.g. ``AP/melanoma``.
        classes: Class names in label order.
        further: Scores that the strategy adds, e.g. ``dice``.

    Raises:
        UserError: There is no such metric; names the nearest.
    """
    known = [*HEADLINE, *further, *(f"{metric}/{label}" for metric in PER_CLASS for label in classes)]
    if name not in known:
        raise UserError(f"unknown metric '{name}'{nearest(name, known)}")


def evaluate(probabilities: Tensor, target: Tensor, classes: Sequence[str], multilabel: bool) -> dict[str, float]:
    """Score predictions; a class that no case has is nan and left out of every mean over classes.

    Decisions are the most probable class, or p > 0.5 when multi-label. AP and AUC are one-vs-rest, also with two
    classes. S2 is the harmonic mean of sensitivity and specificity, 0 when both are 0. F1 is the mean over classes.
    When multi-label, accuracy and ECE are means over classes of the binary values. ECE takes the most probable class's
    confidence, in 15 bins (lo, hi].

    Args:
        probabilities: (N, K) float in [0, 1].
        target: (N,) int64 in [0, K), or (N, K) of 0/1 when multi-label.
        classes: K names in label order.
        multilabel: Whether a case can have several classes.

    Returns:
        The headline metrics, and ``<metric>/<class>`` for each metric in ``PER_CLASS``; fractions in [0, 1] or nan.

    Raises:
        UserError: Shapes disagree, there is no case, a probability is not in [0, 1] or a label is unknown.
    """
    _check(probabilities, target, classes, multilabel)
    scores_NK = (probabilities if probabilities.element_size() > 4 else probabilities.float()).clamp(0, 1)
    truth_NK, decided_NK = _indicators(scores_NK, target, multilabel)
    rows = [_one_vs_rest(scores_NK[:, k], decided_NK[:, k], truth_NK[:, k]) for k in range(len(classes))]
    means = {name: mean([row[name.removeprefix("m")] for row in rows]) for name in ("mAP", "mAUC", "mS2", "F1")}
    agree_NK = decided_NK == truth_NK
    correct = agree_NK if multilabel else agree_NK.all(dim=1)
    means["accuracy"] = correct.double().mean().item()
    means["ECE"] = _calibration_error(scores_NK, truth_NK, multilabel)
    by_class = zip(classes, rows, strict=True)
    return {name: means[name] for name in HEADLINE} | {
        f"{metric}/{label}": value for label, row in by_class for metric, value in row.items()
    }


def mean(values: Sequence[float]) -> float:
    """Return the mean of those that are not nan; nan when all are."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def answer_values(answers: Array, target: Array) -> dict[str, Array]:
    """Return what the answers in words come to, (N,) bool each, of which the share is reported.

    Args:
        answers: (N,) int64, tensor or array: the class that each answer names, -1 (wrong) where none or several.
        target: (N,) int64, or (N, K) when multi-label, where one named class is neither right nor wrong.

    Returns:
        ``answer_accuracy``, unless multi-label, and ``answer_none``, the share that names no single class.
    """
    none = {"answer_none": answers < 0}
    return none if target.ndim > 1 else {"answer_accuracy": answers == target, **none}


def _check(probabilities: Tensor, target: Tensor, classes: Sequence[str], multilabel: bool) -> None:
    """Refuse what torchmetrics would score silently or fail on without naming the reason."""
    cases, labels = len(probabilities), len(classes)
    wanted = (cases, labels) if multilabel else (cases,)
    if tuple(probabilities.shape) != (cases, labels) or tuple(target.shape) != wanted:
        raise UserError(
            f"probabilities of shape {tuple(probabilities.shape)} and target of shape {tuple(target.shape)} do not fit "
            f"{labels} classes; give ({cases}, {labels}) and {wanted}"
        )
    if cases == 0:
        raise UserError("there is no case to score; give at least one")
    if not ((probabilities >= -1e-6) & (probabilities <= 1 + 1e-6)).all():
        raise UserError("a probability is nan or not in [0, 1]; apply softmax or sigmoid to finite logits first")
    if not ((target >= 0) & (target < (2 if multilabel else labels))).all():
        raise UserError(
            f"a label is unknown or not one of {'0 and 1' if multilabel else f'0 to {labels - 1}'}; score only cases "
            "whose label is known"
        )


def _indicators(scores_NK: Tensor, target: Tensor, multilabel: bool) -> tuple[Tensor, Tensor]:
    """Return truth and decision as (N, K) int64 of 0/1."""
    from torch.nn.functional import one_hot

    if multilabel:
        return target.long(), (scores_NK > 0.5).long()
    width = scores_NK.shape[1]
    return one_hot(target.long(), width), one_hot(scores_NK.argmax(dim=1), width)


def _one_vs_rest(scores_N: Tensor, decided_N: Tensor, truth_N: Tensor) -> dict[str, float]:
    """Score one class against the rest; torchmetrics is not asked what is undefined, for it would warn and return 0."""
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_stat_scores

    tp, fp, tn, fn, _ = binary_stat_scores(decided_N, truth_N).tolist()
    has_positive, has_negative = tp + fn > 0, tn + fp > 0
    both = has_positive and has_negative
    sensitivity = tp / (tp + fn) if has_positive else math.nan
    specificity = tn / (tn + fp) if has_negative else math.nan
    return {
        "AP": binary_average_precision(scores_N, truth_N).item() if has_positive else math.nan,
        "AUC": binary_auroc(scores_N, truth_N).item() if both else math.nan,
        "S2": harmonic_mean(sensitivity, specificity),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "F1": 2 * tp / (2 * tp + fp + fn) if has_positive else math.nan,
    }


def harmonic_mean(a: float, b: float) -> float:
    """Return the harmonic mean of two rates: 0 when both are 0, nan when either is nan."""
    return 0.0 if a == b == 0 else 2 * a * b / (a + b)


def _calibration_error(scores_NK: Tensor, truth_NK: Tensor, multilabel: bool) -> float:
    """Return the expected calibration error; torchmetrics' bins are [lo, hi), so this one is ours."""
    import torch

    if not multilabel:
        top_N1 = scores_NK.argmax(dim=1, keepdim=True)
        scores_NK, truth_NK = scores_NK.gather(1, top_N1), truth_NK.gather(1, top_N1)
    scores_KN = scores_NK.double().T.contiguous()
    edges = torch.arange(1, ECE_BINS, dtype=torch.float64, device=scores_KN.device) / ECE_BINS
    gap_KN = scores_KN - truth_NK.T
    bin_KN = torch.bucketize(scores_KN, edges)
    gap_KB = gap_KN.new_zeros(len(gap_KN), ECE_BINS).scatter_add_(1, bin_KN, gap_KN)
    return (gap_KB.abs().sum(dim=1) / gap_KN.shape[1]).mean().item()
