"""The difference of two methods with its standard errors, and what follows from them: interval, p-value, power.

Both errors are the bootstrap's: that of the groups, and what training again adds. Bounds come from Student's t and not
from the resamples, since 2,000 of those cannot go below .001 and 66 pairs need .0008. Half an interval is
sqrt(t_G² e_G² + t_S² e_S²), each error with the quantile of its own degrees of freedom (Banerjee, 1961): that never
covers less than its level, while Satterthwaite's approximation does where two or three seeds happen to agree.

A pair's few seeds tell little about how much training varies, so all methods of the comparison are asked: M methods of
S seeds leave a residual with (M - 1) (S - 1) degrees of freedom once methods and seeds are taken out. It supposes that
training varies alike in all of them; as it may not, the greater of this and the pair's own variance counts, which keeps
one restless method from being taken for a calm one, though at degrees of freedom that are too many for it. Two methods
alone have S - 1 and suppose nothing. The pooling is our choice; ``tests/report/test_verdict_simulation.py`` shows that
the error is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit
from statsmodels.stats.multitest import multipletests

from fusionbench.report.resampling import Draws

_LEAST_P = 1e-15


@dataclass(frozen=True)
class Contrast:
    """A difference and how sure it is.

    Attributes:
        difference: Score of the first minus score of the second; nan where one is undefined.
        error: Its standard error from the draw of groups; nan with one group.
        freedom: Degrees of freedom of that error.
        seed_error: What training again adds; 0 where each method has one seed.
        seed_freedom: Degrees of freedom of that.
    """

    difference: float
    error: float
    freedom: float
    seed_error: float = 0.0
    seed_freedom: float = 1.0

    @property
    def p(self) -> float:
        """Two-sided p-value of no difference, at least 1e-15; 1 where nothing can be said."""
        gap = abs(self.difference)
        if math.isnan(gap + self.error) or gap == 0:
            return 1.0
        if self._width(_LEAST_P / 2) <= gap:
            return _LEAST_P
        return math.exp(float(brentq(lambda log_p: self._width(math.exp(log_p) / 2) - gap, math.log(_LEAST_P), 0.0)))

    def interval(self, level: float) -> tuple[float, float]:
        """Return the bounds at this level."""
        half = self.half_width(level)
        return self.difference - half, self.difference + half

    def half_width(self, level: float) -> float:
        """Return half the width of the interval at this level."""
        return self._width((1 - level) / 2)

    def detectable(self, alpha: float, power: float = 0.8) -> float:
        """Return the smallest true difference that a two-sided test at ``alpha`` finds with this power.

        Args:
            alpha: Error of the test.
            power: Chance to find it.
        """
        return self._width(alpha / 2) + self._width(1 - power)

    def _width(self, tail: float) -> float:
        """Return what a difference of 0 exceeds with at most this chance."""
        return math.hypot(
            float(stdtrit(self.freedom, tail)) * self.error, float(stdtrit(self.seed_freedom, tail)) * self.seed_error
        )


def contrast(draws: Draws, a: str, b: str) -> Contrast:
    """Return method ``a`` minus method ``b``, paired in every resample."""
    difference = float(draws.observed[a].mean() - draws.observed[b].mean())
    if draws.groups < 2 or math.isnan(difference):
        return Contrast(difference, math.nan, math.nan)
    unbiased = draws.groups / (draws.groups - 1)
    from_groups = unbiased * _variance(draws.groups_only(a) - draws.groups_only(b))
    from_both = unbiased * _variance(draws.joint(a) - draws.joint(b))
    error = max(math.sqrt(from_groups), draws.floor)
    pooled, freedom = _pooled_over_methods(draws, a, b)
    return Contrast(difference, error, draws.groups - 1, math.sqrt(max(from_both - from_groups, pooled)), freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted by Holm's method."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def _pooled_over_methods(draws: Draws, a: str, b: str) -> tuple[float, float]:
    """Return the variance that seeds give a difference, by all methods, and its degrees of freedom.

    Where ``a`` and ``b`` have the same seeds, so have the methods that count, and what a seed does to all is taken out.
    Where not, that is part of the variance, and the method with most seeds is not counted, which leaves two methods S -
    1 here too.
    """
    own = [draws.observed[name].size for name in (a, b) if draws.observed[name].size > 1]
    if not own:
        return 0.0, 1.0
    paired = draws.seeds[a] == draws.seeds[b]
    asked = [name for name, seeds in draws.seeds.items() if len(seeds) > 1 and (not paired or seeds == draws.seeds[a])]
    scores = [draws.observed[name] for name in asked if not np.isnan(draws.observed[name]).any()]
    common = np.mean(scores, axis=0) if paired else 0.0
    squares = sum(float(((values - common - (values - common).mean()) ** 2).sum()) for values in scores)
    counted = [values.size - 1 for values in scores]
    freedom = max(sum(counted) - max(counted), min(own) - 1)
    return squares / (freedom if paired else sum(counted)) * sum(1 / size for size in own), freedom


def _variance(values_R: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """Return the variance of those that are not nan."""
    known = values_R[~np.isnan(values_R)]
    return float(known.var(ddof=1)) if known.size > 1 else math.nan
