"""The verdict between methods, from per-case predictions alone.

A method's score is the mean over its seeds of the test metric. The uncertainty of a difference comes from a paired
bootstrap over groups and seeds (``resampling``), its p-value and interval from it by ``contrast``, its word by
``verdicts``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusionbench.errors import UserError, nearest
from fusionbench.report.contrast import contrast, holm
from fusionbench.report.fusion_help import Entry, FusionHelp, did_fusion_help, fusion_help, held_against
from fusionbench.report.methods import Method
from fusionbench.report.resampling import Draws
from fusionbench.report.shared_cases import SharedCases
from fusionbench.report.verdicts import Pair, Verdict, check_options, judge

__all__ = [
    "Comparison",
    "Entry",
    "FusionHelp",
    "Method",
    "Pair",
    "Verdict",
    "compare",
    "compare_shared",
    "did_fusion_help",
    "fusion_help",
    "held_against",
]


@dataclass(frozen=True)
class Comparison:
    """Methods and every pair of interest.

    Attributes:
        metric: What is compared.
        margin: Differences smaller than this do not matter.
        level: Coverage of the intervals; 1 - level is the error that Holm's method keeps.
        cases: Test cases.
        groups: Groups (patients) among them.
        scores: Mean over seeds with its interval, by method.
        pairs: In the order asked for.
        notes: What the reader must know besides, one sentence each.
    """

    metric: str
    margin: float
    level: float
    cases: int
    groups: int
    scores: dict[str, tuple[float, float, float]]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]


def compare(
    methods: Sequence[Method],
    classes: Sequence[str],
    multilabel: bool,
    *,
    metric: str = "mAP",
    margin: float = 0.02,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> Comparison:
    """Compare methods on the same test cases; one that saw only some of them is told of in a note.

    Args:
        methods: Each with one table of predictions for each seed.
        classes: K names in label order.
        multilabel: Whether a case can have several classes.
        metric: A headline metric; ECE is better when lower.
        margin: Half-width of what counts as no difference.
        level: Coverage of the intervals.
        resamples: How many times groups and seeds are drawn.
        seed: Of the draws.
        pairs: Which pairs, by name; null: all, in the methods' order.

    Raises:
        UserError: Methods differ in cases or labels, or a name or number is impossible.
    """
    check_options(metric, margin, level, resamples)
    names = [method.name for method in methods]
    for name in itertools.chain.from_iterable(pairs or ()):
        if name not in names:
            raise UserError(f"there is no method '{name}' to compare{nearest(name, names)}")
    shared = SharedCases(methods, classes, multilabel, (metric,), resamples=resamples, seed=seed)
    for name in itertools.chain.from_iterable(pairs or ()):
        if name in shared.fewer:
            raise UserError(f"'{name}' was tested on {shared.fewer[name]:,} of the cases only; leave out its pairs")
    return compare_shared(shared, metric, margin=margin, level=level, pairs=pairs)


def compare_shared(
    shared: SharedCases,
    metric: str,
    *,
    margin: float = 0.02,
    level: float = 0.95,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> Comparison:
    """Compare the methods that were tested on all cases.

    Args:
        shared: The methods, resampled.
        metric: What was resampled.
        margin: Half-width of what counts as no difference.
        level: Coverage of the intervals.
        pairs: Which pairs, by name; null: all, in the methods' order.
    """
    draws = shared.draws()[metric]
    names = list(draws.observed)
    asked = list(itertools.combinations(names, 2)) if pairs is None else list(pairs)
    contrasts = [contrast(draws, a, b) for a, b in asked]
    adjusted = holm([found.p for found in contrasts])
    judged = tuple(
        judge(a, b, found, p, metric=metric, margin=margin, level=level, family=len(asked))
        for (a, b), found, p in zip(asked, contrasts, adjusted, strict=True)
    )
    scores = {name: draws.score(name, level) for name in names}
    notes = (*_notes(draws), *shared.notes(metric, level))
    return Comparison(metric, margin, level, draws.cases, draws.groups, scores, judged, notes)


def _notes(draws: Draws) -> tuple[str, ...]:
    """Say what the intervals do not hold."""
    notes = []
    single = [name for name, seeds in draws.seeds.items() if len(seeds) == 1]
    if single:
        who = "each method" if len(single) == len(draws.seeds) else ", ".join(single)
        notes.append(f"One seed of {who}: the intervals hold for the trained models, not for training them again.")
    if draws.groups < 2:
        notes.append("The test split has one group only, so nothing can be said about another.")
    undefined = [name for name, values in draws.observed.items() if np.isnan(values).any()]
    if undefined:
        notes.append(f"The metric is undefined for {', '.join(undefined)}: no test case defines it.")
    return tuple(notes)
