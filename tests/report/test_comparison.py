"""Differences, their errors and their words, against plain loops written from the definitions."""

import itertools
import math
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from contestants import contestants, predictions, softmax
from scipy import stats
from sklearn.metrics import accuracy_score, average_precision_score

from fusionbench.errors import UserError
from fusionbench.metrics import HEADLINE
from fusionbench.report.comparison import Method, compare
from fusionbench.report.contrast import Contrast, holm
from fusionbench.report.methods import align
from fusionbench.report.resampling import resample_each, seed_weights
from fusionbench.report.verdicts import judge

ABC = ["a", "b", "c"]
QUICK = {"resamples": 100, "seed": 7}


def plain_scores(method, weights, metric):
    """Return each seed's metric of one resample, by scikit-learn."""
    scores = []
    for table in method.runs:
        probabilities, target = table[[f"prob.{c}" for c in ABC]].to_numpy(), table["target"].to_numpy()
        if metric == "accuracy":
            scores.append(accuracy_score(target, probabilities.argmax(1), sample_weight=weights))
        else:
            by_class = [
                average_precision_score(target == k, probabilities[:, k], sample_weight=weights)
                for k in range(3)
                if weights[target == k].sum() > 0
            ]
            scores.append(np.mean(by_class))
    return np.array(scores)


def plain_contrast(first, second, metric, resamples, seed):
    """Return the difference, and for groups and seeds the standard error and degrees of freedom, by a loop."""
    groups = first.runs[0]["group"].to_numpy()
    names = list(dict.fromkeys(groups))
    counts = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), size=resamples)
    shares = {len(m.seeds): seed_weights(m.seeds, resamples, seed) for m in (first, second)}
    groups_only, both = [], []
    for r in range(resamples):
        weights = np.array([counts[r][names.index(group)] for group in groups], dtype=float)
        a, b = (plain_scores(method, weights, metric) for method in (first, second))
        groups_only.append(a.mean() - b.mean())
        both.append(shares[len(a)][r] @ a - shares[len(b)][r] @ b)
    once = np.ones(len(groups))
    difference = plain_scores(first, once, metric).mean() - plain_scores(second, once, metric).mean()
    size = len(names)
    of_groups, of_both = (np.var(v, ddof=1) * size / (size - 1) for v in (groups_only, both))
    gaps = plain_scores(first, once, metric) - plain_scores(second, once, metric)
    of_seeds = max(of_both - of_groups, np.var(gaps, ddof=1) / len(gaps)) if len(gaps) > 1 else 0
    return difference, (max(np.sqrt(of_groups), 1 / (size + 2)), size - 1), (np.sqrt(of_seeds), max(len(gaps) - 1, 1))


@pytest.mark.parametrize(("metric", "seeds"), [("mAP", (0,)), ("accuracy", (0, 1, 2))])
def test_against_a_plain_loop(metric, seeds):
    methods = contestants({"good": 1.5, "poor": 0.8}, seeds=seeds, cases=40, groups=20)
    difference, *errors = plain_contrast(*methods, metric, 100, 7)

    def half_width(tail):
        return math.sqrt(sum((stats.t.isf(tail, freedom) * error) ** 2 for error, freedom in errors))

    found = compare(methods, ABC, False, metric=metric, resamples=100, seed=7).pairs[0]
    assert (found.a, found.b) == ("good", "poor")
    assert found.difference == pytest.approx(difference)
    assert half_width(found.p / 2) == pytest.approx(abs(difference))
    half = half_width(0.025)
    assert (found.low, found.high) == pytest.approx((difference - half, difference + half))
    assert found.detectable == pytest.approx(half + half_width(0.2))


def test_one_seed_has_an_interval_and_says_what_it_leaves_out():
    comparison = compare(contestants({"a": 1.5, "b": 1.5}), ABC, False)
    pair = comparison.pairs[0]
    assert pair.low < pair.difference < pair.high
    assert comparison.notes == (
        "One seed of each method: the intervals hold for the trained models, not for training them again.",
    )
    assert compare(contestants({"a": 1.5, "b": 1.5}, seeds=(0, 1)), ABC, False).notes == ()


