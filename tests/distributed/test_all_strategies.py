"""Every strategy and tuning method does under ZeRO-3 what it does under DDP, whatever the cases of the ranks lack.

They are found in their folder, so a new file is covered by itself. One pair of processes runs them all, then each is
looked at by a test of its own. Those least alike are in the suite; all, three modalities, tuning methods and
checkpointing are for ``make test-slow``.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pairs import run_pair
from sharded_steps import Both, batches, compare, prepare
from tiny import SPECS, kinds_of, pool_for, problem, strategy
from torch import Tensor

from fusionbench import registry
from fusionbench.encoders.base import Encoder
from fusionbench.types import Problem

CASES, BATCHES = 3, 3  # the last batch is for evaluation
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@dataclass(frozen=True)
class Trial:
    """What is trained.

    Attributes:
        name: The strategy.
        method: The tuning method.
        most: How many modalities at most.
        checkpointing: Layers are computed again in the backward pass, where an encoder can.
    """

    name: str
    method: str = "mor"
    most: int = 2
    checkpointing: bool = False

    def __str__(self) -> str:
        return f"{self.name}-{self.method}-{self.most}" + ("-checkpointing" if self.checkpointing else "")


UNLIKE = ("concat", "dynmm", "early_intervention", "llama_mixed", "mdf", "mm_mil", "transchex", "unimodel")
QUICK = [Trial(name) for name in UNLIKE]
LONG = [
    *(Trial(name) for name in registry.names("fusion") if name not in UNLIKE),
    *(Trial(name, most=3) for name in registry.names("fusion")),
    *(Trial("concat", method) for method in registry.names("adapt")),
    Trial("early_intervention", checkpointing=True),
    Trial("llama_early", checkpointing=True),
    Trial("mdf", "full"),
    Trial("mdf", "lora", checkpointing=True),
]


def problem_of(trial: Trial) -> Problem:
    """Return a problem of as many modalities as a trial wants and its strategy takes."""
    least, most = registry.describe("fusion", trial.name).constants.get("modality_count", (1, None))
    fits = [name for name, spec in SPECS.items() if spec.kind in kinds_of(trial.name)]
    return problem(fits[: max(least, min(trial.most, most or trial.most))])


def patterns(trial: Trial, made: Problem) -> list[Tensor]:
    """Return what is present in each batch, (B, M): other on each rank, and one rank has no case with a picture."""
    modalities = len(made.modalities)
    complete = torch.ones(CASES, modalities, dtype=torch.bool)
    if registry.describe("fusion", trial.name).constants.get("needs_all", False):
        return [complete] * BATCHES
    lacking = complete.clone()
    lacking[:, dist.get_rank() % modalities] = modalities == 1
    mixed = complete.clone()
    mixed[torch.arange(CASES), torch.arange(CASES) % modalities] = modalities == 1
    return [lacking, mixed if dist.get_rank() else complete, lacking]


def train(trials: list[Trial]) -> list[Both]:
    """Be a rank: take the steps of each trial."""
    prepare()
    return [train_one(trial) for trial in trials]


def train_one(trial: Trial) -> Both:
    """Build a trial's network, the same on both ranks, and train it by both."""
    torch.manual_seed(0)
    made = problem_of(trial)
    source = pool_for(trial.name, made, trial.method)
    if trial.checkpointing:
        source.nodes = {modality: recomputing(*node) for modality, node in source.nodes.items()}
    network = strategy(trial.name, made, source)
    return compare(network, batches(made, patterns(trial, made)))


def recomputing(kind: type[Encoder], options: dict[str, Any]) -> tuple[type[Encoder], dict[str, Any]]:
    """Turn on checkpointing in an encoder's node, if the encoder can."""
    can = "checkpointing" in inspect.signature(kind).parameters
    return kind, {**options, "checkpointing": True} if can else options


def agree(ranks: list[Both]) -> None:
    """Check what both ranks did."""
    for rank, both in enumerate(ranks):
        assert not both.error, both.error
        ddp, zero = both.ddp, both.zero
        assert zero.losses.isfinite().all()
        assert len(zero.losses) == BATCHES - 1
        torch.testing.assert_close(zero.losses, ddp.losses, **CLOSE)
        torch.testing.assert_close(zero.logits, ddp.logits, **CLOSE)
        assert zero.weights.keys() == ddp.weights.keys()
        for name, weight in zero.weights.items():
            torch.testing.assert_close(weight, ddp.weights[name], **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
        held, whole = zero.sharded
        assert whole == ddp.sharded[0]
        assert held <= 0.51 * whole, f"rank {rank} holds {held} of {whole} numbers"
    first, second = (both.zero for both in ranks)
    assert all(torch.equal(weight, second.weights[name]) for name, weight in first.weights.items())
    assert not torch.equal(first.losses, second.losses), "both ranks had the same cases"


@pytest.fixture(scope="module")
def quick() -> dict[Trial, list[Both]]:
    return dict(zip(QUICK, zip(*run_pair(train, QUICK), strict=True), strict=True))


@pytest.fixture(scope="module")
def long() -> dict[Trial, list[Both]]:
    return dict(zip(LONG, zip(*run_pair(train, LONG), strict=True), strict=True))


@pytest.mark.parametrize("trial", QUICK, ids=str)
def test_each_strategy_trains_under_zero_3_as_under_ddp(quick: dict[Trial, list[Both]], trial: Trial) -> None:
    agree(quick[trial])


@pytest.mark.slow
@pytest.mark.parametrize("trial", LONG, ids=str)
def test_each_method_and_more_modalities_do(long: dict[Trial, list[Both]], trial: Trial) -> None:
    agree(long[trial])
