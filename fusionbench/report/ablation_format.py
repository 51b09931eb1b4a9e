"""How numbers look in the reports of an ablation table, and numbered footnotes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from fusionbench.report.tables import HOLE, compact_count


def fraction(value: float) -> str:
    """Return a score to three decimals, as papers print it."""
    return HOLE if math.isnan(value) else f"{value:.3f}"


def printed(own: pd.DataFrame) -> list[str]:
    """Return what papers print of some rows' scores, ``0.940``, or ``0.370 to 0.780`` where that is a range."""
    ends = zip(own["published"], own["published_high"], strict=True)
    return [fraction(low) + ("" if math.isnan(high) else f" to {high:.3f}") for low, high in ends]


def spread(mean: float, sd: float) -> str:
    """Return ``0.824 ± 0.011``, mean and standard deviation between seeds; with one seed the score alone."""
    return fraction(mean) if math.isnan(mean) or math.isnan(sd) else f"{mean:.3f} ± {sd:.3f}"


def interval(low: float, high: float) -> str:
    """Return ``[0.79, 0.86]``, nothing where it is unknown."""
    return "" if math.isnan(low) or math.isnan(high) else f"[{low:.2f}, {high:.2f}]"


def parameters(count: float) -> str:
    """Return a number of parameters as it is published, such as ``8.87M``."""
    return compact_count(None if math.isnan(count) else round(count))


def figure(value: float) -> str:
    """Return a measured quantity to three significant digits, without an exponent."""
    if math.isnan(value):
        return HOLE
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


def markdown(frame: pd.DataFrame, names: int = 1) -> str:
    """Return a table of strings as GitHub markdown.

    Args:
        frame: The cells.
        names: How many columns, from the left, hold words and not numbers.
    """
    escaped = frame.map(_escape).rename(columns=_escape)
    align = ["left"] * names + ["right"] * (len(frame.columns) - names)
    return str(escaped.to_markdown(index=False, disable_numparse=True, colalign=align))


def _escape(text: str) -> str:
    return " ".join(str(text).split()).replace("|", r"\|")


class Footnotes:
    """Sentences numbered as they are first referred to; an equal sentence keeps its number."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def mark(self, sentences: Sequence[str]) -> str:
        """Return the marks of some sentences, ``[^1][^2]``."""
        for sentence in sentences:
            if sentence not in self.sentences:
                self.sentences.append(sentence)
        return "".join(f"[^{self.sentences.index(sentence) + 1}]" for sentence in sentences)

    def markdown(self) -> str:
        """Return the sentences, one a line."""
        return "\n".join(f"[^{number}]: {' '.join(text.split())}" for number, text in enumerate(self.sentences, 1))
