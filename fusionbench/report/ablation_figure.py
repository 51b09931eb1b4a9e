"""An ablation table as a picture: one panel a column, one line a row, with intervals, seeds and published scores."""

from __future__ import annotations

import textwrap
from io import BytesIO

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusionbench.report.ablation_format import parameters
from fusionbench.report.ablation_results import Results
from fusionbench.report.ablation_scores import marked_rows, part, scores_by_seed
from fusionbench.report.ablation_table import AblationTable
from fusionbench.report.style import GREY, colour, head, new_figure, plain
from fusionbench.report.tables import heading

_IN_A_ROW = 4
_LETTERS_AN_INCH = 10
_ROW_NAME = 42


def draw(table: AblationTable, results: Results, scores: pd.DataFrame) -> bytes:
    """Return the figure as PNG: dots are means over seeds, lines 95 % intervals, small dots seeds, rings published."""
    columns = (*table.averages, *table.columns)
    across = min(len(columns), _IN_A_ROW)
    down = -(-len(columns) // across)
    height = 1.4 + 0.3 * len(table.rows)
    width = 2.6 + (2.6 if across > 1 else 4.6) * across
    figure = new_figure(width, 0.9 + height * down)
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes, column in zip(panels, columns, strict=False):
        _panel(axes, table, results, scores, column)
    for axes in panels[len(columns) :]:
        axes.set_visible(False)
    _legend(figure, table, scores)
    note = f"{heading(table.metric)} on the test split; in brackets, trainable parameters"
    head(figure, textwrap.fill(table.title, int(width * _LETTERS_AN_INCH)).replace("$", r"\$"), note)
    return _png(figure)


def _panel(axes: Axes, table: AblationTable, results: Results, scores: pd.DataFrame, column: str) -> None:
    """Draw one column; rows run downwards, and a hole leaves its line empty."""
    own = part(scores, table.rows, column, table.metric)
    few = marked_rows(scores, column)
    for place, (row, line) in enumerate(zip(table.rows, own.to_dict("records"), strict=True)):
        seeds = scores_by_seed(table, results, row, column, table.metric)
        axes.plot([line["low"], line["high"]], [place, place], color=colour(0), linewidth=1.6, alpha=0.7)
        if len(seeds) > 1:
            axes.plot(list(seeds.values()), [place] * len(seeds), ".", color=GREY, markersize=4, zorder=2.5)
        axes.plot(line["mean"], place, "D" if row in few else "o", color=colour(0), markersize=6, zorder=3)
        ends = [line["published"], line["published_high"]]
        axes.plot(ends, [place, place], "o-", color=colour(1), mfc="none", markersize=8, mew=1.5, zorder=4)
    if own[["mean", "published"]].isna().all(axis=None):
        axes.text(0.5, 0.5, "no result", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xticks([])
    _dress(axes, table, scores, column)


def _dress(axes: Axes, table: AblationTable, scores: pd.DataFrame, column: str) -> None:
    """Name rows and axis."""
    trainable = scores.dropna(subset="trainable").groupby("row")["trainable"].first()
    names = [_name(row) + (f" ({parameters(trainable[row])})" if row in trainable else "") for row in table.rows]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title(plain(column), fontsize=11)
    axes.set_xlabel(heading(table.metric))
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)


def _name(row: str) -> str:
    """Return a row's name without mathematics; long enough that baselines of different tuning stay apart."""
    return (row if len(row) <= _ROW_NAME else f"{row[: _ROW_NAME - 1]}…").replace("$", r"\$")


def _legend(figure: Figure, table: AblationTable, scores: pd.DataFrame) -> None:
    """Explain the marks that occur, below all panels."""
    axes = figure.axes[0]
    marks = [axes.plot([], [], "o-", color=colour(0), label="mean over seeds, 95 % interval")[0]]
    if len(table.seeds) > 1:
        marks.append(axes.plot([], [], ".", color=GREY, label="one seed")[0])
    if any(marked_rows(scores, column) for column in table.columns):
        marks.append(axes.plot([], [], "D", color=colour(0), markersize=6, label="tested on fewer cases")[0])
    if scores.loc[scores["metric"] == table.metric, "published"].notna().any():
        marks.append(axes.plot([], [], "o", mfc="none", mec=colour(1), mew=1.5, label="published")[0])
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=9)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
