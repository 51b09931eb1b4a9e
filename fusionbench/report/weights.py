"""How much a gate let each modality count, by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fusionbench.report.style import GREY, colour, head, legend, new_figure, plain, slant_ticks


def draw_gate_weights(weights: pd.DataFrame, truth_NK: NDArray[np.int64], classes: Sequence[str], note: str) -> Figure:
    """Return boxes (median, quartiles, 5th and 95th percentile) of each modality's weight over each class's cases.

    Args:
        weights: (N, M), a column for each modality; nan where it is absent, which is left out.
        truth_NK: (N, K) of 0/1; a case of several classes counts in each.
        classes: K names in label order.
        note: The line below the title.
    """
    slanted = len(classes) > 6
    figure = new_figure(max(6.5, 2.2 + 0.45 * len(classes) * len(weights.columns)), 6.0 if slanted else 4.6)
    axes = figure.subplots()
    width = 0.8 / len(weights.columns)
    for m, modality in enumerate(weights.columns):
        values_N = weights[modality].to_numpy()
        for k in range(len(classes)):
            chosen = values_N[(truth_NK[:, k] > 0) & ~np.isnan(values_N)]
            place = k + (m - (len(weights.columns) - 1) / 2) * width
            _box(axes, chosen, place, width, colour(m))
        axes.plot([], [], "s", color=colour(m), label=plain(str(modality)))
    axes.axhline(1 / len(weights.columns), color=GREY, linestyle=":", linewidth=1, label="equal weights")
    gap = " " if slanted else "\n"
    names = [f"{plain(name)}{gap}(n = {total})" for name, total in zip(classes, truth_NK.sum(axis=0), strict=True)]
    axes.set_xticks(range(len(classes)), names)
    if slanted:
        slant_ticks(axes)
    axes.set(xlabel="True class", ylabel="Weight (fraction of the decision)", ylim=(-0.02, 1.02))
    axes.set_xlim(-0.6, len(classes) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    head(figure, "Gate weights of the modalities that are present", note)
    legend(figure, axes)
    return figure


def _box(axes: Axes, values_N: NDArray[np.float64], place: float, width: float, fill: str) -> None:
    """Draw one box; nothing where there is no case."""
    if not values_N.size:
        return
    box = {"facecolor": fill, "alpha": 0.55, "edgecolor": fill}
    line = {"color": fill, "linewidth": 1.2}
    axes.boxplot(
        [values_N],
        positions=[place],
        widths=width * 0.8,
        whis=(5, 95),
        manage_ticks=False,
        patch_artist=True,
        boxprops=box,
        medianprops={"color": "black", "linewidth": 1.4},
        whiskerprops=line,
        capprops=line,
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": fill},
    )
