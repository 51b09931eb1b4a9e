"""Percentile intervals by bootstrap over groups: patients are drawn with replacement, each with all of its cases.

The draw depends on the seed and the set of groups only, so two methods scored on the same cases see the same resamples
and their difference is paired.

A resample that lacks a class is left out where a metric averages over classes: the mean over the others is another
quantity, whose interval need not even hold the score. Where less than a tenth of the resamples have every class, the
rest say more of how they were chosen than of the score, and there is no interval. That share is our choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fusionbench.errors import UserError
from fusionbench.report.weighted import Floats, weighted_scores

BOTH_SIDES = ("mAUC", "mS2")  # averages over classes that need cases with and without the class
ONE_SIDE = ("mAP", "F1")  # those that need cases with it
_LEAST_SHARE = 0.1  # of the resamples, for an interval
_CELLS_AT_ONCE = 4_000_000  # 32 MB an array of (resamples, cases), several of which are alive at a time


def group_intervals(
    probabilities: ArrayLike,
    target: ArrayLike,
    groups: Sequence[str],
    classes: Sequence[str],
    multilabel: bool,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the interval of each headline metric, nan where there is one group only or too few resamples define it.

    A resample in which a metric is undefined is left out of that metric's percentiles.

    Args:
        probabilities: (N, K) in [0, 1].
        target: (N,) class indices, or (N, K) of 0/1 when multi-label.
        groups: N patients.
        classes: K names in label order.
        multilabel: Whether a case can have several classes.
        resamples: How many times the groups are drawn.
        level: Coverage, between 0 and 1.
        seed: Of the draw.

    Raises:
        UserError: Lengths disagree, there is no case, or ``resamples`` or ``level`` is out of range.
    """
    if not 0 < level < 1:
        raise UserError(f"an interval's level is {level}; give a fraction between 0 and 1, such as 0.95")
    tails = ((1 - level) / 2, (1 + level) / 2)
    samples = group_samples(probabilities, target, groups, classes, multilabel, resamples=resamples, seed=seed)
    if len(set(groups)) < 2:
        return dict.fromkeys(samples, (np.nan, np.nan))
    known = {name: np.count_nonzero(~np.isnan(values)) for name, values in samples.items()}
    enough = {name: count >= _LEAST_SHARE * resamples for name, count in known.items()}
    return {name: _percentiles(v, tails) if enough[name] else (np.nan, np.nan) for name, v in samples.items()}


def mean_interval(
    values: ArrayLike, groups: Sequence[str], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the interval of the mean over the cases that have a value, nan where there is one group only.

    Args:
        values: (N,), nan where a case has none; a resample without any is left out.
        groups: N patients.
        resamples: How many times the groups are drawn.
        level: Coverage, between 0 and 1.
        seed: Of the draw.
    """
    if len(set(groups)) < 2:
        return np.nan, np.nan
    return _percentiles(
        mean_samples(values, groups, resamples=resamples, seed=seed), ((1 - level) / 2, (1 + level) / 2)
    )


def mean_samples(values: ArrayLike, groups: Sequence[str], *, resamples: int = 2000, seed: int = 0) -> Floats:
    """Return the mean of every resample, (R,), nan in one without a value; arguments as in ``mean_interval``."""
    values_N = np.asarray(values, dtype=np.float64)
    known_N = ~np.isnan(values_N)
    filled_N = np.where(known_N, values_N, 0)
    parts = [(weights @ filled_N, weights @ known_N) for weights in group_weights(groups, resamples, seed)]
    total, cases = (np.concatenate(column) for column in zip(*parts, strict=True))
    return np.asarray(np.divide(total, cases, out=np.full_like(total, np.nan), where=cases > 0))


def group_samples(
    probabilities: ArrayLike,
    target: ArrayLike,
    groups: Sequence[str],
    classes: Sequence[str],
    multilabel: bool,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Floats]:
    """Return each headline metric of every resample, (R,), nan where undefined; arguments as in ``group_intervals``."""
    scores_NK = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(target, dtype=np.int64)
    _check(scores_NK, labels, groups, classes, multilabel, resamples)
    parts = []
    for weights_RN in group_weights(groups, resamples, seed):
        without = lacking(labels, scores_NK.shape[1], weights_RN)
        scores = weighted_scores(scores_NK, labels, weights_RN)
        parts.append({name: np.where(without.get(name, False), np.nan, v) for name, v in scores.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def lacking(target: NDArray[np.int64], classes: int, weights_RN: Floats) -> dict[str, NDArray[np.bool_]]:
    """Return by metric which resamples lack a class that the test split has, (R,); other metrics need none.

    A class needs cases without it only where the test split has any, too.

    Args:
        target: (N,) class indices, or (N, K) of 0/1 when multi-label.
        classes: K.
        weights_RN: How often each case is in each resample.
    """
    truth_NK = target if target.ndim == 2 else np.eye(classes, dtype=np.int64)[target]

    def lost(member_NK: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(weights_RN @ member_NK[:, member_NK.any(axis=0)] == 0)

    without = np.asarray(lost(truth_NK).any(axis=1))
    either = np.asarray(without | lost(1 - truth_NK).any(axis=1))
    return dict.fromkeys(ONE_SIDE, without) | dict.fromkeys(BOTH_SIDES, either)


def group_weights(groups: Sequence[str], resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each case is in each resample, a few resamples (r, N) at a time, R in all.

    Args:
        groups: N patients.
        resamples: R.
        seed: Of the draw, which depends on nothing else but the set of groups.
    """
    names, member_N = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    counts_RG = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    step = max(1, _CELLS_AT_ONCE // len(member_N))
    for start in range(0, resamples, step):
        yield counts_RG[start : start + step, member_N].astype(np.float64)


def _check(
    scores_NK: Floats,
    target: NDArray[np.int64],
    groups: Sequence[str],
    classes: Sequence[str],
    multilabel: bool,
    resamples: int,
) -> None:
    """Refuse what would broadcast or index silently wrong."""
    cases = len(groups)
    wanted = (cases, len(classes)) if multilabel else (cases,)
    if scores_NK.shape != (cases, len(classes)) or target.shape != wanted:
        raise UserError(
            f"probabilities of shape {scores_NK.shape} and target of shape {target.shape} do not fit {cases} groups "
            f"and {len(classes)} classes; give ({cases}, {len(classes)}) and {wanted}"
        )
    if cases == 0 or resamples < 1:
        raise UserError(f"{cases} cases and {resamples} resamples give no interval; give at least one of each")
    if target.min() < 0 or target.max() >= (2 if multilabel else len(classes)):
        raise UserError("a label is unknown or out of range; give only cases whose label is known")


def _percentiles(values: Floats, tails: tuple[float, float]) -> tuple[float, float]:
    """Return the quantiles of those that are not nan."""
    known = values[~np.isnan(values)]
    if not known.size:
        return np.nan, np.nan
    low, high = np.quantile(known, tails)
    return float(low), float(high)
