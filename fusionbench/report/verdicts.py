"""The word on a pair of methods: better, worse, tied, or too few cases to tell.

"Better" and "worse" say that the difference is real, whatever its size: the p-value, adjusted by Holm's method (1979),
stays below 1 - level. That goes before "tied", also where the interval lies inside the margin; the line shows the
size. "Tied" says that the interval of the difference lies inside the margin on both sides, which is stricter than two
one-sided tests at the same error. Whatever remains is "too few cases", with the smallest difference that would have
been found; so is every pair with fewer than ten groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fusionbench.errors import UserError, check_number, nearest
from fusionbench.metrics import HEADLINE, LOWER_IS_BETTER
from fusionbench.report.contrast import Contrast
from fusionbench.report.tables import HOLE

# Ours: with fewer groups a resample holds too few different ones for its spread to stand for that of new patients.
LEAST_GROUPS = 10

Verdict = Literal["better", "worse", "tied", "too few cases"]


@dataclass(frozen=True)
class Pair:
    """Two methods on the same cases.

    Attributes:
        a: The method that the verdict is about: "better" means that ``a`` is better than ``b``.
        b: The other.
        difference: Score of ``a`` minus score of ``b``.
        low: Lower bound of the difference at the comparison's level; nan with one group only.
        high: Upper bound.
        p: Two-sided p-value of no difference.
        p_holm: The same, adjusted for all pairs of the comparison.
        verdict: One word.
        detectable: Smallest true difference found at 80 % power, at the level of Holm's first step.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    verdict: Verdict
    detectable: float

    @property
    def could_show(self) -> str:
        """The detectable difference in print; above 1 no score can show it, and the figure would be nonsense."""
        if math.isnan(self.detectable):
            return HOLE
        return "> 1" if self.detectable > 1 else f"{self.detectable:.3f}"


def judge(
    a: str, b: str, found: Contrast, p_holm: float, *, metric: str, margin: float, level: float, family: int
) -> Pair:
    """Turn a contrast and its adjusted p-value into a pair with its word."""
    low, high = (min(max(bound, -1.0), 1.0) if not math.isnan(bound) else bound for bound in found.interval(level))
    gain = -found.difference if metric in LOWER_IS_BETTER else found.difference
    word: Verdict = "too few cases"
    if found.freedom + 1 < LEAST_GROUPS:
        pass
    elif p_holm < 1 - level:
        word = "better" if gain > 0 else "worse"
    elif -margin <= low and high <= margin:
        word = "tied"
    detectable = found.detectable((1 - level) / max(family, 1))
    return Pair(a, b, found.difference, low, high, found.p, p_holm, word, detectable)


def check_options(metric: str, margin: float, level: float, resamples: int) -> None:
    """Refuse an unknown metric or a number out of range."""
    if metric not in HEADLINE:
        raise UserError(f"unknown metric '{metric}'{nearest(metric, HEADLINE)}")
    check_number("margin", margin, least=0, below=1)
    check_number("level", level, above=0, below=1)
    check_number("resamples", resamples, least=100)
