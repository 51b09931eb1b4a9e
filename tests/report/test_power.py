"""What a split can show, against the formula by hand and against simulation."""

import math

import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import roc_auc_score
from test_verdict_simulation import found_in

from fusionbench.errors import UserError
from fusionbench.report.power import Assumptions, Split, hanley_mcneil, plan

TWO = Split([1.0] * 100, {"ill": 40, "well": 60})


def by_metric(split, **assumed):
    return {one.metric: one.difference for one in plan(split, Assumptions(**assumed))}


def test_against_the_formula_by_hand():
    spread = 0.16 + 39 * (0.8 / 1.2 - 0.64) + 59 * (2 * 0.64 / 1.8 - 0.64)
    error = math.sqrt(spread / 2400)
    assert hanley_mcneil(0.8, 40, 60) == pytest.approx(error)
    z = t.ppf(0.975, 99) + t.ppf(0.8, 99)
    found = by_metric(TWO)
    assert found["AUC/ill"] == pytest.approx(z * error)
    assert found["accuracy"] == pytest.approx(z * 0.04)
    assert found["mAUC"] == pytest.approx(z * (error + hanley_mcneil(0.8, 60, 40)) / 2)
    many = by_metric(TWO, methods=12)
    assert many["accuracy"] / found["accuracy"] == pytest.approx((t.ppf(1 - 0.025 / 66, 99) + t.ppf(0.8, 99)) / z)


def test_groups_are_worth_less_than_cases():
    assert Split([2.0] * 50, {}).design_effect(1) == 2
    assert Split([1.0] * 50 + [50.0], {}).design_effect(0.5) == pytest.approx(1 + (2550 / 100 - 1) / 2)
    pairs = Split([2.0] * 50, TWO.members)
    surer = (t.ppf(0.975, 99) + t.ppf(0.8, 99)) / (t.ppf(0.975, 49) + t.ppf(0.8, 49))  # more groups, more freedom
    found, alone = by_metric(pairs, icc=1.0)["accuracy"] * surer, by_metric(TWO, icc=1.0)["accuracy"]
    assert found == pytest.approx(math.sqrt(2) * alone)
    assert by_metric(pairs, icc=0.0)["accuracy"] * surer == pytest.approx(by_metric(TWO)["accuracy"])


def test_a_class_without_cases_has_no_answer_and_the_others_have():
    found = by_metric(Split([1.0] * 10, {"a": 4, "b": 6, "c": 0}))
    assert math.isnan(found["AUC/c"])
    assert found["mAUC"] > 0
    assert math.isnan(by_metric(Split([1.0], {"a": 1, "b": 0}))["mAUC"])
    with pytest.raises(UserError, match="no case"):
        plan(Split([], {}), Assumptions())


@pytest.mark.parametrize(
    "options", [{"score": 1.0}, {"score": 0.4}, {"correlation": 1.0}, {"icc": 2.0}, {"methods": 1}]
)
def test_refuses(options):
    with pytest.raises(UserError, match=f"'{next(iter(options))}' must be"):
        Assumptions(**options)


def auc_errors(cases, classes, draws):
    """Return the spread of the mean AUC and of one class's over test splits drawn anew."""
    found = []
    for draw in range(draws):
        generator = np.random.default_rng(draw)
        target = np.arange(cases) % classes
        logits = generator.normal(size=(cases, classes)) + 1.2 * np.eye(classes)[target]
        scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        found.append([roc_auc_score(target == k, scores[:, k]) for k in range(classes)])
    return np.mean(found, axis=1).std(), np.std(found, axis=0).mean()


@pytest.mark.parametrize("classes", [2, 4])
def test_the_mean_over_classes_is_not_taken_for_surer_than_it_is(classes):
    of_mean, of_class = auc_errors(80, classes, 120)
    split = Split([1.0] * 80, {str(k): 80 / classes for k in range(classes)})
    found = by_metric(split)
    assert of_mean / of_class <= 1.1 * found["mAUC"] / found["AUC/0"]


def test_the_simulation_agrees():
    difference = by_metric(Split([1.0] * 200, {"a": 100, "b": 100}), score=0.75, correlation=0.45)["mAUC"]
    power = found_in(120, cases=200, auc_a=0.75 + difference / 2, auc_b=0.75 - difference / 2, resamples=120)
    assert 0.68 <= power <= 0.92  # 80 % within three standard errors of 120 draws
