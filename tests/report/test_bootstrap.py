"""Vectorised resampling against scikit-learn with ``sample_weight``, one resample at a time."""

import math
import time

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from fusionbench.errors import UserError
from fusionbench.metrics import HEADLINE, evaluate
from fusionbench.report.bootstrap import group_intervals, group_samples, group_weights, mean_interval
from fusionbench.report.weighted import weighted_scores

CLASSES = ["a", "b", "c"]


def table(multilabel, cases=45, absent=None, seed=0):
    """Scores with many ties, labels, and groups of one to three cases."""
    generator = np.random.default_rng(seed)
    target = generator.choice([k for k in range(3) if k != absent], cases)
    truth = np.eye(3, dtype=int)[target]
    if multilabel:
        target = truth = generator.integers(0, 2, (cases, 3))
        if absent is not None:
            truth[:, absent] = 0
    scores = (generator.random((cases, 3)) * 0.6 + truth * 0.3).round(1)
    groups = [f"patient {index}" for index in generator.integers(0, cases // 2, cases)]
    return scores, target, groups


def ratio(a, b):
    return a / b if b else math.nan


def plain_headline(scores, target, weight, multilabel):
    """The headline metrics of one weighting, class by class."""
    truth = target if multilabel else np.eye(3, dtype=int)[target]
    decided = (scores > 0.5).astype(int) if multilabel else np.eye(3, dtype=int)[scores.argmax(axis=1)]
    rows = {"mAP": [], "mAUC": [], "mS2": [], "F1": []}
    for k in range(3):
        positive, negative = weight[truth[:, k] == 1].sum(), weight[truth[:, k] == 0].sum()
        if not positive:
            continue
        rows["mAP"].append(reference.average_precision_score(truth[:, k], scores[:, k], sample_weight=weight))
        rows["F1"].append(reference.f1_score(truth[:, k], decided[:, k], sample_weight=weight, zero_division=0))
        if not negative:
            continue
        rows["mAUC"].append(reference.roc_auc_score(truth[:, k], scores[:, k], sample_weight=weight))
        sensitivity = reference.recall_score(truth[:, k], decided[:, k], sample_weight=weight)
        specificity = reference.recall_score(1 - truth[:, k], 1 - decided[:, k], sample_weight=weight)
        both = sensitivity + specificity
        rows["mS2"].append(2 * sensitivity * specificity / both if both else 0.0)
    result = {name: ratio(sum(values), len(values)) for name, values in rows.items()}
    correct = (decided == truth).mean(axis=1) if multilabel else (decided == truth).all(axis=1)
    return result | {"accuracy": np.average(correct, weights=weight)}


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("absent", [None, 1])
def test_weighted_scores_equal_scikit_learn(multilabel, absent):
    scores, target, _ = table(multilabel, absent=absent)
    weights = np.random.default_rng(1).integers(0, 4, (12, 45)).astype(float)
    weights[0] = np.where(np.arange(45) < 3, 1, 0)  # so few cases that some class has none
    result = weighted_scores(scores, target, weights)
    for row, weight in enumerate(weights):
        for name, value in plain_headline(scores, target, weight, multilabel).items():
            assert result[name][row] == pytest.approx(value, nan_ok=True), (name, row)


@pytest.mark.parametrize("multilabel", [False, True])
def test_weighting_equals_repeating(multilabel):
    """Also holds the definitions of evaluate and weighted_scores together, calibration included."""
    scores, target, _ = table(multilabel)
    weights = np.random.default_rng(2).integers(0, 3, (4, 45))
    result = weighted_scores(scores, target, weights.astype(float))
    for row, weight in enumerate(weights):
        repeated = np.repeat(np.arange(45), weight)
        wanted = evaluate(torch.tensor(scores[repeated]), torch.tensor(target[repeated]), CLASSES, multilabel)
        for name in HEADLINE:
            assert result[name][row] == pytest.approx(wanted[name], abs=1e-6), name


@pytest.mark.parametrize(
    ("scores", "target"),
    [([[0.9, 0.1], [0.1, 0.9]], [[0, 1], [1, 0]]), ([[0.6], [9.5 / 15], [0.0]], [[0], [1], [0]])],
)
def test_degenerate_cases_are_scored_as_by_evaluate(scores, target):
    """Both rates 0; a score on a bin's edge."""
    wanted = evaluate(torch.tensor(scores, dtype=torch.float64), torch.tensor(target), CLASSES[: len(scores[0])], True)
    result = weighted_scores(np.array(scores), np.array(target), np.ones((1, len(scores))))
    for name in HEADLINE:
        assert result[name][0] == pytest.approx(wanted[name]), name


def test_intervals_resample_groups():
    """Percentiles of a plain loop that draws patients with the same counts and repeats their cases."""
    scores, target, groups = table(multilabel=False)
    names = sorted(set(groups))
    counts = np.random.default_rng(5).multinomial(len(names), [1 / len(names)] * len(names), size=40)
    plain = []
    for count in counts:
        weight = np.array([count[names.index(group)] for group in groups], dtype=float)
        plain.append(plain_headline(scores, target, weight, multilabel=False))
    result = group_intervals(scores, target, groups, CLASSES, False, resamples=40, level=0.9, seed=5)
    for name in ("mAP", "mAUC", "mS2", "accuracy", "F1"):
        wanted = np.nanquantile([sample[name] for sample in plain], [0.05, 0.95])
        assert result[name] == pytest.approx(tuple(wanted)), name


def test_repeated_cases_of_a_group_narrow_nothing():
    scores, target, _ = table(multilabel=False)
    groups = [f"patient {index}" for index in range(45)]
    alone = group_intervals(scores, target, groups, CLASSES, False, resamples=200)
    thrice = group_intervals(np.tile(scores, (3, 1)), np.tile(target, 3), groups * 3, CLASSES, False, resamples=200)
    for name in HEADLINE:
        assert thrice[name] == pytest.approx(alone[name]), name


def test_order_of_cases_changes_nothing():
    scores, target, groups = table(multilabel=False)
    order = np.random.default_rng(3).permutation(45)
    shuffled = [groups[index] for index in order]
    first = group_intervals(scores, target, groups, CLASSES, False, resamples=100)
    second = group_intervals(scores[order], target[order], shuffled, CLASSES, False, resamples=100)
    assert {name: pytest.approx(value) for name, value in first.items()} == second
    assert first != group_intervals(scores, target, groups, CLASSES, False, resamples=100, seed=1)


def test_chunks_change_nothing(monkeypatch):
    scores, target, groups = table(multilabel=True)
    whole = group_samples(scores, target, groups, CLASSES, True, resamples=50)
    monkeypatch.setattr("fusionbench.report.bootstrap._CELLS_AT_ONCE", 45 * 7)
    parts = group_samples(scores, target, groups, CLASSES, True, resamples=50)
    for name in HEADLINE:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-12)


def test_one_group_has_no_interval():
    scores, target, _ = table(multilabel=False)
    result = group_intervals(scores, target, ["only"] * 45, CLASSES, False, resamples=10)
    assert list(result) == list(HEADLINE)
    assert all(math.isnan(bound) for bounds in result.values() for bound in bounds)


def test_metric_that_no_resample_defines():
    result = group_intervals([[0.9, 0.1], [0.4, 0.6]], [0, 0], ["p", "q"], ["a", "b"], False, resamples=10)
    assert all(map(math.isnan, result["mAUC"]))
    assert result["mAP"] == (1, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"groups": ["p"]}, "1 groups"),
        ({"target": [0, -1]}, "unknown"),
        ({"target": [[0, 1], [1, 0]]}, "do not fit"),
        ({"level": 95}, "0.95"),
        ({"resamples": 0}, "0 resamples"),
        ({"probabilities": np.zeros((0, 2)), "target": [], "groups": []}, "0 cases"),
    ],
)
def test_refuses(change, said):
    good = {"probabilities": [[0.9, 0.1], [0.4, 0.6]], "target": [0, 1], "groups": ["p", "q"]}
    with pytest.raises(UserError, match=said):
        group_intervals(**(good | {"classes": ["a", "b"], "multilabel": False} | change))


