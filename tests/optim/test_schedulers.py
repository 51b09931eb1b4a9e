"""Schedules: rates at each step by hand, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fusionbench.errors import UserError
from fusionbench.optim.schedulers.constant import constant
from fusionbench.optim.schedulers.cosine import cosine
from fusionbench.optim.schedulers.cyclic import cyclic


def optimizer(lr: float = 0.1) -> Optimizer:
    return SGD([nn.Parameter(torch.ones(1))], lr=lr, momentum=0.9)


def rates(schedule: LRScheduler, steps: int) -> list[float]:
    """Return the rate of each step."""
    out = []
    for _ in range(steps):
        out.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return out


def test_cosine_rises_falls_and_stays() -> None:
    got = rates(cosine(optimizer(), 4, 5, warmup_epochs=0.5, decay_epochs=3, min_lr=0.01), 20)
    fall = [0.01 + 0.09 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)]
    assert got == pytest.approx([0.05, 0.1, *fall, *[0.01] * 7])


def test_cosine_decays_over_the_run_if_not_told_otherwise() -> None:
    got = rates(cosine(optimizer(), 4, 2, warmup_epochs=0.0, min_lr=0.0), 9)
    assert got[0] == pytest.approx(0.1, rel=0.1)
    assert got[-1] == pytest.approx(0, abs=1e-12)


def test_a_run_as_short_as_its_warm_up_is_possible() -> None:
    assert rates(cosine(optimizer(), 4, 1, warmup_epochs=1.0), 4) == pytest.approx([0.025, 0.05, 0.075, 0.1])


def test_cyclic_triangles_shrink() -> None:
    got = rates(cyclic(optimizer(), 2, 4, base_lr=0.1, max_lr=0.3, epochs_up=1, gamma=0.5), 9)
    assert got == pytest.approx([0.1, 0.2, 0.3, 0.2, 0.1, 0.15, 0.2, 0.15, 0.1])


def test_constant_is_the_optimizers_own() -> None:
    assert rates(constant(optimizer(), 2, 2), 3) == [0.1] * 3


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (cyclic, {"base_lr": 1e-2, "max_lr": 1e-3}, "'scheduler.base_lr' must not be above 'scheduler.max_lr'"),
        (cyclic, {"base_lr": -1e-5}, "'scheduler.base_lr' must be at least 0, not -1e-05"),
        (cyclic, {"base_lr": 0.0, "max_lr": 0.0}, "'scheduler.max_lr' must be above 0, not 0.0"),
        (cyclic, {"max_lr": float("inf")}, "'scheduler.max_lr' must be finite and above 0, not inf"),
        (cyclic, {"epochs_up": 0.0}, "'scheduler.epochs_up' must be above 0, not 0.0"),
        (cyclic, {"gamma": 0.0}, "'scheduler.gamma' must be above 0, not 0.0"),
        (cosine, {"warmup_epochs": -1.0}, "'scheduler.warmup_epochs' must be at least 0, not -1.0"),
        (cosine, {"decay_epochs": 0}, "'scheduler.decay_epochs' must be at least 1, not 0"),
        (
            cosine,
            {"decay_epochs": 3, "warmup_epochs": 3.0},
            "'scheduler.decay_epochs' must be above 'scheduler.warmup_epochs'",
        ),
        (cosine, {"min_lr": -1e-7}, "'scheduler.min_lr' must be at least 0, not -1e-07"),
        (cosine, {"min_lr": 0.2}, "'scheduler.min_lr' must not be above 'optimizer.lr', but is 0.2 > 0.1"),
    ],
)
def test_a_value_out_of_range_is_refused(make, options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        make(optimizer(), 10, 5, **options)
    assert str(caught.value).startswith(said)
