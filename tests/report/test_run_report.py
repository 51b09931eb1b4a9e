import json
import math

import numpy as np
import pandas as pd
import pytest

from fusionbench.errors import UserError
from fusionbench.metrics import HEADLINE
from fusionbench.report.run_report import summarise
from fusionbench.results import Method, Result

CLASSES = ["benign", "malignant", "absent"]


@pytest.fixture
def table():
    """Two splits; validation is scored perfectly, test is not; the last test cases lack shape."""
    generator = np.random.default_rng(0)
    target = np.tile([0, 1], 30)
    good, poor = np.eye(3)[target] * 0.9, generator.dirichlet(np.ones(3), 60)
    columns = {
        "case": [str(index) for index in range(60)],
        "group": [str(index // 3) for index in range(60)],
        "split": ["val"] * 30 + ["test"] * 30,
        "target": target,
        "present.shape": [True] * 50 + [False] * 10,
        "weight.shape": 0.5,
    }
    for k, name in enumerate(CLASSES):
        columns[f"prob.{name}"] = np.where(np.arange(60) < 30, good[:, k], poor[:, k])
        columns[f"branch.primary/shape.{name}"] = np.where(np.arange(60) < 50, good[:, k], np.nan)
    return pd.DataFrame(columns)


def test_scores_only_the_test_split(table, tmp_path):
    summary = summarise(table, CLASSES, False, tmp_path / "report")
    assert summary.scores["accuracy"] < 0.8
    assert math.isnan(summary.scores["AP/absent"])
    low, high = summary.intervals["accuracy"]
    assert low < summary.scores["accuracy"] < high


def test_branches_are_scored_where_they_saw_something(table, tmp_path):
    summary = summarise(table, CLASSES, False, tmp_path)
    assert summary.scores["branch/primary/shape/cases"] == 20
    assert summary.scores["branch/primary/shape/mAP"] == 1
    assert summary.intervals["branch/primary/shape/mAP"] == (1, 1)


def test_files_are_whole(table, tmp_path):
    summary = summarise(table, CLASSES, False, tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (content["cases"], content["groups"], content["split"]) == (30, 10, "test")
    assert content["scores"]["mAP"] == summary.scores["mAP"]
    assert content["scores"]["AP/absent"] is None
    assert set(content["intervals"]) >= set(HEADLINE)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in summary.figures} | {"metrics.json"}


def test_same_seed_same_summary(table, tmp_path):
    first, second = (summarise(table, CLASSES, False, tmp_path, seed=7) for _ in range(2))
    assert first.intervals == second.intervals
    assert first.intervals != summarise(table, CLASSES, False, tmp_path, seed=8).intervals


def test_no_test_case(table, tmp_path):
    with pytest.raises(UserError, match="no case of split 'test'"):
        summarise(table[table["split"] == "val"], CLASSES, False, tmp_path)


def test_branch_that_saw_nothing(table, tmp_path):
    table["present.shape"] = False
    summary = summarise(table, CLASSES, False, tmp_path)
    assert summary.scores["branch/primary/shape/cases"] == 0
    assert "branch/primary/shape/mAP" not in summary.scores


def result(name, accuracy, cases=30):
    scores, bounds = {"accuracy": accuracy, "AP/benign": 0.3}, {"accuracy": (0.1, 0.9), "AP/benign": (0.0, 1.0)}
    return Result(name, f"{name}-run-id", f"{name} alone", scores, bounds, 77, cases, 10)


def test_a_text_alone_stands_beside_the_fusion(table, tmp_path):
    plain = summarise(table, CLASSES, False, tmp_path / "plain")
    beside = summarise(table, CLASSES, False, tmp_path / "beside", text_only={"report": result("report", 0.625)})
    added = beside.scores.keys() - plain.scores.keys()
    assert added == {f"text_only/{name}" for name in HEADLINE}
    assert beside.scores["text_only/accuracy"] == 0.625
    assert math.isnan(beside.scores["text_only/mAP"])
    assert beside.intervals.keys() - plain.intervals.keys() == {"text_only/accuracy"}
    shown = (tmp_path / "beside" / "text_only.md").read_text()
    assert "| report alone | " in shown
    assert "0.62 [0.10, 0.90]" in shown
    assert f"| fusion | {plain.scores['mAP']:.2f}" in shown.replace("**", "")
    assert not (tmp_path / "plain" / "text_only.md").exists()


def test_several_texts_alone_are_told_apart(table, tmp_path):
    texts = {"report": result("report", 0.625), "letter": result("letter", 0.5, cases=12)}
    scores = summarise(table, CLASSES, False, tmp_path, text_only=texts).scores
    assert (scores["text_only/report/accuracy"], scores["text_only/letter/accuracy"]) == (0.625, 0.5)
    assert "text_only/accuracy" not in scores
    assert "| letter alone (only 12 cases) |" in (tmp_path / "text_only.md").read_text()


def test_further_scores_are_means_over_the_cases_that_have_one(table, tmp_path):
    dice = np.where(np.arange(60) % 3 == 0, np.linspace(0.2, 0.9, 60), np.nan)
    answer = np.where(np.arange(60) % 5 == 0, -1, table["target"])
    summary = summarise(table.assign(**{"score.dice": dice, "answer": answer}), CLASSES, False, tmp_path)
    assert summary.scores["dice"] == pytest.approx(np.nanmean(dice[30:]))
    assert summary.scores["dice/cases"] == 10
    assert summary.scores["answer_accuracy"] == pytest.approx(0.8)
    assert summary.scores["answer_none"] == pytest.approx(0.2)
    assert summary.intervals["dice"][0] < summary.scores["dice"] < summary.intervals["dice"][1]
    assert json.loads((tmp_path / "metrics.json").read_text())["intervals"]["answer_accuracy"][0] < 0.8


def test_a_score_that_no_test_case_has(table, tmp_path):
    summary = summarise(table.assign(**{"score.dice": np.nan}), CLASSES, False, tmp_path)
    assert math.isnan(summary.scores["dice"])
    assert summary.scores["dice/cases"] == 0
    assert all(math.isnan(bound) for bound in summary.intervals["dice"])


def test_the_text_table_names_the_fusion_its_run_and_what_is_read(table, tmp_path):
    method = Method("concat, label_free text", 1234, "0123456789abcdef", "label_free")
    summarise(table, CLASSES, False, tmp_path, text_only={"report": result("report", 0.625)}, method=method)
    shown = (tmp_path / "text_only.md").read_text()
    line = next(line for line in shown.splitlines() if line.startswith("| concat, label_free text |"))
    assert line.endswith("| 1.2K | `01234567` |")
    assert shown.endswith("Content of the texts (data.text.content): label_free.\n")