def test_is_fast_enough_for_a_table():
    generator = np.random.default_rng(0)
    scores, target = generator.dirichlet(np.ones(5), 400), generator.integers(0, 5, 400)
    start = time.process_time()
    group_intervals(scores, target, [str(index // 2) for index in range(400)], list("abcde"), False)
    assert time.process_time() - start < 5  # measured 0.24 s; a loop over scikit-learn takes minutes


def test_the_interval_of_a_mean_is_that_of_resampled_groups_one_at_a_time():
    generator = np.random.default_rng(1)
    values = np.where(generator.random(30) < 0.3, np.nan, generator.random(30))
    groups = [f"patient {index}" for index in generator.integers(0, 12, 30)]
    means = []
    for weights in np.concatenate(list(group_weights(groups, 200, 4))):
        drawn = np.repeat(values, weights.astype(int))
        means.append(np.nanmean(drawn))
    got = mean_interval(values, groups, resamples=200, level=0.9, seed=4)
    np.testing.assert_allclose(got, np.quantile(means, [0.05, 0.95]))


def test_one_group_gives_a_mean_no_interval():
    assert np.isnan(mean_interval([0.5, 1.0], ["one", "one"])).all()


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_resample_that_lacks_a_class_is_left_out_of_means_over_classes(multilabel):
    """Class c has one case, which is scored last of all; without it the mean over a and b is perfect."""
    target = np.array([0] * 10 + [1] * 10 + [2])
    scores = np.eye(3)[target] * 0.9
    scores[-1] = [0.05, 0.05, 0.0]
    scores[:-1, 2] += 0.02
    labels = np.eye(3, dtype=int)[target] if multilabel else target
    groups = [f"patient {index}" for index in range(21)]
    samples = group_samples(scores, labels, groups, CLASSES, multilabel, resamples=200)
    has_c = np.concatenate(list(group_weights(groups, 200, 0)))[:, -1] > 0
    for name in ("mAP", "mAUC", "mS2", "F1"):
        assert (np.isnan(samples[name]) == ~has_c).all(), name
    assert not np.isnan(samples["accuracy"]).any()
    assert group_intervals(scores, labels, groups, CLASSES, multilabel)["mAP"][1] < 0.8


def test_the_interval_of_many_rare_classes_holds_the_score_or_is_none():
    for seed in range(8):
        generator = np.random.default_rng(seed)
        target = (generator.random((17, 14)) < 0.15).astype(int)
        scores = np.clip(generator.random((17, 14)) * 0.8 + 0.2 * target, 0, 1)
        names = [str(index) for index in range(17)]
        observed = weighted_scores(scores, target, np.ones((1, 17)))
        bounds = group_intervals(scores, target, names, names[:14], True, resamples=300)
        for name in ("mAP", "mAUC", "mS2", "F1"):
            low, high = bounds[name]
            assert math.isnan(low) or low <= observed[name][0] <= high, (seed, name)


def test_too_few_resamples_with_every_class_give_no_interval():
    """Each class is one patient's, so few resamples of six have all."""
    groups = [f"patient {index}" for index in range(6)]
    classes = list("abcdef")
    bounds = group_intervals(np.eye(6), np.arange(6), groups, classes, False)
    for name in ("mAP", "mAUC", "mS2", "F1"):
        assert all(map(math.isnan, bounds[name])), name
    assert not any(map(math.isnan, bounds["accuracy"]))
