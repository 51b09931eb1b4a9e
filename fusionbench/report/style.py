"""How every figure looks: palette, sizes, titles and legends, without pyplot's global state."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any common colour blindness; its yellow is left out, too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")
GREY = "#767676"
_NAME_LENGTH = 28


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sized in inches, whose parts are kept from overlapping."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def colour(index: int) -> str:
    """Return the colour of the index-th series."""
    return PALETTE[index % len(PALETTE)]


def dash(index: int) -> str:
    """Return the line style of the index-th series, which tells apart what shares a colour."""
    return DASHES[index // len(PALETTE) % len(DASHES)]


def plain(name: str) -> str:
    """Return a class or modality name as it can be printed: no mathematics, no more than 28 characters."""
    short = name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"
    return short.replace("$", r"\$")


def head(figure: Figure, title: str, note: str) -> None:
    """Put the title and, below it, the note over the whole figure."""
    figure.suptitle(f"{title}\n{note}", fontsize=12)


def unit_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes and fix them to fractions in [0, 1] with a little air."""
    axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def slant_ticks(axes: Axes) -> None:
    """Turn the names below the axes so that long ones do not meet."""
    for tick in axes.get_xticklabels():
        tick.set(rotation=40, ha="right", rotation_mode="anchor")


def legend(figure: Figure, axes: Axes) -> None:
    """Put the legend below the axes, where it hides nothing, and make the figure taller by its height."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= 32 else 1
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
