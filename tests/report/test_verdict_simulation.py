"""How often verdicts are wrong, and how often a difference is found, over many test splits drawn anew."""

import numpy as np
import pytest
from contestants import predictions, tied_pair
from scipy.stats import binom, norm

from fusionbench.report.comparison import Method, compare
from fusionbench.report.contrast import contrast
from fusionbench.report.methods import Aligned
from fusionbench.report.resampling import Draws, resample, seed_weights

STRICT = 0.05 / 66  # Holm's first step for 12 methods


def most(draws, chance):
    """Return the count that a test of this error exceeds once in 1,000 times."""
    return binom.ppf(0.999, draws, chance)


def of_ties(draws, metric, *, resamples=150, **options):
    """Return the contrasts of two methods that are equally good."""
    return [
        contrast(resample(tied_pair(draw, **options), metric, resamples=resamples, seed=draw), "a", "b")
        for draw in range(draws)
    ]


def check(found, *, better=0.05):
    """Assert that wrong verdicts are no more than the error allows, at the usual level and at a strict one."""
    p, gain = np.array([(one.p, one.difference) for one in found]).T
    assert np.mean((p < 0.05) & (gain > 0)) <= better
    for chance in (0.05, STRICT):
        assert (p < chance).sum() <= most(len(found), chance)


def normal_ties(draws, spreads, seeds, gain=0.0, resamples=100):
    """Return contrasts of two of several methods whose scores are normal.

    Args:
        draws: How many.
        spreads: Each method's standard deviation from seed to seed; that of the test split is 1 / 100.
        seeds: Trained models of each method.
        gain: By how much the first is better than the others.
        resamples: Of each.
    """
    names = [f"m{number}" for number in range(len(spreads))]
    own = dict.fromkeys(names, tuple(range(seeds)))
    found = []
    for draw in range(draws):
        generator = np.random.default_rng([draw, 3])
        centres = 0.7 + 0.01 * generator.normal(size=len(names)) + gain * (np.arange(len(names)) == 0)
        observed = {
            name: centre + spread * generator.normal(size=seeds)
            for name, centre, spread in zip(names, centres, spreads, strict=True)
        }
        by_group = {name: scores + 0.01 * generator.normal(size=(resamples, 1)) for name, scores in observed.items()}
        weights = dict.fromkeys(names, seed_weights(own["m0"], resamples, draw))
        found.append(contrast(Draws(600, 600, own, observed, by_group, weights), "m0", "m1"))
    return found


def found_in(draws, *, cases, auc_a, auc_b, resamples=150, seeds=1, training=0.0):
    """Return how often the better of two binary classifiers is called better.

    Half of the noise is common to both, and with several seeds ``training`` is the standard deviation of each one's own
    shift.
    """
    hits = 0
    for draw in range(draws):
        generator = np.random.default_rng([draw, 1])
        target = np.arange(cases) % 2
        shared = generator.normal(size=cases)
        probabilities = {}
        for name, auc in (("a", auc_a), ("b", auc_b)):
            noise = np.sqrt(0.5) * (shared + generator.normal(size=cases))
            shifts = np.sqrt(2) * norm.ppf(auc) + training * generator.normal(size=seeds)
            ill = [1 / (1 + np.exp(-(shift * target + noise))) for shift in shifts]
            probabilities[name] = tuple(np.stack([1 - p, p], axis=1) for p in ill)
        aligned = Aligned(
            target, tuple(map(str, range(cases))), probabilities, dict.fromkeys(probabilities, tuple(range(seeds)))
        )
        found = contrast(resample(aligned, "mAUC", resamples=resamples, seed=draw), "a", "b")
        hits += found.p < 0.05 and found.difference > 0
    return hits / draws


@pytest.mark.parametrize("metric", ["mAP", "mAUC", "accuracy"])
def test_ties_of_79_cases_are_seldom_called_better(metric):
    check(of_ties(200, metric), better=0.06)  # three standard errors above the 2.5 % expected


def test_ties_of_methods_trained_three_times():
    check(of_ties(60, "mAUC", seeds=3, training=0.3))


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("spreads", [[0.05] * 2, [0.05, 0.005], [0.05] * 12])
def test_seeds_that_agree_by_chance_make_nothing_surer(spreads, seeds):
    check(normal_ties(400, spreads, seeds))


def test_a_gain_is_found_among_twelve_methods_whose_seeds_vary_little():
    found = normal_ties(60, [0.003] * 12, 3, gain=0.08)
    assert np.mean([one.p < STRICT for one in found]) >= 0.8


def test_a_difference_of_15_points_is_found_in_400_cases():
    assert found_in(20, cases=400, auc_a=0.80, auc_b=0.65) >= 0.9
    assert found_in(20, cases=400, auc_a=0.80, auc_b=0.65, seeds=3, training=0.03) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["mAP", "mAUC", "mS2", "accuracy", "F1", "ECE"])
@pytest.mark.parametrize(("seeds", "training"), [(1, 0.0), (3, 0.0), (3, 0.3)])
def test_ties_over_2000_draws(metric, seeds, training):
    check(of_ties(2000, metric, seeds=seeds, training=training))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3])
def test_ties_of_800_cases_where_seeds_vary_most(seeds):
    check(of_ties(1000, "accuracy", resamples=100, seeds=seeds, training=0.5, cases=800, groups=600))


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "training"), [(1, 0.0), (3, 0.03)])
def test_power_over_1000_draws(seeds, training):
    assert found_in(1000, cases=400, auc_a=0.75, auc_b=0.60, seeds=seeds, training=training) >= 0.8


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
    assert wrong <= most(draws, 0.05)  # 9
