"""The difference of two methods with its standard errors, and what follows from them: interval, p-value, power.

Both errors are the bootstrap's: that of the groups, and what training again adds. Bounds come from Student's t and not
from the resamples, since 2,000 of those cannot go below .001 and 66 pairs need .0008. Half an interval is
sqrt(t_G² e_G² + t_S² e_S²), each error with the quantile of its own degrees of freedom (Banerjee, 1961): that never
covers less than its level, while Satterthwaite's approximation does where two or three seeds happen to agree.

Two or three seeds tell little about how much training varies, so from five methods on each borrows from the others by
empirical Bayes, as genes do in limma (Smyth, 2004): much where the variances between seeds are alike, hardly anything
where they are not, so that one method that varies wildly does not hide what the steady ones show. With fewer methods a
pair has its own alone, with S - 1 degrees of freedom, which holds however the two differ (Mickey and Brown, 1966).
``tests/report/test_verdict_simulation.py`` shows that the error is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma, stdtrit
from statsmodels.stats.multitest import multipletests

from fusionbench.report.resampling import Draws

_LEAST_P = 1e-15
_ENOUGH = 5  # methods from which a distribution of variances can be estimated


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
    again, freedom = _from_seeds(draws, a, b)
    return Contrast(difference, error, draws.groups - 1, math.sqrt(max(from_both - from_groups, again)), freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted by Holm's method."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def _from_seeds(draws: Draws, a: str, b: str) -> tuple[float, float]:
    """Return the variance that training again gives a difference, and its degrees of freedom.

    Few methods with the same seeds are compared seed by seed.
    """
    scores = {name: draws.observed[name] for name in (a, b) if draws.observed[name].size > 1}
    if not scores:
        return 0.0, 1.0
    paired, sizes = draws.seeds[a] == draws.seeds[b], {values.size for values in scores.values()}
    freedom = min(sizes) - 1
    alike = [n for n, own in draws.seeds.items() if (own == draws.seeds[a] if paired else len(own) in sizes)]
    alike = [name for name in alike if not np.isnan(draws.observed[name]).any()]
    if len(sizes) == 1 and len(alike) >= _ENOUGH:
        return _borrowed(draws, a, b, alike)
    if paired:
        return float((scores[a] - scores[b]).var(ddof=1)) / (freedom + 1), float(freedom)
    return sum(float(values.var(ddof=1)) / values.size for values in scores.values()), float(freedom)


def _borrowed(draws: Draws, a: str, b: str, alike: Sequence[str]) -> tuple[float, float]:
    """Return the same, each method's variance moderated by those of all that are alike.

    What a seed does to all alike stays in: to take out their mean would give every method a share of a restless one.
    """
    own = {name: float(draws.observed[name].var(ddof=1)) for name in alike}
    size = draws.observed[alike[0]].size
    spread, guess, freedom = prior(list(own.values()), size - 1)
    share = spread / (spread + size - 1) if math.isfinite(spread) else 1.0
    several = [name for name in (a, b) if name in own]
    return sum(share * guess + (1 - share) * own[name] for name in several) / size, freedom


def prior(variances: Sequence[float], freedom: int) -> tuple[float, float, float]:
    """Estimate how alike variances are (Smyth, 2004, Sec. 6.2): the less they are, the less each borrows of the rest.

    Args:
        variances: One a method.
        freedom: Degrees of freedom of each.

    Returns:
        Degrees of freedom of the common variance (infinite where they do not differ more than by chance), that
        variance, and the degrees of freedom of a variance that has borrowed.
    """
    known = np.maximum(variances, max(1e-5 * float(np.median(variances)), 1e-12))
    logs = np.log(known) - digamma(freedom / 2) + math.log(freedom / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, freedom / 2))
    most = float(freedom * len(known))
    if excess <= polygamma(1, most):
        return math.inf, float(known.mean()), most
    half = float(brentq(lambda x: polygamma(1, x) - excess, 1e-3, most))
    guess = math.exp(float(logs.mean()) + float(digamma(half)) - math.log(half))
    return 2 * half, guess, min(2 * half + freedom, most)


def _variance(values_R: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """Return the variance of those that are not nan."""
    known = values_R[~np.isnan(values_R)]
    return float(known.var(ddof=1)) if known.size > 1 else math.nan
