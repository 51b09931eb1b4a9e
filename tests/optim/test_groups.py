"""Learning rates of parts: which parameter goes where, and that every schedule scales all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from fusionbench import config
from fusionbench.errors import UserError
from fusionbench.optim.groups import parameter_groups
from fusionbench.optim.optimizers.adam import adam
from fusionbench.optim.optimizers.adamw import adamw
from fusionbench.optim.optimizers.sgd import sgd
from fusionbench.optim.schedulers.constant import constant
from fusionbench.optim.schedulers.cosine import cosine
from fusionbench.optim.schedulers.cyclic import cyclic


@pytest.fixture
def network() -> nn.ModuleDict:
    """Two parts, what is in no part, and a frozen parameter."""
    made = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("eye", "mouth", "neck", "skull")})
    made["eye"].bias.requires_grad_(False)
    return made


def members(network: nn.ModuleDict) -> dict[str, list[nn.Parameter]]:
    return {"eye": list(network["eye"].parameters()), "mouth": list(network["mouth"].parameters()), "ear": []}


def test_without_rates_all_that_is_trained_is_one_list_in_order(network) -> None:
    got = parameter_groups(network.parameters(), members(network))
    assert [id(p) for p in got] == [id(p) for p in network.parameters() if p.requires_grad]


@pytest.mark.parametrize("make", [sgd, adam, adamw])
def test_every_optimizer_gives_each_part_its_rate_and_the_rest_its_own(network, make) -> None:
    groups = parameter_groups(network.parameters(), members(network), parts={"mouth": 0.5, "ear": 0.1})
    got = make(groups, lr=0.25).param_groups
    assert [(group["part"], group["lr"]) for group in got] == [("eye", 0.25), ("mouth", 0.5), ("rest", 0.25)]
    held = [{id(p) for p in group["params"]} for group in got]
    rest = {id(p) for name in ("neck", "skull") for p in network[name].parameters()}
    assert held == [{id(network["eye"].weight)}, {id(p) for p in network["mouth"].parameters()}, rest]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"moth": 0.1}, "the strategy has no part for 'optimizer.parts.moth'; did you mean 'mouth'?"),
        ({"mouth": 0.0}, "'optimizer.parts.mouth' must be above 0, not 0.0"),
        ({"mouth": float("nan")}, "'optimizer.parts.mouth' must be finite and above 0, not nan"),
    ],
)
def test_a_rate_that_cannot_be_is_refused(network, parts, said) -> None:
    with pytest.raises(UserError) as caught:
        parameter_groups(network.parameters(), members(network), parts=parts)
    assert str(caught.value).startswith(said)


def rates(schedule: LRScheduler, steps: int) -> list[list[float]]:
    """Return every group's rate at each step."""
    out = []
    for _ in range(steps):
        out.append(schedule.get_last_lr())
        schedule.optimizer.step()
        schedule.step()
    return out


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (constant, {}),
        (cosine, {"warmup_epochs": 0.5, "decay_epochs": 3, "min_lr": 0.01}),
        (cyclic, {"base_lr": 0.1, "max_lr": 0.3, "epochs_up": 1, "gamma": 0.5}),
    ],
)
def test_a_schedule_scales_every_rate_alike(make, options) -> None:
    def alone(lr: float) -> torch.optim.Optimizer:
        return sgd([nn.Parameter(torch.ones(1))], lr=lr)

    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr, "part": str(lr)} for lr in (0.1, 0.02)]
    first = rates(make(alone(0.1), 4, 5, **options), 20)
    both = rates(make(sgd(groups, lr=0.1), 4, 5, **options), 20)
    assert [row[0] for row in both] == [row[0] for row in first]
    assert [row[1] for row in both] == pytest.approx([row[0] / 5 for row in first])


def test_it_is_an_option_of_every_optimizers_node() -> None:
    for name in ("sgd", "adam", "adamw"):
        checked = config.check_node("optimizer", "optimizer", {"name": name, "parts": {"unet": 1e-4}})
        assert checked == {"name": name, "parts": {"unet": 1e-4}}
    with pytest.raises(UserError, match=r"'optimizer\.parts' must be dict\[str, float\] \| None, not 0\.1"):
        config.check_node("optimizer", "optimizer", {"name": "sgd", "parts": 0.1})
