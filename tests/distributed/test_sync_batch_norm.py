"""Two processes with a part of a batch each must do what one process does with the whole of it."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from pairs import run_pair
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from fusionbench.layers.present_rows import PresentRows
from fusionbench.layers.sync_batch_norm import SyncBatchNorm, SyncBatchNormAct, synchronise

EXACT = {"rtol": 1e-5, "atol": 1e-6}
CUTS = {"halves": 3, "unequal": 1, "one empty": 0}  # how many of six rows are rank 0's
STEPS = 3


class Trained(NamedTuple):
    """What a process has after some steps: outputs of its rows, gradients, and the state with running statistics."""

    outputs: list[Tensor]
    inputs: list[Tensor]
    weights: dict[str, Tensor]
    state: dict[str, Tensor]


def network() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), BatchNormAct2d(4), nn.Flatten(), nn.Linear(36, 5),
        nn.BatchNorm1d(5, momentum=None),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made.train()


def batches() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 3 + 2 * torch.randn(STEPS, 6, 2, 5, 5, generator=generator)


def train(made: nn.Module, batches: Tensor, present: Tensor) -> Trained:
    """Go forward and back over some batches; the loss is a sum, so gradients of parts add up to that of the whole."""
    outputs, inputs = [], []
    for batch in batches:
        rows, values = PresentRows(present), batch.clone().requires_grad_()
        with rows.alone(made):
            out = rows.put(made(rows.take(values)))
        (out * torch.arange(5.0).sin()).square().sum().backward()
        outputs.append(out.detach())
        inputs.append(values.grad)
    grads = {name: p.grad for name, p in made.named_parameters()}
    return Trained(outputs, inputs, grads, copy.deepcopy(made.state_dict()))


def train_in_part() -> dict[str, Trained]:
    """Be a rank: train on its part of the rows for each cut; a rank without any has one that is absent."""
    rank, out = dist.get_rank(), {}
    for name, cut in CUTS.items():
        mine = slice(0, cut or 1) if rank == 0 else slice(cut, 6)
        present = torch.full((len(range(6)[mine]),), bool(cut or rank))
        out[name] = train(synchronise(network()), batches()[:, mine], present)
    out["nothing"] = train(synchronise(network()), batches(), torch.zeros(6, dtype=torch.bool))
    return out


def convert() -> list[str]:
    """Be a rank: tell the classes of norms of which one is frozen."""
    made = network()
    made[1].requires_grad_(False)
    half = synchronise(made).bfloat16()
    narrow = half[1:2](torch.randn(2, 4, 3, 3, dtype=torch.bfloat16)).dtype
    return [type(module).__name__ for module in made] + [str(narrow)]


@pytest.fixture(scope="module")
def ranks() -> tuple[dict[str, Trained], dict[str, Trained]]:
    first, second = run_pair(train_in_part)
    return first, second


@pytest.mark.parametrize("name", CUTS)
def test_two_processes_equal_one(ranks: tuple[dict[str, Trained], ...], name: str) -> None:
    whole = train(network(), batches(), torch.ones(6, dtype=torch.bool))
    parts = [found[name] for found in ranks]
    cut = CUTS[name]
    for step in range(STEPS):
        for key in ("outputs", "inputs"):
            first, second = (getattr(part, key)[step] for part in parts)
            joined = torch.cat([first[:cut], second])
            torch.testing.assert_close(joined, getattr(whole, key)[step], **EXACT)
            assert cut or not first.any()
    for key, grad in whole.weights.items():
        torch.testing.assert_close(parts[0].weights[key] + parts[1].weights[key], grad, rtol=1e-4, atol=1e-4)
    for part in parts:
        torch.testing.assert_close(part.state, whole.state, **EXACT)


def test_if_no_process_has_a_row_statistics_stay_and_all_is_finite(ranks: tuple[dict[str, Trained], ...]) -> None:
    for found in ranks:
        idle = found["nothing"]
        torch.testing.assert_close(idle.state, network().state_dict(), rtol=0, atol=0)
        assert all(not value.any() for value in (*idle.outputs, *idle.inputs, *idle.weights.values()))


def test_frozen_norms_stay_plain_and_a_dtype_stays_what_it_is() -> None:
    for found in run_pair(convert):
        assert found[1] == "BatchNorm2d"
        assert [found[3], found[6], found[7]] == ["SyncBatchNormAct", "SyncBatchNorm", "torch.bfloat16"]


def test_a_single_process_keeps_its_norms() -> None:
    made = network()
    assert synchronise(made) is made
    assert not any(isinstance(module, SyncBatchNorm | SyncBatchNormAct) for module in made.modules())
