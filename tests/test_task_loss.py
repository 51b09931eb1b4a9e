"""What the task makes of a loss that is no number, and of what has no loss."""

import numpy as np
import pytest
import torch

from fusionbench.errors import UserError
from fusionbench.fusion.criterion import BinaryCrossEntropy, CrossEntropy
from fusionbench.task import FusionTask
from fusionbench.types import Batch, Output, Problem


class Divides(torch.nn.Module):
    """A strategy whose loss is what its one table column says."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, inputs, present):
        return Output(inputs["labs"] * self.weight)

    def losses(self, output, batch, criterion):
        return {"fused": criterion(output.logits, batch.target), "other": self.weight.sum()}


def test_a_loss_that_is_not_finite_stops_and_names_the_cases():
    problem = Problem({}, ("a", "b"))
    task = FusionTask(problem, Divides, torch.optim.SGD, lambda *_: None, CrossEntropy())
    task.configure_model()
    table = torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])
    present = torch.ones(2, 1, dtype=torch.bool)
    batch = Batch({"labs": table}, present, torch.tensor([0, 1]), ["c7", "c8"], ["p", "q"], {})
    with pytest.raises(UserError, match=r"not finite in epoch 0, step 0 \(terms: fused; cases: c7, c8\)"):
        task.training_step(batch, 0)


def test_the_loss_of_absent_branches_is_zero_and_that_of_unknown_labels_is_not_asked_for():
    logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    here = torch.tensor([True, False])
    assert CrossEntropy()(logits, target, here).item() == pytest.approx(np.log1p(np.exp(-2)))
    assert CrossEntropy()(logits, target, ~here & here).item() == 0
    assert BinaryCrossEntropy()(logits, torch.ones(2, 2), ~here & here).item() == 0


@pytest.mark.parametrize("logits_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_type", [torch.float32, torch.bfloat16])
def test_a_loss_with_class_weights_is_float32_whatever_is_in_half_precision(logits_type, weight_type):
    logits, target, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), torch.eye(2)
    weight = torch.tensor([0.5, 2.0])  # a bfloat16 holds them all
    for kind, true in ((CrossEntropy, target), (BinaryCrossEntropy, labels)):
        plain, half = kind(weight), kind(weight).to(weight_type)
        true_half = true.to(logits_type) if true.is_floating_point() else true
        found = half(logits.to(logits_type), true_half)
        assert found.dtype == torch.float32
        assert torch.equal(found, plain(logits, true))
        assert torch.equal(half.each(logits.to(logits_type), true_half), plain.each(logits, true))
        there = torch.tensor([True, False])
        assert torch.equal(half(logits.to(logits_type), true_half, there), plain(logits, true, there))
