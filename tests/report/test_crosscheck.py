"""Textbook tests, against their definitions."""

import math
from dataclasses import replace

import numpy as np
import pytest
from contestants import contestants, predictions
from scipy.stats import binomtest, norm

from fusionbench.report.crosscheck import crosscheck
from fusionbench.report.methods import Method

ABC = ["a", "b", "c"]


def plain_delong(truth, first, second):
    """Return the p-value by DeLong, DeLong and Clarke-Pearson (1988), pair by pair."""
    positives, negatives = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)

    def wins(scores):
        return np.array(
            [[(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for j in negatives] for i in positives]
        )

    difference = wins(first) - wins(second)
    of_positives = difference.mean(axis=1).var(ddof=1) / len(positives)
    of_negatives = difference.mean(axis=0).var(ddof=1) / len(negatives)
    return 2 * norm.sf(abs(difference.mean()) / math.sqrt(of_positives + of_negatives))


def test_against_plain_loops():
    first, second = contestants({"x": 1.2, "y": 0.7}, seeds=(0, 1))
    found = {check.metric: check for check in crosscheck([first, second], ABC, False)}
    assert list(found) == ["AUC/a", "AUC/b", "AUC/c", "accuracy"]
    one, two = (method.runs[0] for method in (first, second))
    truth = (one["target"] == 1).to_numpy().astype(int)
    wanted = plain_delong(truth, one["prob.b"].to_numpy(), two["prob.b"].to_numpy())
    assert found["AUC/b"].p == pytest.approx(wanted, rel=1e-6)
    right = [t[[f"prob.{c}" for c in ABC]].to_numpy().argmax(1) == t["target"] for t in (one, two)]
    only = [(right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()]
    assert found["accuracy"].p == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert found["accuracy"].first == right[0].mean()


def test_equal_predictions_do_not_differ():
    first = contestants({"x": 1.2})[0]
    found = crosscheck([first, replace(first, name="y")], ABC, False)
    assert {check.p for check in found} == {1.0}
    assert [check.test for check in found] == ["bootstrap"] * 3 + ["McNemar"]


def test_a_class_of_one_case_has_no_test():
    first, second = contestants({"x": 1.2, "y": 0.7})
    one = [
        replace(m, runs=(m.runs[0].assign(target=np.where(np.arange(60) == 4, 2, np.arange(60) % 2)),))
        for m in (first, second)
    ]
    assert [check.metric for check in crosscheck(one, ABC, False)] == ["AUC/a", "AUC/b", "accuracy"]


def test_multilabel_and_a_class_that_is_absent():
    target = np.random.default_rng(0).integers(0, 2, (50, 3))
    target[:, 2] = 0
    scores = np.random.default_rng(1).random((2, 50, 3))
    methods = [Method(n, (predictions(s, target, range(50)),), (0,)) for n, s in zip("xy", scores, strict=True)]
    found = [check.metric for check in crosscheck(methods, ABC, True)]
    assert found == ["AUC/a", "AUC/b", "accuracy/a", "accuracy/b", "accuracy/c"]
