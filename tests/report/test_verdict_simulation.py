"""How often verdicts are wrong, and how often a difference is found, over many test splits drawn anew."""

import numpy as np
import pytest
from contestants import predictions, tied_pair
from scipy.stats import binom, norm

from fusionbench.report.comparison import Method, compare
from fusionbench.report.contrast import contrast
from fusionbench.report.methods import Aligned
from fusionbench.report.resampling import resample


def false_verdicts(draws, metric, *, seeds=1, training=0.0, resamples=150):
    """Return how often "better" is said of two methods that are equally good, and "better" or "worse"."""
    better = wrong = 0
    for draw in range(draws):
        found = contrast(
            resample(tied_pair(draw, seeds=seeds, training=training), metric, resamples=resamples, seed=draw), "a", "b"
        )
        better += found.p < 0.05 and found.difference > 0
        wrong += found.p < 0.05
    return better / draws, wrong / draws


def found_in(draws, *, cases, auc_a, auc_b, resamples=150):
    """Return how often the better of two binary classifiers is called better, a correlation of half between them."""
    hits = 0
    for draw in range(draws):
        generator = np.random.default_rng([draw, 1])
        target = np.arange(cases) % 2
        shared = generator.normal(size=cases)
        probabilities = {}
        for name, auc in (("a", auc_a), ("b", auc_b)):
            shift = np.sqrt(2) * norm.ppf(auc)
            score = shift * target + np.sqrt(0.5) * (shared + generator.normal(size=cases))
            ill = 1 / (1 + np.exp(-score))
            probabilities[name] = (np.stack([1 - ill, ill], axis=1),)
        aligned = Aligned(target, tuple(map(str, range(cases))), probabilities, {"a": (0,), "b": (0,)})
        found = contrast(resample(aligned, "mAUC", resamples=resamples, seed=draw), "a", "b")
        hits += found.p < 0.05 and found.difference > 0
    return hits / draws


@pytest.mark.parametrize("metric", ["mAP", "mAUC", "accuracy"])
def test_ties_of_79_cases_are_seldom_called_better(metric):
    better, wrong = false_verdicts(200, metric)
    assert better <= 0.06  # three standard errors above the 2.5 % expected
    assert wrong <= 0.1


def test_ties_of_methods_trained_three_times():
    assert false_verdicts(60, "mAUC", seeds=3, training=0.3)[0] <= 0.1


def test_a_difference_of_15_points_is_found_in_400_cases():
    assert found_in(20, cases=400, auc_a=0.80, auc_b=0.65) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["mAP", "mAUC", "mS2", "accuracy", "F1", "ECE"])
@pytest.mark.parametrize(("seeds", "training"), [(1, 0.0), (3, 0.0), (3, 0.3)])
def test_ties_over_2000_draws(metric, seeds, training):
    better, _ = false_verdicts(2000, metric, seeds=seeds, training=training)
    assert better <= 0.05


@pytest.mark.slow
def test_power_over_1000_draws():
    assert found_in(1000, cases=400, auc_a=0.75, auc_b=0.60) >= 0.8


@pytest.mark.slow
def test_twelve_tied_methods_seldom_give_any_verdict():
    draws, wrong = 60, 0
    for draw in range(draws):
        generator = np.random.default_rng([draw, 2])
        target, member = generator.integers(0, 4, 60), np.arange(79) % 60
        truth = np.eye(4)[target[member]]
        methods = []
        for number in range(12):
            runs = [1.5 * truth + generator.normal(size=truth.shape) for _ in range(3)]
            tables = tuple(
                predictions(np.exp(r) / np.exp(r).sum(1, keepdims=True), target[member], member) for r in runs
            )
            methods.append(Method(f"m{number}", tables, (0, 1, 2)))
        comparison = compare(methods, list("abcd"), False, metric="accuracy", resamples=150, seed=draw)
        wrong += any(pair.verdict in ("better", "worse") for pair in comparison.pairs)
    assert wrong <= binom.ppf(0.999, draws, 0.05)  # 9, which a family-wise error of 5 % exceeds once in 1,000 times
