"""Optimizers: what is handed to torch, and what is refused before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fusionbench.errors import UserError
from fusionbench.optim.optimizers.adam import adam
from fusionbench.optim.optimizers.adamw import adamw
from fusionbench.optim.optimizers.sgd import sgd


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


def test_options_arrive() -> None:
    first = sgd(weights(), lr=0.1, momentum=0.5, weight_decay=0.2, nesterov=True).defaults
    assert [first[k] for k in ("lr", "momentum", "weight_decay", "nesterov")] == [0.1, 0.5, 0.2, True]
    second = adamw(weights(), lr=0.1, weight_decay=0.2, betas=[0.5, 0.6], eps=0.3).defaults
    assert [second[k] for k in ("lr", "weight_decay", "betas", "eps")] == [0.1, 0.2, (0.5, 0.6), 0.3]


def test_the_lowest_values_are_possible() -> None:
    sgd(weights(), momentum=0.0, weight_decay=0.0)
    adamw(weights(), weight_decay=0.0, betas=[0.0, 0.0])


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (make, options, said)
        for make in (sgd, adam, adamw)
        for options, said in (
            ({"lr": 0.0}, "'optimizer.lr' must be above 0, not 0.0"),
            ({"lr": -1.0}, "'optimizer.lr' must be above 0, not -1.0"),
            ({"lr": float("nan")}, "'optimizer.lr' must be finite and above 0, not nan"),
            ({"lr": float("inf")}, "'optimizer.lr' must be finite and above 0, not inf"),
            ({"weight_decay": -0.1}, "'optimizer.weight_decay' must be at least 0, not -0.1"),
        )
    ]
    + [
        (sgd, {"momentum": 1.0}, "'optimizer.momentum' must be at least 0 and below 1, not 1.0"),
        (sgd, {"momentum": -0.1}, "'optimizer.momentum' must be at least 0 and below 1, not -0.1"),
        (sgd, {"momentum": 0.0, "nesterov": True}, "'optimizer.nesterov' needs a momentum"),
        (adamw, {"eps": 0.0}, "'optimizer.eps' must be above 0, not 0.0"),
        (adamw, {"betas": [0.9]}, "'optimizer.betas' must be two numbers, not [0.9]"),
        (adamw, {"betas": [0.9, 0.99, 0.5]}, "'optimizer.betas' must be two numbers"),
        (adamw, {"betas": [0.9, 1.0]}, "'optimizer.betas' must be at least 0 and below 1, not 1.0"),
        (adamw, {"betas": [-0.1, 0.9]}, "'optimizer.betas' must be at least 0 and below 1, not -0.1"),
    ],
)
def test_a_value_out_of_range_is_refused(make, options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        make(weights(), **options)
    assert str(caught.value).startswith(said)


def test_the_weight_decay_of_adam_enters_its_moments_and_that_of_adamw_does_not():
    start, gradient, lr, decay = 2.0, 0.5, 0.1, 0.3
    stepped = {}
    for make in (adam, adamw):
        parameter = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer = make([parameter], lr=lr, weight_decay=decay)
        optimizer.step()
        stepped[make] = parameter.item(), optimizer.state[parameter]["exp_avg"].item()
    assert stepped[adam] == pytest.approx((start - lr, 0.1 * (gradient + decay * start)))
    assert stepped[adamw] == pytest.approx((start * (1 - lr * decay) - lr, 0.1 * gradient))
