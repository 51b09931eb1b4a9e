import numpy as np
import pandas as pd
import pytest

from fusionbench.errors import UserError
from fusionbench.report import predictions


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "case": ["1", "2", "3"],
            "group": ["p", "p", "q"],
            "split": ["val", "test", "test"],
            "target": [0, 1, 1],
            "prob.dry.v2": [0.9, 0.2, 0.3],
            "prob.wet": [0.1, 0.8, 0.7],
            "branch.primary/oct.dry.v2": [0.5, 0.4, np.nan],
            "branch.primary/oct.wet": [0.5, 0.6, np.nan],
            "branch.auxiliary/cfp.dry.v2": [0.5, 0.4, 0.2],
            "branch.auxiliary/cfp.wet": [0.5, 0.6, 0.8],
            "weight.cfp": [0.5, 0.0, 1.0],
            "present.cfp": [True, False, True],
        }
    )


CLASSES = ["dry.v2", "wet"]


def test_columns_in_the_order_of_classes(table):
    np.testing.assert_array_equal(predictions.probabilities(table, ["wet", "dry.v2"])[1], [0.8, 0.2])
    np.testing.assert_array_equal(predictions.probabilities(table, CLASSES, "auxiliary/cfp")[2], [0.2, 0.8])
    assert predictions.groups(table) == ["p", "p", "q"]


def test_branches_whose_class_names_hold_dots(table):
    assert predictions.branches(table) == ["primary/oct", "auxiliary/cfp"]


def test_branch_cases_saw_their_modality(table):
    assert list(predictions.branch_cases(table, CLASSES, "primary/oct")["case"]) == ["1", "2"]
    assert list(predictions.branch_cases(table, CLASSES, "auxiliary/cfp")["case"]) == ["1", "3"]


def test_targets_of_both_kinds(table):
    np.testing.assert_array_equal(predictions.targets(table, CLASSES), [0, 1, 1])
    several = table.drop(columns="target").assign(**{"target.wet": [1, 0, 1], "target.dry.v2": [1, 1, 0]})
    np.testing.assert_array_equal(predictions.targets(several, CLASSES), [[1, 1], [1, 0], [0, 1]])


@pytest.mark.parametrize("bad", [-1, 2, np.nan])
def test_unknown_label_is_refused(table, bad):
    with pytest.raises(UserError, match="other than 0 to 1"):
        predictions.targets(table.assign(target=[0, 1, bad]), CLASSES)


def test_weight_of_an_absent_modality_is_nan(table):
    np.testing.assert_array_equal(predictions.gate_weights(table)["cfp"], [0.5, np.nan, 1.0])
    assert predictions.gate_weights(table.drop(columns="weight.cfp")).empty


def test_split(table):
    assert list(predictions.select_split(table, "test")["case"]) == ["2", "3"]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda t: predictions.probabilities(t, ["dry.v2", "wett"]), "'prob.wett'; did you mean 'prob.wet'"),
        (lambda t: predictions.probabilities(t, CLASSES, "primary/otc"), "'primary/otc'; did you mean 'primary/oct'"),
        (lambda t: predictions.targets(t.drop(columns="target"), CLASSES), "lack the column 'target'"),
        (lambda t: predictions.groups(t.drop(columns="group")), "lack the column 'group'"),
        (lambda t: predictions.select_split(t, "tset"), "no case of split 'tset'; did you mean 'test'"),
    ],
)
def test_what_the_table_lacks(table, ask, said):
    with pytest.raises(UserError, match=said):
        ask(table)


def test_scores_of_each_case_and_of_the_answers(table):
    table = table.assign(**{"score.dice": [0.5, np.nan, 1.0], "answer": [0, -1, 1]})
    got = predictions.case_scores(table, CLASSES)
    assert list(got) == ["dice", "answer_accuracy", "answer_none"]
    np.testing.assert_array_equal(got["dice"], [0.5, np.nan, 1.0])
    np.testing.assert_array_equal(got["answer_accuracy"], [1, 0, 1])
    np.testing.assert_array_equal(got["answer_none"], [0, 1, 0])


def test_one_named_class_is_neither_right_nor_wrong_where_there_can_be_several(table):
    several = table.drop(columns="target").assign(
        **{f"target.{name}": [0, 1, 1] for name in CLASSES}, answer=[0, -1, 1]
    )
    assert list(predictions.case_scores(several, CLASSES)) == ["answer_none"]


def test_an_answer_that_is_no_class_is_refused(table):
    assert predictions.given_answers(table, CLASSES) is None
    with pytest.raises(UserError, match=r"an answer other than -1 \(none\) to 1"):
        predictions.given_answers(table.assign(answer=[0, 2, 1]), CLASSES)
