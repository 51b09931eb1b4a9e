"""Standard errors of a difference and their degrees of freedom, from groups and from seeds."""

import math

import numpy as np
import pytest
from contestants import predictions, softmax
from scipy import stats

from fusionbench.report.comparison import Method, compare
from fusionbench.report.contrast import Contrast, contrast, prior
from fusionbench.report.resampling import Draws, seed_weights

ABC = ["a", "b", "c"]
QUICK = {"resamples": 100, "seed": 7}


def test_a_p_value_is_students_where_seeds_add_nothing():
    for difference in (1e-9, 0.03, -0.2):
        assert Contrast(difference, 0.03, 59).p == pytest.approx(2 * stats.t.sf(abs(difference) / 0.03, 59))
    assert Contrast(0.9, 0.01, 1e6).p == 1e-15
    assert Contrast(0.0, 0.03, 59, 0.02, 2).p == Contrast(math.nan, 0.03, 59).p == 1


def drawn(seeds, scores):
    """Return draws in which the groups all say the same, so that only the seeds' variance is left."""
    observed = {name: np.array(values) for name, values in scores.items()}
    by_group = {name: np.tile(values, (400, 1)) for name, values in observed.items()}
    return Draws(90, 60, seeds, observed, by_group, {name: seed_weights(own, 400, 0) for name, own in seeds.items()})


def test_from_five_methods_on_each_borrows_from_the_others():
    generator = np.random.default_rng(0)
    scores = {name: 0.7 + 0.01 * generator.normal(size=3) for name in "abcdef"}
    calm = scores | {"a": scores["b"] + 0.02}  # the pair's own seeds agree by chance
    found = contrast(drawn(dict.fromkeys(scores, (0, 1, 2)), calm), "a", "b")
    table = np.stack(list(calm.values()))
    own = table.var(axis=1, ddof=1)
    spread, common, freedom = prior(list(own), 2)
    share = 1 if math.isinf(spread) else spread / (spread + 2)
    borrowed = [share * common + (1 - share) * value for value in own[:2]]
    assert found.seed_freedom == pytest.approx(freedom)
    assert found.seed_error == pytest.approx(np.sqrt(sum(borrowed) / 3))


def test_variances_that_are_alike_are_shared_and_others_are_not():
    generator = np.random.default_rng(1)
    chance = generator.chisquare(2, size=400) / 2
    spread, common, freedom = prior(list(0.01 * chance), 2)
    assert spread > 20
    assert common == pytest.approx(0.01, rel=0.2)
    spread, _, freedom = prior(list(10 ** generator.uniform(-6, -1, size=400) * chance), 2)
    assert spread < 1
    assert freedom == pytest.approx(spread + 2)


def test_few_methods_have_their_own_seeds_alone():
    scores = {"a": [0.5, 0.8], "b": [0.6, 0.61, 0.63], "c": [0.5], "d": [0.6, 0.62]}
    seeds = {"a": (0, 1), "b": (0, 1, 2), "c": (0,), "d": (5, 6)}
    found = contrast(drawn(seeds, scores), "b", "d")
    own = np.var(scores["b"], ddof=1) / 3 + np.var(scores["d"], ddof=1) / 2
    assert (found.seed_error, found.seed_freedom) == (pytest.approx(np.sqrt(own), rel=0.2), 1)
    assert contrast(drawn(seeds, scores), "a", "c").seed_freedom == 1
    only = {name: seeds[name] for name in "bc"}
    assert contrast(drawn(only, {name: scores[name] for name in "bc"}), "b", "c").seed_freedom == 2
    bare = contrast(drawn({"c": (0,), "x": (0,)}, {"c": [0.5], "x": [0.6]}), "c", "x")
    assert (bare.error, bare.seed_error) == (1 / 62, 0)


def test_seeds_are_paired_where_they_are_the_same():
    generator = np.random.default_rng(0)
    target = np.arange(60) % 3
    noise = generator.normal(size=(60, 3))
    common = [softmax(quality * np.eye(3)[target] + noise) for quality in (0.3, 1.2, 2.1)]
    runs = tuple(predictions(p, target, range(60)) for p in common)
    shifted = tuple(
        predictions(softmax(np.log(p) + 0.2 * generator.normal(size=p.shape)), target, range(60)) for p in common
    )
    same = compare([Method("a", runs, (0, 1, 2)), Method("b", shifted, (0, 1, 2))], ABC, False).pairs[0]
    other = compare([Method("a", runs, (0, 1, 2)), Method("b", shifted, (5, 6, 7))], ABC, False).pairs[0]
    assert same.difference == pytest.approx(other.difference)
    assert same.high - same.low < 0.6 * (other.high - other.low)


def test_seed_weights_keep_the_mean_and_the_unbiased_variance():
    weights = seed_weights((0, 1, 2), 200_000, 0)
    values = np.array([0.5, 0.7, 0.9])
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    means = weights @ values
    assert means.mean() == pytest.approx(0.7, abs=1e-3)
    assert means.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.02)
    assert (seed_weights((4,), 5, 0) == 1).all()
