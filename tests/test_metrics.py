"""Metrics against scikit-learn and plain loops, degenerate input included."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from fusionbench.errors import UserError
from fusionbench.metrics import ECE_BINS, HEADLINE, check_metric, evaluate


def plain_ece(confidence, hit):
    """Sum over bins (lo, hi] of share * |confidence - accuracy|, one case at a time."""
    total = 0.0
    for index in range(ECE_BINS):
        lo, hi = index / ECE_BINS, (index + 1) / ECE_BINS
        members = [(c, h) for c, h in zip(confidence, hit, strict=True) if lo < c <= hi or (index == 0 and c == 0)]
        total += abs(sum(c - h for c, h in members)) / len(confidence)
    return total


def plain_scores(scores, truth, decided):
    """One class against the rest by scikit-learn, on a class with cases of both kinds."""
    sensitivity = reference.recall_score(truth, decided)
    specificity = reference.recall_score(1 - truth, 1 - decided)
    both = sensitivity + specificity
    return {
        "AP": reference.average_precision_score(truth, scores),
        "AUC": reference.roc_auc_score(truth, scores),
        "S2": 2 * sensitivity * specificity / both if both else 0.0,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "F1": reference.f1_score(truth, decided, zero_division=0),
    }


def multiclass(cases, labels, seed, ties=False, absent=None):
    generator = np.random.default_rng(seed)
    target = generator.choice([k for k in range(labels) if k != absent], cases)
    scores = generator.dirichlet(np.ones(labels), cases) + np.eye(labels)[target] * generator.random((cases, 1))
    scores = scores / scores.sum(axis=1, keepdims=True)
    return (scores.round(1) if ties else scores), target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("labels", "ties", "absent"), [(2, False, None), (2, True, None), (4, True, None), (5, True, 3)]
)
def test_multiclass_equals_scikit_learn(labels, ties, absent, dtype):
    scores, target = multiclass(60, labels, seed=labels, ties=ties, absent=absent)
    names = [f"class {k}" for k in range(labels)]
    result = evaluate(torch.tensor(scores, dtype=dtype), torch.tensor(target), names, multilabel=False)
    decided = scores.argmax(axis=1)
    present = [k for k in range(labels) if k != absent]
    by_class = {k: plain_scores(scores[:, k], (target == k).astype(int), (decided == k).astype(int)) for k in present}
    for k, wanted in by_class.items():
        for metric, value in wanted.items():
            assert result[f"{metric}/class {k}"] == pytest.approx(value, abs=1e-6), (metric, k)
    assert result["mAP"] == pytest.approx(np.mean([row["AP"] for row in by_class.values()]), abs=1e-6)
    assert result["mAUC"] == pytest.approx(np.mean([row["AUC"] for row in by_class.values()]), abs=1e-6)
    assert result["mS2"] == pytest.approx(np.mean([row["S2"] for row in by_class.values()]))
    assert result["accuracy"] == pytest.approx(reference.accuracy_score(target, decided))
    assert result["F1"] == pytest.approx(reference.f1_score(target, decided, labels=present, average="macro"))
    assert list(result)[: len(HEADLINE)] == list(HEADLINE)


def test_absent_class_is_nan_and_left_out():
    scores, target = multiclass(60, 3, seed=1, absent=2)
    result = evaluate(torch.tensor(scores), torch.tensor(target), ["a", "b", "c"], multilabel=False)
    assert all(math.isnan(result[f"{metric}/c"]) for metric in ("AP", "AUC", "S2", "sensitivity", "F1"))
    assert result["specificity/c"] == pytest.approx((scores.argmax(axis=1) != 2).mean())
    assert result["mAP"] == pytest.approx((result["AP/a"] + result["AP/b"]) / 2)


def test_two_classes_give_both_views():
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45], [0.1, 0.9]])
    result = evaluate(probabilities, torch.tensor([0, 0, 0, 1, 1]), ["benign", "malignant"], multilabel=False)
    assert result["AP/benign"] != pytest.approx(result["AP/malignant"])
    assert result["sensitivity/benign"] == result["specificity/malignant"] == pytest.approx(2 / 3)
    assert result["sensitivity/malignant"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("labels", [1, 2, 4])
def test_multilabel_equals_scikit_learn(labels):
    generator = np.random.default_rng(labels)
    truth = generator.integers(0, 2, (50, labels))
    scores = (generator.random((50, labels)) * 0.7 + truth * 0.3).round(1)
    decided = (scores > 0.5).astype(int)
    names = [f"finding {k}" for k in range(labels)]
    result = evaluate(torch.tensor(scores), torch.tensor(truth, dtype=torch.float32), names, multilabel=True)
    rows = [plain_scores(scores[:, k], truth[:, k], decided[:, k]) for k in range(labels)]
    for k, row in enumerate(rows):
        for metric, value in row.items():
            assert result[f"{metric}/finding {k}"] == pytest.approx(value, abs=1e-6), (metric, k)
    assert result["F1"] == pytest.approx(np.mean([row["F1"] for row in rows]))
    assert result["accuracy"] == pytest.approx((decided == truth).mean())
    assert result["ECE"] == pytest.approx(np.mean([plain_ece(scores[:, k], truth[:, k]) for k in range(labels)]))


def test_multilabel_class_without_negatives():
    result = evaluate(torch.tensor([[0.8], [0.2]]), torch.tensor([[1], [1]]), ["finding"], multilabel=True)
    assert result["AP/finding"] == 1
    assert result["sensitivity/finding"] == 0.5
    assert all(math.isnan(result[f"{metric}/finding"]) for metric in ("AUC", "specificity", "S2"))
    assert math.isnan(result["mAUC"])


def test_half_is_no():
    result = evaluate(torch.tensor([[0.5], [0.5]]), torch.tensor([[1], [0]]), ["finding"], multilabel=True)
    assert result["sensitivity/finding"] == 0
    assert result["specificity/finding"] == 1


def test_s2_is_zero_when_both_rates_are():
    result = evaluate(torch.tensor([[0.9, 0.1], [0.1, 0.9]]), torch.tensor([1, 0]), ["a", "b"], multilabel=False)
    assert result["S2/a"] == result["mS2"] == 0


def test_one_case():
    result = evaluate(torch.tensor([[0.2, 0.7, 0.1]]), torch.tensor([1]), ["a", "b", "c"], multilabel=False)
    assert result["accuracy"] == result["mAP"] == result["F1"] == 1
    assert math.isnan(result["mAUC"])
    assert math.isnan(result["mS2"])
    assert result["ECE"] == pytest.approx(0.3)


def test_calibration_takes_the_top_class():
    scores, target = multiclass(80, 3, seed=3)
    result = evaluate(torch.tensor(scores), torch.tensor(target), ["a", "b", "c"], multilabel=False)
    assert result["ECE"] == pytest.approx(plain_ece(scores.max(axis=1), scores.argmax(axis=1) == target))


def test_calibration_bins_include_their_upper_edge():
    # 0.6 = 9 / 15 is the upper edge of the ninth bin, the next case lies in the tenth.
    scores = torch.tensor([[0.6], [9.5 / 15], [0.0]], dtype=torch.float64)
    result = evaluate(scores, torch.tensor([[0], [1], [0]]), ["a"], multilabel=True)
    assert result["ECE"] == pytest.approx((0.6 + (1 - 9.5 / 15)) / 3)


@pytest.mark.parametrize(
    ("probabilities", "target", "multilabel", "said"),
    [
        (torch.full((2, 2), torch.nan), torch.tensor([0, 1]), False, "nan"),
        (torch.tensor([[3.0, -1.0]]), torch.tensor([0]), False, "softmax"),
        (torch.full((2, 2), 0.5), torch.tensor([0, -1]), False, "unknown"),
        (torch.full((2, 2), 0.5), torch.tensor([0, 2]), False, "0 to 1"),
        (torch.full((1, 2), 0.5), torch.tensor([[0.0, -1.0]]), True, "0 and 1"),
        (torch.full((2, 3), 0.5), torch.tensor([0, 1]), False, r"\(2, 3\)"),
        (torch.full((2, 2), 0.5), torch.tensor([0, 1]), True, r"\(2, 2\)"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), False, "no case"),
    ],
)
def test_refuses_what_cannot_be_scored(probabilities, target, multilabel, said):
    with pytest.raises(UserError, match=said):
        evaluate(probabilities, target, ["a", "b"], multilabel)


def test_unknown_metric_names_the_nearest():
    check_metric("mAUC")
    check_metric("AP/wet", classes=["dry", "wet"])
    with pytest.raises(UserError, match="unknown metric 'mAOC'; did you mean 'mAUC'"):
        check_metric("mAOC")
    with pytest.raises(UserError, match="did you mean 'AP/wet'"):
        check_metric("AP/wett", classes=["dry", "wet"])
    with pytest.raises(UserError, match="unknown metric 'AP/wet'"):
        check_metric("AP/wet")


def test_names_need_no_torch():
    code = "import sys, fusionbench.metrics; sys.exit(bool({'torch', 'torchmetrics', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
