"""Two processes whose cases lack different things must have the loss and the gradients of one that has them all."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from pairs import run_pair
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusionbench.fusion.criterion import BinaryCrossEntropy, CrossEntropy
from fusionbench.layers.segmentation_loss import segmentation_loss

CASES = 6  # rank 0 has the even ones
WEIGHT = torch.tensor([0.5, 1.0, 3.0, 1.0])
PRESENT = {
    "all": torch.ones(CASES, dtype=torch.bool),
    "unequal": torch.tensor([True, True, True, False, True, False]),
    "one has none": torch.tensor([False, True, False, True, False, False]),
    "nobody has any": torch.zeros(CASES, dtype=torch.bool),
}


class Trained(NamedTuple):
    """What comes of a step on a process's cases."""

    loss: Tensor
    gradient: Tensor


def multi_class(logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    return CrossEntropy(WEIGHT, label_smoothing=0.1)(logits, labels.argmax(dim=1), present)


def multi_label(logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    return BinaryCrossEntropy(WEIGHT)(logits, labels, present)


def masks(logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    return segmentation_loss(logits.view(-1, 1, 2, 2), labels.view(-1, 1, 2, 2), present)


LOSSES = {loss.__name__: loss for loss in (multi_class, multi_label, masks)}


def train(mine: slice) -> dict[str, Trained]:
    """Return loss and gradients of each loss and pattern, of some of the cases."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(CASES, 5, generator=generator)
    labels = (torch.rand(CASES, 4, generator=generator) > 0.5).float()
    out = {}
    for name, loss in LOSSES.items():
        for pattern, present in PRESENT.items():
            torch.manual_seed(0)
            whole = nn.Linear(5, 4)
            network = DistributedDataParallel(whole) if dist.is_initialized() else whole
            found = loss(network(inputs[mine]), labels[mine], present[mine])
            found.backward()
            out[f"{name}, {pattern}"] = Trained(found.detach(), whole.weight.grad)
    return out


def train_in_part() -> dict[str, Trained]:
    """Be a rank: train on every other case."""
    return train(slice(dist.get_rank(), None, 2))


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Trained]]:
    return run_pair(train_in_part)


@pytest.fixture(scope="module")
def alone() -> dict[str, Trained]:
    return train(slice(None))


@pytest.mark.parametrize("pattern", PRESENT)
@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_equal_one(
    ranks: list[dict[str, Trained]], alone: dict[str, Trained], name: str, pattern: str
) -> None:
    key = f"{name}, {pattern}"
    first, second = (found[key] for found in ranks)
    assert bool(alone[key].gradient.any()) == bool(PRESENT[pattern].any())
    torch.testing.assert_close((first.loss + second.loss) / 2, alone[key].loss)
    for found in (first, second):
        torch.testing.assert_close(found.gradient, alone[key].gradient)