@pytest.mark.parametrize("metric", HEADLINE)
def test_a_perfect_or_equal_score_has_no_interval_of_width_0(metric):
    target = np.arange(30) % 3
    perfect = Method("a", (predictions(np.eye(3)[target], target, range(30)),), (0,))
    comparison = compare([perfect, replace(perfect, name="b")], ABC, False, metric=metric)
    score, low, high = comparison.scores["a"]
    assert high - low > 0.05
    assert low <= score <= high
    pair = comparison.pairs[0]
    assert (pair.difference, pair.p, pair.verdict) == (0, 1, "too few cases")
    assert pair.high == pytest.approx(stats.t.ppf(0.975, 29) / 32)


def test_lower_calibration_error_is_better():
    target = np.arange(300) % 3
    generator = np.random.default_rng(0)
    sure = np.where(generator.random(300) < 0.6, target, (target + 1) % 3)
    far, near = (softmax(scale * np.eye(3)[sure]) for scale in (6.0, 1.1))
    methods = [Method(name, (predictions(p, target, range(300)),), (0,)) for name, p in (("far", far), ("near", near))]
    pair = compare(methods, ABC, False, metric="ECE").pairs[0]
    assert pair.difference > 0.2
    assert pair.verdict == "worse"


def test_words():
    def word(difference, error, p_holm, metric="mAP"):
        found = Contrast(difference, error, 1e6)
        return judge("a", "b", found, p_holm, metric=metric, margin=0.02, level=0.95, family=1).verdict

    assert word(0.1, 0.01, 0.049) == "better"
    assert word(-0.1, 0.01, 0.049) == "worse"
    assert word(0.1, 0.01, 0.049, "ECE") == "worse"
    assert word(0.1, 0.01, 0.0501) == "too few cases"
    assert word(0.01, 0.005, 0.06) == "tied"
    assert word(-0.01, 0.005, 0.06) == "tied"
    assert word(0.011, 0.005, 0.06) == "too few cases"
    assert word(math.nan, math.nan, 1.0) == "too few cases"


def test_p_values_are_adjusted_for_all_pairs():
    found = [0.001, 0.04, 0.03, 0.5]
    assert holm(found) == pytest.approx([0.004, 0.09, 0.09, 0.5])
    assert holm([]) == []
    methods = contestants({"a": 0.5, "b": 1.1, "c": 2.0})
    comparison = compare(methods, ABC, False)
    assert [(pair.a, pair.b) for pair in comparison.pairs] == list(itertools.combinations("abc", 2))
    assert [pair.p_holm for pair in comparison.pairs] == pytest.approx(holm([pair.p for pair in comparison.pairs]))
    one = compare(methods, ABC, False, pairs=[("c", "a")])
    assert one.pairs[0].p_holm == one.pairs[0].p == comparison.pairs[1].p
    assert one.pairs[0].difference == -comparison.pairs[1].difference
    assert one.pairs[0].detectable < comparison.pairs[1].detectable
    assert compare(methods, ABC, False, pairs=[]).scores == comparison.scores


def test_sixty_six_pairs_can_still_be_significant():
    methods = contestants({f"m{number}": 0.2 if number else 4.0 for number in range(12)}, cases=90, groups=45)
    words = [pair.verdict for pair in compare(methods, ABC, False, resamples=200).pairs]
    assert words[:11] == ["better"] * 11


def test_repeated_cases_of_a_patient_make_nothing_surer():
    methods = contestants({"a": 1.0, "b": 1.4}, cases=60, groups=60)
    thrice = []
    for method in methods:
        copies = [method.runs[0].assign(case=lambda t, c=c: t["case"] + f"-{c}") for c in range(3)]
        thrice.append(replace(method, runs=(pd.concat(copies, ignore_index=True),)))
    once, more = (compare(made, ABC, False).pairs[0] for made in (methods, thrice))
    assert (more.low, more.high) == pytest.approx((once.low, once.high))


