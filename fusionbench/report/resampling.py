"""A paired bootstrap over groups and seeds: every method sees the same patients drawn, and the same seeds where it can.

Groups (patients) are drawn with replacement, each with all of its cases, once for all methods and seeds. A method's
seeds are drawn with replacement too: together for methods with the same seeds, else independently. As the plain
bootstrap of S values understates their variance by (S - 1) / S, deviations from equal weights are stretched by
sqrt(S / (S - 1)), as Rao and Wu (1988) do for small samples. Drawing both at once counts the interaction of seed and
case more than once (Owen, 2007, the pigeonhole bootstrap): intervals err on the wide side. That choice is ours.

A resample that lacks a class is left out where a metric averages over classes, as the mean over the others is another
quantity.

Names carry shapes: R resamples, S seeds, N cases, K classes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from fusionbench.report.bootstrap import group_weights, lacking
from fusionbench.report.methods import Aligned
from fusionbench.report.weighted import Floats, weighted_scores


@dataclass(frozen=True, eq=False)
class Draws:
    """One metric of every method, as observed and in each resample; nan where undefined.

    Attributes:
        cases: Test cases.
        groups: Groups among them.
        seeds: Each method's seeds.
        observed: (S,) for each method, one value a seed.
        by_group: (R, S) for each method, with the groups of the resample.
        seed_weights: (R, S) for each method; rows sum to 1.
    """

    cases: int
    groups: int
    seeds: dict[str, tuple[int, ...]]
    observed: dict[str, Floats]
    by_group: dict[str, Floats]
    seed_weights: dict[str, Floats]

    @property
    def floor(self) -> float:
        """Least standard error: of one group in all on which methods differ, though none does here.

        Agresti and Min (2005) add half a case to each cell of paired proportions; with no discordant case that leaves
        a standard error of 1 / (n + 2). We take groups for cases, and every metric for a proportion.
        """
        return 1 / (self.groups + 2)

    def joint(self, name: str) -> Floats:
        """Return a method's score in each resample of groups and seeds, (R,)."""
        return np.asarray((self.by_group[name] * self.seed_weights[name]).sum(axis=1))

    def groups_only(self, name: str) -> Floats:
        """Return a method's mean over its seeds in each resample of groups, (R,)."""
        return np.asarray(self.by_group[name].mean(axis=1))

    def score(self, name: str, level: float) -> tuple[float, float, float]:
        """Return a method's score and its percentile interval in [0, 1]; nan bounds where there is one group only."""
        score = float(self.observed[name].mean())
        known = self.joint(name)
        known = known[~np.isnan(known)]
        if self.groups < 2 or not known.size or np.isnan(score):
            return score, np.nan, np.nan
        low, high = np.quantile(known, ((1 - level) / 2, (1 + level) / 2))
        least = norm.ppf((1 + level) / 2) * self.floor
        return score, float(max(min(low, score - least), 0)), float(min(max(high, score + least), 1))


def resample(aligned: Aligned, metric: str, *, resamples: int, seed: int) -> Draws:
    """Score every method in every resample of the groups and draw the seeds.

    Args:
        aligned: The methods' predictions of the same cases.
        metric: A headline metric; no other is computed.
        resamples: How many times groups and seeds are drawn.
        seed: Of the draws; the groups' do not depend on the methods.
    """
    return resample_each(aligned, (metric,), resamples=resamples, seed=seed)[metric]


def resample_each(aligned: Aligned, metrics: Sequence[str], *, resamples: int, seed: int) -> dict[str, Draws]:
    """Return the draws of several metrics, in one pass over the same resamples; arguments as in ``resample``."""
    runs = {(name, i): p_NK for name, tables in aligned.probabilities.items() for i, p_NK in enumerate(tables)}
    parts: dict[tuple[str, int], list[dict[str, Floats]]] = {key: [] for key in runs}
    for weights_RN in group_weights(aligned.groups, resamples, seed):
        without = lacking(aligned.target, next(iter(runs.values())).shape[1], weights_RN)
        for key, p_NK in runs.items():
            scores = weighted_scores(p_NK, aligned.target, weights_RN, metrics)
            parts[key].append({m: np.where(without.get(m, False), np.nan, values) for m, values in scores.items()})
    once = np.ones((1, len(aligned.groups)))
    full = {key: weighted_scores(p_NK, aligned.target, once, metrics) for key, p_NK in runs.items()}
    drawn = {name: seed_weights(own, resamples, seed) for name, own in aligned.seeds.items()}

    def draws(metric: str) -> Draws:
        observed, by_group = {}, {}
        for name, own in aligned.seeds.items():
            keys = [(name, i) for i in range(len(own))]
            observed[name] = np.array([full[key][metric][0] for key in keys])
            by_group[name] = np.stack([np.concatenate([part[metric] for part in parts[k]]) for k in keys], axis=1)
        return Draws(len(aligned.groups), len(set(aligned.groups)), aligned.seeds, observed, by_group, drawn)

    return {metric: draws(metric) for metric in metrics}


def seed_weights(seeds: tuple[int, ...], resamples: int, seed: int) -> Floats:
    """Return how much each seed counts in each resample, (R, S); the same for the same seeds, all 1 for a single one.

    Args:
        seeds: A method's seeds.
        resamples: R.
        seed: Of the draws.
    """
    size = len(seeds)
    if size == 1:
        return np.ones((resamples, 1))
    generator = np.random.default_rng([seed, zlib.crc32(repr(seeds).encode())])
    shares = generator.multinomial(size, np.full(size, 1 / size), size=resamples) / size
    return np.asarray(1 / size + np.sqrt(size / (size - 1)) * (shares - 1 / size))
