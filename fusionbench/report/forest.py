"""The forest plot of a comparison: every pair's difference with its interval, against the margin."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fusionbench.metrics import LOWER_IS_BETTER
from fusionbench.report.comparison import Comparison, Pair, Verdict
from fusionbench.report.style import GREY, new_figure, plain

_MARKS: dict[Verdict, tuple[str, str]] = {
    "better": ("#0072B2", "o"),
    "worse": ("#D55E00", "s"),
    "tied": ("#009E73", "D"),
    "too few cases": (GREY, "x"),
}


def draw_forest(comparison: Comparison, title: str = "Differences between methods") -> Figure:
    """Return the figure, one line a pair, in the comparison's order.

    Args:
        comparison: With at least one pair.
        title: Heading.
    """
    pairs = comparison.pairs
    figure = new_figure(9.5, 2.0 + 0.27 * len(pairs))
    axes = figure.subplots()
    axes.axvspan(-comparison.margin, comparison.margin, color="#eeeeee", zorder=0)
    axes.axvline(0, color=GREY, linewidth=1)
    for place, pair in enumerate(pairs):
        _line(axes, place, pair)
    axes.set_yticks(range(len(pairs)), [f"{plain(pair.a)} - {plain(pair.b)}" for pair in pairs])
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    better = "left" if comparison.metric in LOWER_IS_BETTER else "right"
    axes.set_xlabel(f"Difference in {comparison.metric}, {comparison.level:.0%} interval (first is better: {better})")
    axes.spines[["top", "right"]].set_visible(False)
    note = f"{comparison.cases:,} cases of {comparison.groups:,} groups; grey band: the margin of {comparison.margin:g}"
    figure.suptitle(f"{title}\n{note}", fontsize=12)
    _legend(figure, {pair.verdict for pair in pairs})
    return figure


def _line(axes: Axes, place: int, pair: Pair) -> None:
    colour, marker = _MARKS[pair.verdict]
    axes.plot([pair.low, pair.high], [place, place], color=colour, linewidth=1.6)
    axes.plot(pair.difference, place, marker, color=colour, markersize=6)


def _legend(figure: Figure, shown: set[Verdict]) -> None:
    """Name the words that occur."""
    marks = [(word, *mark) for word, mark in _MARKS.items() if word in shown]
    handles = [Line2D([], [], color=colour, marker=marker, label=word) for word, colour, marker in marks]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
