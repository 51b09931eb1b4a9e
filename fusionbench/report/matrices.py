"""Confusion matrices, rows normalised, with the counts.

Names carry shapes: N cases, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from fusionbench.report.style import head, new_figure, plain, slant_ticks

_PER_ROW = 4


def draw_confusion(
    decided_N: NDArray[np.int64], target_N: NDArray[np.int64], classes: Sequence[str], note: str
) -> Figure:
    """Return the matrix of true class (rows) against the most probable class (columns)."""
    counts = confusion_matrix(target_N, decided_N, labels=range(len(classes)))
    return _draw_counts(counts, classes, [plain(name) for name in classes], "Predicted class", note)


def draw_answer_confusion(
    answers_N: NDArray[np.int64], target_N: NDArray[np.int64], classes: Sequence[str], note: str
) -> Figure:
    """Return the matrix of true class (rows) against the class that the answer names, the last column for none (-1)."""
    size = len(classes)
    counts = confusion_matrix(target_N, answers_N, labels=[*range(size), -1])[:size]
    names = [*(plain(name) for name in classes), "None"]
    return _draw_counts(counts, classes, names, "Class that the answer names", note)


def _draw_counts(
    counts: NDArray[np.int64], classes: Sequence[str], columns: list[str], xlabel: str, note: str
) -> Figure:
    """Draw the counts of one matrix, (classes, columns)."""
    height = 3.6 + 0.55 * len(classes)
    figure = new_figure(4.8 + 0.55 * len(columns), height)
    axes = figure.subplots()
    rows = [f"{plain(name)}\n(n = {total})" for name, total in zip(classes, counts.sum(axis=1), strict=True)]
    image = _matrix(axes, counts, rows, columns, fontsize=10 if len(columns) <= 10 else 7)
    axes.set(xlabel=xlabel, ylabel="True class")
    if len(columns) > 2:
        slant_ticks(axes)
    figure.colorbar(image, ax=axes, label="Fraction of the true class", shrink=0.8)
    head(figure, "Confusion matrix", note)
    return figure


def draw_label_confusions(
    scores_NK: NDArray[np.float64], truth_NK: NDArray[np.int64], classes: Sequence[str], note: str
) -> Figure:
    """Return a two-by-two matrix for each class, decided at p > 0.5."""
    columns = min(_PER_ROW, len(classes))
    lines = math.ceil(len(classes) / columns)
    figure = new_figure(max(2.7 * columns + 0.6, 5), 2.7 * lines + 0.9)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, counts, name in zip(panels, _label_counts(scores_NK, truth_NK), classes, strict=False):
        _matrix(axes, counts, ["no", "yes"], ["no", "yes"], fontsize=10)
        axes.set_title(plain(name), fontsize=11)
    for axes in panels[len(classes) :]:
        axes.set_visible(False)
    figure.supxlabel("Predicted, p > 0.5", fontsize=10)
    figure.supylabel("True", fontsize=10)
    head(figure, "Confusion matrix of each class", note)
    return figure


def _label_counts(scores_NK: NDArray[np.float64], truth_NK: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (K, 2, 2), rows truth, columns decision, no before yes."""
    pairs = zip(truth_NK.T, (scores_NK > 0.5).T, strict=True)
    return np.stack([confusion_matrix(truth, decided, labels=[0, 1]) for truth, decided in pairs])


def _matrix(axes: Axes, counts: NDArray[np.int64], rows: list[str], columns: list[str], fontsize: int) -> AxesImage:
    """Draw fractions of each row as colour, fractions and counts as text; a row without cases stays empty."""
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    for (i, j), count in np.ndenumerate(counts):
        text = f"{share[i, j]:.2f}\n({count})" if totals[i, 0] else "no case"
        axes.text(
            j, i, text, ha="center", va="center", fontsize=fontsize, color="white" if share[i, j] > 0.55 else "black"
        )
    return image
