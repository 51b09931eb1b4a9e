"""Figures on disk, and what the drawing holds: curves, counts, words for what is not drawn."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from fusionbench.report.curves import draw_calibration, draw_pr, draw_roc, reliability
from fusionbench.report.figures import draw
from fusionbench.report.matrices import draw_answer_confusion, draw_confusion, draw_label_confusions
from fusionbench.report.weights import draw_gate_weights

CLASSES = ["no AMD", "dry AMD", "costs $5_", "absent"]


def table(multilabel, gate=True, cases=40):
    generator = np.random.default_rng(0)
    target = generator.integers(0, 3, cases)
    truth = generator.integers(0, 2, (cases, 4)) * [1, 1, 1, 0] if multilabel else np.eye(4, dtype=int)[target]
    scores = generator.random((cases, 4)) + truth
    scores = scores / 2 if multilabel else scores / scores.sum(axis=1, keepdims=True)
    columns = {"case": range(cases), "group": [f"g{i // 2}" for i in range(cases)], "split": "test"}
    columns |= {f"target.{c}": truth[:, k] for k, c in enumerate(CLASSES)} if multilabel else {"target": target}
    columns |= {f"prob.{c}": scores[:, k] for k, c in enumerate(CLASSES)}
    if gate:
        columns |= {"weight.cfp": generator.random(cases), "present.cfp": generator.random(cases) > 0.2}
    return pd.DataFrame(columns), scores, truth


def words(figure):
    return " | ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("multilabel", [False, True])
def test_files(tmp_path, multilabel):
    paths = draw(table(multilabel)[0], CLASSES, multilabel, tmp_path / "new")
    assert [path.stem for path in paths] == ["roc", "pr", "confusion", "calibration", "gate_weights"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 500


def test_no_gate_no_weights(tmp_path):
    names = [path.name for path in draw(table(False, gate=False)[0], CLASSES, False, tmp_path)]
    assert "gate_weights.png" not in names


def test_one_case(tmp_path):
    assert len(draw(table(False)[0].head(1), CLASSES, False, tmp_path)) == 5


@pytest.mark.parametrize("drawn", [draw_roc, draw_pr])
def test_absent_class_is_said(drawn):
    _, scores, truth = table(False)
    figure = drawn(scores, truth, CLASSES, "40 cases of 20 groups")
    assert "absent: no case, not drawn" in words(figure)
    assert "40 cases of 20 groups" in words(figure)


def test_area_below_the_drawn_steps_is_the_score():
    _, scores, truth = table(False)
    line = next(line for line in draw_pr(scores, truth, CLASSES, "").axes[0].lines if "no AMD" in str(line.get_label()))
    assert line.get_drawstyle() == "steps-post"
    recall, precision = line.get_data()
    area = float(-(np.diff(recall) * precision[:-1]).sum())
    assert area == pytest.approx(average_precision_score(truth[:, 0], scores[:, 0]))
    assert f"AP {area:.2f}" in str(line.get_label())


def test_confusion_shows_fractions_and_counts():
    figure = draw_confusion(np.array([0, 1, 1, 1]), np.array([0, 0, 0, 1]), [*CLASSES[:2], "absent"], "")
    assert "0.33\n(1)" in words(figure)
    assert "0.67\n(2)" in words(figure)
    assert "1.00\n(1)" in words(figure)
    assert words(figure).count("no case") == 3


def test_label_confusions_decide_above_half():
    figure = draw_label_confusions(np.array([[0.5], [0.6], [0.1]]), np.array([[1], [1], [0]]), ["a"], "")
    assert words(figure).count("0.50\n(1)") == 2
    assert "1.00\n(1)" in words(figure)


def test_reliability():
    confidence, frequency, count, error = reliability(np.array([0.6, 0.6, 0.95]), np.array([1, 0, 1]))
    np.testing.assert_allclose(confidence, [0.6, 0.95])
    np.testing.assert_allclose(frequency, [0.5, 1.0])
    np.testing.assert_array_equal(np.flatnonzero(count), [8, 14])
    assert error == pytest.approx((2 * 0.1 + 0.05) / 3)


def test_calibration_has_a_curve_for_each_label_or_one():
    _, scores, truth = table(True)
    assert len(draw_calibration(scores, truth, CLASSES, True, "").axes[0].lines) == 1 + len(CLASSES)
    assert len(draw_calibration(scores, truth, CLASSES, False, "").axes[0].lines) == 2


def test_gate_weights_leave_absent_modalities_out():
    weights = pd.DataFrame({"cfp": [0.2, 0.4, np.nan], "oct": [0.8, 0.6, 1.0]})
    figure = draw_gate_weights(weights, np.array([[1, 0], [1, 0], [0, 1]]), ["a", "b"], "")
    black = [line for line in figure.axes[0].lines if line.get_color() == "black" and line.get_linestyle() == "-"]
    medians = [line.get_ydata()[0] for line in black]
    assert medians == pytest.approx([0.3, 0.7, 1.0])


def test_pyplot_stays_out():
    code = "import sys, fusionbench.report.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_answers_have_a_column_for_those_that_name_no_class(tmp_path):
    figure = draw_answer_confusion(np.array([0, 1, -1, -1]), np.array([0, 0, 0, 1]), CLASSES[:2], "")
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["no AMD", "dry AMD", "None"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["no AMD\n(n = 3)", "dry AMD\n(n = 1)"]
    cells = [text.get_text() for text in axes.texts]
    assert cells == ["0.33\n(1)", "0.33\n(1)", "0.33\n(1)", "0.00\n(0)", "0.00\n(0)", "1.00\n(1)"]
    drawn, *_ = table(False)
    paths = draw(drawn.assign(answer=-1), CLASSES, False, tmp_path)
    assert "confusion" in {path.stem for path in paths}