def test_the_order_of_rows_seeds_and_other_splits_change_nothing():
    methods = contestants({"a": 1.0, "b": 1.4}, seeds=(0, 1))
    changed = []
    for method in methods:
        tables = [table.sample(frac=1, random_state=3) for table in method.runs]
        tables[0] = tables[0] if changed else method.runs[0]  # the order that all are brought into
        tables = [pd.concat([table.assign(split="val"), table]) for table in tables]
        changed.append(replace(method, runs=tuple(tables[::-1]), seeds=method.seeds[::-1]))
    assert compare(methods, ABC, False) == compare(changed, ABC, False)


def test_how_ids_are_hashed_changes_nothing():
    methods = contestants({"a": 1.0, "b": 1.4})

    def hashed(ids, key):
        return ids.map(lambda name: f"{zlib.crc32((key + name).encode()):08x}")

    one, other = (
        [
            replace(m, runs=tuple(t.assign(case=hashed(t["case"], key), group=hashed(t["group"], key)) for t in m.runs))
            for m in methods
        ]
        for key in ("key", "another")
    )
    assert align(one, ABC, False).groups[:2] == ("000000000", "000000001")
    assert compare(one, ABC, False) == compare(other, ABC, False) == compare(methods, ABC, False)


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_resample_without_a_rare_class_is_left_out_of_means_over_classes(multilabel):
    (method,) = contestants({"a": 1.0}, cases=40, groups=40)
    target = np.where(np.arange(40) == 7, 2, np.arange(40) % 2)  # class c has one case
    columns = {f"target.{label}": (target == k).astype(int) for k, label in enumerate(ABC)}
    table = method.runs[0].drop(columns="target").assign(**(columns if multilabel else {"target": target}))
    aligned = align([replace(method, runs=(table,))], ABC, multilabel)
    found = {name: draws.by_group["a"][:, 0] for name, draws in resample_each(aligned, HEADLINE, **QUICK).items()}
    counts = np.random.default_rng(QUICK["seed"]).multinomial(40, [1 / 40] * 40, size=QUICK["resamples"])
    lost = counts[:, 7] == 0
    for name in ("mAP", "mAUC", "mS2", "F1"):
        np.testing.assert_array_equal(np.isnan(found[name]), lost)
    assert np.isfinite([found["accuracy"], found["ECE"]]).all()


def test_multilabel():
    generator = np.random.default_rng(0)
    target = generator.integers(0, 2, (80, 3))
    methods = [
        Method(
            name,
            (predictions(1 / (1 + np.exp(-(q * (target - 0.5) + generator.normal(size=(80, 3))))), target, range(80)),),
            (0,),
        )
        for name, q in (("good", 4.0), ("poor", 0.5))
    ]
    for metric in ("mAP", "accuracy"):
        assert compare(methods, ABC, True, metric=metric).pairs[0].verdict == "better"
    with pytest.raises(UserError, match="are multi-label"):
        compare(methods, ABC, False)


def test_one_patient_and_an_undefined_metric_say_nothing():
    alone = [replace(m, runs=tuple(t.assign(group="only") for t in m.runs)) for m in contestants({"a": 1.0, "b": 3.0})]
    comparison = compare(alone, ABC, False)
    assert comparison.pairs[0].verdict == "too few cases"
    assert math.isnan(comparison.pairs[0].detectable)
    assert math.isnan(comparison.scores["a"][1])
    assert "one group only" in comparison.notes[1]
    one_class = [replace(m, runs=tuple(t.assign(target=0) for t in m.runs)) for m in contestants({"a": 1.0, "b": 3.0})]
    comparison = compare(one_class, ABC, False, metric="mAUC")
    assert (comparison.pairs[0].p_holm, comparison.pairs[0].verdict) == (1, "too few cases")
    assert "undefined for a, b" in comparison.notes[1]


def test_few_groups_are_too_few_whatever_the_scores():
    far = {"a": 20.0, "b": -20.0}
    assert compare(contestants(far, cases=45, groups=9), ABC, False).pairs[0].verdict == "too few cases"
    pair = compare(contestants(far, cases=50, groups=10), ABC, False).pairs[0]
    assert pair.verdict == "better"
    assert -1 <= pair.low <= pair.high <= 1
    assert compare(contestants(far, cases=9, groups=3), ABC, False).pairs[0].high == 1
