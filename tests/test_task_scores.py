"""What a strategy scores by itself: through the task, into the validation metrics and the table of predictions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fusionbench import inference
from fusionbench.commands.predict import in_words
from fusionbench.fusion.base import Strategy
from fusionbench.fusion.criterion import CrossEntropy
from fusionbench.optim.optimizers.sgd import sgd
from fusionbench.optim.schedulers.constant import constant
from fusionbench.task import FusionTask
from fusionbench.types import Answers, Batch, ModalitySpec, Output, Problem

PROBLEM = Problem({"labs": ModalitySpec("table", columns=("a", "b"))}, ("ill", "well"), complete=True)
HERE = torch.ones(2, 1, dtype=torch.bool)
MASK = torch.tensor([0.25, float("nan")])


class Segmenting(Strategy):
    """Scores what the batch says, and answers the same class always."""

    score_names = ("dice", "overlap")

    def __init__(self) -> None:
        super().__init__(PROBLEM)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> Output:
        answers = Answers(torch.tensor([1, -1]), ["well", "ill | well"], ["all is well", "ill or well"])
        return Output(inputs["labs"] * self.scale, answers=answers)

    def scores(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        return dict(batch.extras)


def batch(names: str, **extras: Tensor) -> Batch:
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    return Batch({"labs": table}, HERE, torch.tensor([1, 1]), list(names), list(names), extras)


@pytest.fixture
def task() -> FusionTask:
    made = FusionTask(PROBLEM, Segmenting, sgd, constant, CrossEntropy())
    made.configure_model()
    made.on_validation_epoch_start()
    return made


def test_scores_are_averaged_over_the_cases_that_have_one_each_once(task) -> None:
    task.validation_step(batch("ab", dice=torch.tensor([0.25, float("nan")])), 0)
    task.validation_step(batch("cd", dice=torch.tensor([0.75, 0.5])), 1)
    task.validation_step(batch("ac", dice=torch.tensor([9.0, 9.0])), 2)
    rows = task.gathered()
    assert rows["case"] == list("abcd")
    scores = task.score(rows)
    assert scores["dice"] == pytest.approx(0.5)
    assert math.isnan(scores["overlap"])
    assert (scores["answer_accuracy"], scores["answer_none"]) == (0.5, 0.5)
    assert scores["accuracy"] == 0.5


def test_a_batch_without_scores_counts_no_case(task) -> None:
    task.validation_step(batch("ab"), 0)
    task.validation_step(batch("cd", dice=torch.tensor([0.75, 0.5])), 1)
    assert task.score(task.gathered())["dice"] == pytest.approx(0.625)


def test_each_case_is_in_the_table_of_predictions(task) -> None:
    task.validation_step(batch("ab", dice=MASK, overlap=torch.ones(2)), 0)
    table = inference.predictions(task, task.gathered(), "test")
    assert table["answer"].tolist() == [1, -1]
    assert table["answer_named"].tolist() == ["well", "ill | well"]
    assert table["answer_text"].tolist() == ["all is well", "ill or well"]
    assert table["score.dice"].isna().tolist() == [False, True]
    assert table["score.overlap"].tolist() == [1, 1]
    assert table.columns.tolist()[-5:] == ["answer", "answer_named", "answer_text", "score.dice", "score.overlap"]


def test_people_are_told_the_answers_by_the_names_of_classes(task) -> None:
    task.validation_step(batch("ab"), 0)
    table = in_words(inference.predictions(task, task.gathered(), "test"))
    assert table["answer"].tolist() == ["well", "ill | well"]
    assert table["answer_text"].tolist() == ["all is well", "ill or well"]
    assert "answer_named" not in table.columns
    assert in_words(table[["case"]]).columns.tolist() == ["case"]


def test_a_score_must_be_one_that_the_strategy_names(task) -> None:
    with pytest.raises(ValueError, match=r"Segmenting\.score_names must name dise"):
        task.validation_step(batch("ab", dise=MASK), 0)
