"""The same question asked of textbook tests from libraries: DeLong's for AUC and McNemar's for accuracy.

Where DeLong's variance is 0 the library bootstraps the cases instead, and the test is called so.

Both take every case for a patient of its own and see one trained model of each method, the first seed's: they are a
check on the verdicts and not a replacement. Their p-values are not adjusted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from MLstatkit import Delong_test
from numpy.typing import NDArray
from statsmodels.stats.contingency_tables import mcnemar

from fusionbench.report.methods import Method, align
from fusionbench.report.weighted import Floats

CAVEAT = (
    "Cross-checks see the first seed only, ignore that cases of one patient resemble each other, and are unadjusted."
)


@dataclass(frozen=True)
class CrossCheck:
    """One test of two methods.

    Attributes:
        a: First method.
        b: Second method.
        metric: ``AUC/<class>``, ``accuracy``, or ``accuracy/<class>`` when multi-label.
        first: Value of ``a`` with its first seed.
        second: Value of ``b``.
        test: ``DeLong``, ``McNemar``, or ``bootstrap`` where DeLong's variance is 0.
        p: Two-sided p-value.
    """

    a: str
    b: str
    metric: str
    first: float
    second: float
    test: str
    p: float


def crosscheck(
    methods: Sequence[Method], classes: Sequence[str], multilabel: bool, pairs: Sequence[tuple[str, str]] | None = None
) -> list[CrossCheck]:
    """Test each pair by class (one against the rest) and, for accuracy, by decision.

    Args:
        methods: As in ``comparison.compare``.
        classes: K names in label order; with fewer than two cases in or outside one, DeLong's variance is undefined
            and the class is left out.
        multilabel: Whether a case can have several classes.
        pairs: Which pairs, by name; null: all.

    Raises:
        UserError: Methods differ in cases or labels.
    """
    aligned = align(methods, classes, multilabel)
    truth_NK = aligned.target if multilabel else np.eye(len(classes), dtype=np.int64)[aligned.target]
    scores = {name: runs[0] for name, runs in aligned.probabilities.items()}
    found: list[CrossCheck] = []
    for a, b in itertools.combinations(scores, 2) if pairs is None else pairs:
        found += _delong(a, b, scores[a], scores[b], truth_NK, classes)
        found += _mcnemar(a, b, scores[a], scores[b], truth_NK, classes if multilabel else ())
    return found


def _delong(
    a: str, b: str, first_NK: Floats, second_NK: Floats, truth_NK: NDArray[np.int64], classes: Sequence[str]
) -> Iterator[CrossCheck]:
    """Yield DeLong's test for each class with two cases or more in it and outside it."""
    for k, label in enumerate(classes):
        truth_N = truth_NK[:, k]
        if not 2 <= truth_N.sum() <= len(truth_N) - 2:
            continue
        z, p, *_, auc_a, auc_b, info = Delong_test(truth_N, first_NK[:, k], second_NK[:, k], random_state=0)
        same = z == 0 and auc_a == auc_b  # the library calls equal rankings p = 0
        test = "DeLong" if info["method"] == "delong" else info["method"]
        yield CrossCheck(a, b, f"AUC/{label}", float(auc_a), float(auc_b), test, 1.0 if same else float(p))


def _mcnemar(
    a: str, b: str, first_NK: Floats, second_NK: Floats, truth_NK: NDArray[np.int64], labels: Sequence[str]
) -> Iterator[CrossCheck]:
    """Yield McNemar's exact test of the decisions, of each label on its own when multi-label."""
    if labels:
        right = [(scores > 0.5) == (truth_NK > 0) for scores in (first_NK, second_NK)]
    else:
        right = [scores.argmax(axis=1)[:, None] == truth_NK.argmax(axis=1)[:, None] for scores in (first_NK, second_NK)]
    for k in range(right[0].shape[1]):
        one, two = right[0][:, k], right[1][:, k]
        table = [[(one & two).sum(), (one & ~two).sum()], [(~one & two).sum(), (~one & ~two).sum()]]
        metric = f"accuracy/{labels[k]}" if labels else "accuracy"
        yield CrossCheck(a, b, metric, one.mean(), two.mean(), "McNemar", float(mcnemar(table, exact=True).pvalue))
