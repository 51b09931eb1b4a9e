"""Intervals of what is scored case by case and averaged, such as a strategy's Dice, over groups and seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fusionbench.report.ablation_results import labels
from fusionbench.report.bootstrap import mean_samples
from fusionbench.report.methods import Method
from fusionbench.report.predictions import case_scores, groups, select_split
from fusionbench.report.resampling import Draws, seed_weights
from fusionbench.report.weighted import Floats


def score_intervals(
    methods: Sequence[Method], scores: Sequence[str], *, resamples: int, level: float, seed: int = 0
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the interval of each method's mean score, over the cases that have one, by method and score.

    Groups and seeds are drawn as for the other metrics, of groups those that have a score. A method without such a
    score has no interval.

    Args:
        methods: Each with one table of predictions for each seed.
        scores: Names as in ``predictions.case_scores``.
        resamples: How many times groups and seeds are drawn.
        level: Coverage of the intervals.
        seed: Of the draws.
    """
    found = {(m.name, score): _draws(m, score, resamples, seed) for m in methods for score in scores}
    return {key: draws.score(key[0], level)[1:] for key, draws in found.items() if draws is not None}


def _draws(method: Method, score: str, resamples: int, seed: int) -> Draws | None:
    """Return the score of each seed as observed and in each resample; None where a seed has no case with one."""
    tables = [_known(select_split(run, "test"), score) for run in method.runs]
    if any(table.empty for table in tables):
        return None
    observed = [table[score].mean() for table in tables]
    by_group = [_resampled(table, score, resamples, seed) for table in tables]
    return Draws(
        len(tables[0]),
        len(set(groups(tables[0]))),
        {method.name: method.seeds},
        {method.name: np.array(observed)},
        {method.name: np.stack(by_group, axis=1)},
        {method.name: seed_weights(method.seeds, resamples, seed)},
    )


def _known(table: pd.DataFrame, score: str) -> pd.DataFrame:
    """Return the group and the score of the cases that have one."""
    values = case_scores(table, labels(table)[0]).get(score)
    return pd.DataFrame({"group": groups(table), score: np.nan if values is None else values}).dropna(subset=score)


def _resampled(table: pd.DataFrame, score: str, resamples: int, seed: int) -> Floats:
    return mean_samples(table[score].to_numpy(), groups(table), resamples=resamples, seed=seed)
