"""The headline metrics of many weighted copies of one set of predictions at once, in NumPy.

A bootstrap resample is the same cases with integer weights, so 2,000 of them are scored by sorting each class's scores
once. Definitions are those of ``fusionbench.metrics.evaluate``; weights act as scikit-learn's ``sample_weight``.

Names carry shapes: R resamples, N cases, K classes, T distinct scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusionbench.metrics import ECE_BINS, HEADLINE

Floats = NDArray[np.float64]


def weighted_scores(
    probabilities: Floats, target: NDArray[np.int64], weights: Floats, metrics: Sequence[str] = HEADLINE
) -> dict[str, Floats]:
    """Return each metric asked for as an array (R,); nan where a resample has no case that defines it.

    Args:
        probabilities: (N, K) in [0, 1].
        target: (N,) class indices, or (N, K) of 0/1 when multi-label.
        weights: (R, N), not negative, each row with a positive sum.
        metrics: Headline metrics; nothing is computed for those left out.
    """
    multilabel = target.ndim == 2
    identity = np.eye(probabilities.shape[1], dtype=np.int64)
    truth_NK = target if multilabel else identity[target]
    decided_NK = probabilities > 0.5 if multilabel else identity[probabilities.argmax(axis=1)] > 0
    scores: dict[str, Floats] = {}
    if {"mAP", "mAUC"} & set(metrics):
        ranked = [ranking(probabilities[:, k], truth_NK[:, k], weights) for k in range(probabilities.shape[1])]
        scores["mAP"] = mean_over_classes(np.stack([ap for ap, _ in ranked], axis=1))
        scores["mAUC"] = mean_over_classes(np.stack([auc for _, auc in ranked], axis=1))
    if {"mS2", "F1"} & set(metrics):
        s2, f1 = _threshold_scores(decided_NK, truth_NK > 0, weights)
        scores |= {"mS2": mean_over_classes(s2), "F1": mean_over_classes(f1)}
    if "accuracy" in metrics:
        correct_NK = decided_NK == (truth_NK > 0)
        correct_N = correct_NK.mean(axis=1) if multilabel else correct_NK.all(axis=1)
        scores["accuracy"] = weights @ correct_N / weights.sum(axis=1)
    if "ECE" in metrics:
        scores["ECE"] = _calibration_error(probabilities, truth_NK, multilabel, weights)
    return {name: scores[name] for name in metrics}


def ranking(scores_N: Floats, truth_N: NDArray[np.int64], weights: Floats) -> tuple[Floats, Floats]:
    """Return average precision and area under the ROC curve of one class, (R,) each; equal scores are one threshold."""
    order = np.argsort(-scores_N, kind="stable")
    last_of_tie = np.flatnonzero(np.diff(scores_N[order], append=-np.inf))
    sorted_RN = weights[:, order]
    total_RT = np.cumsum(sorted_RN, axis=1)[:, last_of_tie]
    tp_RT = np.cumsum(sorted_RN * truth_N[order], axis=1)[:, last_of_tie]
    fp_RT = total_RT - tp_RT
    tp_step, fp_step = np.diff(tp_RT, prepend=0, axis=1), np.diff(fp_RT, prepend=0, axis=1)
    precision_RT = tp_RT / np.maximum(total_RT, np.finfo(np.float64).tiny)
    positives, negatives = tp_RT[:, -1], fp_RT[:, -1]
    ap = _ratio((tp_step * precision_RT).sum(axis=1), positives)
    auc = _ratio((fp_step * (tp_RT - tp_step / 2)).sum(axis=1), positives * negatives)
    return ap, auc


def mean_over_classes(values_RK: Floats) -> Floats:
    """Return the mean of each row's values that are not nan, (R,); nan when all are."""
    known = ~np.isnan(values_RK)
    return _ratio(np.where(known, values_RK, 0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def _threshold_scores(
    decided_NK: NDArray[np.bool_], truth_NK: NDArray[np.bool_], weights: Floats
) -> tuple[Floats, Floats]:
    """Return S2 and F1, (R, K) each."""
    tp = weights @ (decided_NK & truth_NK)
    fp = weights @ (decided_NK & ~truth_NK)
    positives, negatives = weights @ truth_NK, weights @ ~truth_NK
    sensitivity, specificity = _ratio(tp, positives), _ratio(negatives - fp, negatives)
    both = sensitivity + specificity
    s2 = np.where(both == 0, 0, _ratio(2 * sensitivity * specificity, both))
    f1 = np.where(positives > 0, _ratio(2 * tp, tp + fp + positives), np.nan)
    return s2, f1


def _calibration_error(probabilities: Floats, truth_NK: NDArray[np.int64], multilabel: bool, weights: Floats) -> Floats:
    """Return the calibration error of the most probable class or, when multi-label, its mean over the classes."""
    top_N = probabilities.argmax(axis=1)
    pick = slice(None) if multilabel else (np.arange(len(top_N)), top_N)
    confidence, hit = probabilities[pick].reshape(len(top_N), -1), truth_NK[pick].reshape(len(top_N), -1)
    gaps = [_calibration_gap(c, h, weights) for c, h in zip(confidence.T, hit.T, strict=True)]
    return np.asarray(np.mean(gaps, axis=0) / weights.sum(axis=1))


def _calibration_gap(confidence_N: Floats, hit_N: NDArray[np.int64], weights: Floats) -> Floats:
    """Return the sum over bins of |confidence - accuracy|, weighted by the bin's cases, (R,)."""
    edges = np.arange(1, ECE_BINS) / ECE_BINS
    bins_NB = np.eye(ECE_BINS)[np.searchsorted(edges, confidence_N)]
    gap_RB = weights @ (bins_NB * (confidence_N - hit_N)[:, None])
    return np.asarray(np.abs(gap_RB).sum(axis=1))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide, nan where the denominator is 0 or nan."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
