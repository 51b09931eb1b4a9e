"""The difference of two methods with its standard error, and what follows from it: interval, p-value, power.

The standard error is the bootstrap's. A p-value is read off Student's t distribution, not off the resamples, since
2,000 of those cannot go below .001 and 66 pairs need .0008. Its degrees of freedom are Satterthwaite's, between those
of the groups (G - 1) and of the seeds (S - 1): where only three seeds say how much training varies, little can be sure.
``tests/report/test_verdict_simulation.py`` shows that the error is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t
from statsmodels.stats.multitest import multipletests

from fusionbench.report.resampling import Draws


@dataclass(frozen=True)
class Contrast:
    """A difference and how sure it is.

    Attributes:
        difference: Score of the first minus score of the second; nan where one is undefined.
        error: Its standard error; nan with one group.
        freedom: Degrees of freedom of that error.
    """

    difference: float
    error: float
    freedom: float

    @property
    def p(self) -> float:
        """Two-sided p-value of no difference; 1 where nothing can be said."""
        value = 2 * t.sf(abs(self.difference) / self.error, self.freedom)
        return 1.0 if math.isnan(value) else float(value)

    def interval(self, level: float) -> tuple[float, float]:
        """Return the bounds at this level."""
        half = self.half_width(level)
        return self.difference - half, self.difference + half

    def half_width(self, level: float) -> float:
        """Return half the width of the interval at this level."""
        return float(t.ppf((1 + level) / 2, self.freedom)) * self.error

    def detectable(self, alpha: float, power: float = 0.8) -> float:
        """Return the smallest true difference that a two-sided test at ``alpha`` finds with this power.

        Args:
            alpha: Error of the test.
            power: Chance to find it.
        """
        return float(t.ppf(1 - alpha / 2, self.freedom) + t.ppf(power, self.freedom)) * self.error


def contrast(draws: Draws, a: str, b: str) -> Contrast:
    """Return method ``a`` minus method ``b``, paired in every resample."""
    difference = float(draws.observed[a].mean() - draws.observed[b].mean())
    if draws.groups < 2 or math.isnan(difference):
        return Contrast(difference, math.nan, math.nan)
    unbiased = draws.groups / (draws.groups - 1)
    from_groups = unbiased * _variance(draws.groups_only(a) - draws.groups_only(b))
    from_both = unbiased * _variance(draws.joint(a) - draws.joint(b))
    error = max(math.sqrt(from_both), draws.floor)
    return Contrast(difference, error, _freedom(draws, a, b, from_groups, max(from_both - from_groups, 0)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted by Holm's method."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def _freedom(draws: Draws, a: str, b: str, from_groups: float, from_seeds: float) -> float:
    """Return Satterthwaite's degrees of freedom of the sum of both variances."""
    several = [len(draws.seeds[name]) - 1 for name in (a, b) if len(draws.seeds[name]) > 1]
    groups = draws.groups - 1
    if not several or from_groups + from_seeds == 0:
        return groups
    return (from_groups + from_seeds) ** 2 / (from_groups**2 / groups + from_seeds**2 / min(several))


def _variance(values_R: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """Return the variance of those that are not nan."""
    known = values_R[~np.isnan(values_R)]
    return float(known.var(ddof=1)) if known.size > 1 else math.nan
