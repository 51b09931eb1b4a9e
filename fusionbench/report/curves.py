"""ROC, precision-recall and reliability curves.

Names carry shapes: N cases, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from fusionbench.metrics import ECE_BINS
from fusionbench.report.style import GREY, colour, dash, head, legend, new_figure, plain, unit_axes

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def draw_roc(scores_NK: Floats, truth_NK: Labels, classes: Sequence[str], note: str) -> Figure:
    """Return one-vs-rest ROC curves with the area under each."""
    figure = new_figure(5.6, 5.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="chance")
    for k, name in _scorable(axes, truth_NK, classes):
        false_positive, true_positive, _ = roc_curve(truth_NK[:, k], scores_NK[:, k])
        label = f"{name}: AUC {auc(false_positive, true_positive):.2f}"
        axes.plot(false_positive, true_positive, color=colour(k), linestyle=dash(k), linewidth=1.8, label=label)
    unit_axes(axes, "False positive rate (1 - specificity)", "True positive rate (sensitivity)")
    axes.set_aspect("equal")
    return _finish(figure, axes, "ROC, each class against the rest", note)


def draw_pr(scores_NK: Floats, truth_NK: Labels, classes: Sequence[str], note: str) -> Figure:
    """Return one-vs-rest precision-recall curves with average precision and, for what chance gives, prevalence."""
    figure = new_figure(5.6, 5.6)
    axes = figure.subplots()
    for k, name in _scorable(axes, truth_NK, classes):
        precision, recall, _ = precision_recall_curve(truth_NK[:, k], scores_NK[:, k])
        score = average_precision_score(truth_NK[:, k], scores_NK[:, k])
        label = f"{name}: AP {score:.2f} (chance {truth_NK[:, k].mean():.2f})"
        style: dict[str, Any] = {"color": colour(k), "linestyle": dash(k)}
        axes.step(recall, precision, where="post", linewidth=1.8, label=label, **style)
    unit_axes(axes, "Recall (sensitivity)", "Precision (positive predictive value)")
    axes.set_aspect("equal")
    return _finish(figure, axes, "Precision and recall, each class against the rest", note)


def draw_calibration(
    scores_NK: Floats, truth_NK: Labels, classes: Sequence[str], multilabel: bool, note: str
) -> Figure:
    """Return the reliability diagram: of the most probable class or, when multi-label, one curve for each class."""
    figure = new_figure(5.6, 6.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="perfect")
    for index, (name, confidence_N, hit_N) in enumerate(_confidences(scores_NK, truth_NK, classes, multilabel)):
        mean_confidence, frequency, count, error = reliability(confidence_N, hit_N)
        label = f"{name}: ECE {error:.2f}{'' if hit_N.any() else ', no case'}"
        style: dict[str, Any] = {"color": colour(index), "linestyle": dash(index)}
        upper.plot(mean_confidence, frequency, marker="o", markersize=5, linewidth=1.5, label=label, **style)
        lower.stairs(count, np.linspace(0, 1, ECE_BINS + 1), **style)
    unit_axes(upper, "", "Observed frequency")
    lower.set(xlabel="Predicted probability", ylabel="Cases")
    lower.spines[["top", "right"]].set_visible(False)
    return _finish(figure, upper, f"Calibration in {ECE_BINS} bins", note)


def reliability(confidence_N: Floats, hit_N: Labels) -> tuple[Floats, Floats, Labels, float]:
    """Return mean confidence and frequency in the bins (lo, hi] that have cases, cases of all bins, and the ECE."""
    bin_N = np.searchsorted(np.arange(1, ECE_BINS) / ECE_BINS, confidence_N)
    count = np.bincount(bin_N, minlength=ECE_BINS)
    kept = count > 0
    confidence = np.bincount(bin_N, confidence_N, ECE_BINS)[kept] / count[kept]
    frequency = np.bincount(bin_N, hit_N, ECE_BINS)[kept] / count[kept]
    error = float(np.average(np.abs(confidence - frequency), weights=count[kept]))
    return confidence, frequency, count, error


def _confidences(
    scores_NK: Floats, truth_NK: Labels, classes: Sequence[str], multilabel: bool
) -> Iterator[tuple[str, Floats, Labels]]:
    """Yield name, probabilities and outcomes of each curve of the reliability diagram."""
    if multilabel:
        for k, name in enumerate(classes):
            yield plain(name), scores_NK[:, k], truth_NK[:, k]
    else:
        top_N = scores_NK.argmax(axis=1)
        rows = np.arange(len(top_N))
        yield "most probable class", scores_NK[rows, top_N], truth_NK[rows, top_N]


def _scorable(axes: Axes, truth_NK: Labels, classes: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the classes that have cases of both kinds; the others are named in the legend only."""
    for k, name in enumerate(classes):
        positives = int(truth_NK[:, k].sum())
        if 0 < positives < len(truth_NK):
            yield k, plain(name)
        else:
            axes.plot([], [], " ", label=f"{plain(name)}: {'no case' if positives == 0 else 'every case'}, not drawn")


def _finish(figure: Figure, axes: Axes, title: str, note: str) -> Figure:
    head(figure, title, note)
    legend(figure, axes)
    return figure
