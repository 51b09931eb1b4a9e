"""LoRA, LoRA-MoE and MoR against Eq. 4 of EI, one expert and one token at a time, and LoRA against peft."""

from __future__ import annotations

from collections.abc import Sequence

import peft
import pytest
import torch
from tiny import perturb
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.layers.rank_mixture import RankMixtureLinear, ViewSelector

IN, OUT, VIEWS = 6, 5, 3
KINDS = {
    "mor": {"ranks": (2, 4, 8), "routed": True, "bypass": True},
    "mor without bypass": {"ranks": (2, 4, 8), "routed": True, "bypass": False},
    "lora_moe": {"ranks": (4, 4, 4), "routed": True, "bypass": False},
    "lora": {"ranks": (4,), "routed": False, "bypass": False},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Go through the kinds of mixture."""
    return str(request.param)


def make(kind: str, scale: float = 2.0) -> RankMixtureLinear:
    """Return a layer with random B."""
    return perturb(RankMixtureLinear(nn.Linear(IN, OUT), VIEWS, ViewSelector(), scale=scale, **KINDS[kind]))


def eq4(layer: RankMixtureLinear, view: int, h: Tensor, ranks: Sequence[int], bypass: bool, routed: bool) -> Tensor:
    """Adapt one token, h (in,) to h' (out,): [w0, ...] = Router(h), h' = Wh + b + Σ w_k 2 B_k A_k h."""
    out = layer.base.weight @ h + layer.base.bias
    weight = torch.ones(len(ranks))
    if routed:
        rows = zip(layer.route_weight[view], layer.route_bias[view], strict=True)
        scores = torch.stack([row @ h + bias for row, bias in rows])
        weight = scores.exp() / scores.exp().sum()
        weight = weight[1:] if bypass else weight
    first = 0
    for k, rank in enumerate(ranks):
        a_k, b_k = layer.down[view, first : first + rank], layer.up[view, :, first : first + rank]
        out = out + weight[k] * 2 * (b_k @ (a_k @ h))
        first += rank
    return out


def by_token(layer: RankMixtureLinear, views: Sequence[int], rows: Tensor, kind: str) -> Tensor:
    """Adapt rows (V·B, N, in) token by token, the rows of one view after those of another."""
    parts = [
        torch.stack([eq4(layer, view, h, **KINDS[kind]) for h in part.flatten(0, 1)]).unflatten(0, part.shape[:2])
        for view, part in zip(views, rows.chunk(len(views)), strict=True)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("views", [(0,), (2,), (0, 1, 2), (2, 0), (1, 1)])
def test_values_and_gradients_equal_equation_4(kind: str, views: tuple[int, ...]) -> None:
    layer = make(kind)
    rows = torch.randn(2 * len(views), 3, IN, requires_grad=True)
    upstream = torch.randn(2 * len(views), 3, OUT)
    with layer.selector.select(views):
        got = layer(rows)
    wanted = by_token(layer, views, rows, kind)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    inputs = [rows, *(p for p in layer.parameters() if p.requires_grad)]
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(wanted, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_fresh_layer_changes_nothing(kind: str) -> None:
    layer = RankMixtureLinear(nn.Linear(IN, OUT), VIEWS, ViewSelector(), **KINDS[kind])
    rows = torch.randn(2, 3, IN)
    assert torch.equal(layer(rows), layer.base(rows))


def test_all_mass_on_the_bypass_rejects_the_update() -> None:
    layer = make("mor")
    rows = torch.randn(2, 3, IN)
    with torch.no_grad():
        layer.route_bias[0, 0] = 1e4
    torch.testing.assert_close(layer(rows), layer.base(rows))


def test_the_base_gets_no_gradient(kind: str) -> None:
    layer = make(kind)
    layer(torch.randn(2, 3, IN)).sum().backward()
    assert layer.base.weight.grad is None
    assert layer.base.bias.grad is None


def test_views_out_of_the_pass_get_no_gradient(kind: str) -> None:
    layer = make(kind)
    with layer.selector.select((1,)):
        layer(torch.randn(2, 3, IN)).square().sum().backward()
    assert layer.up.grad is not None
    assert layer.up.grad[1].abs().sum() > 0
    assert layer.up.grad[[0, 2]].abs().sum() == 0


@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_lora_equals_peft(scale: float) -> None:
    layer = make("lora", scale)
    twin = nn.Sequential()
    twin.add_module("fc1", nn.Linear(IN, OUT))
    twin.load_state_dict({f"fc1.{k}": v for k, v in layer.base.state_dict().items()})
    rank = 4
    twin = peft.inject_adapter_in_model(
        peft.LoraConfig(r=rank, lora_alpha=int(scale * rank), target_modules=["fc1"], lora_dropout=0.0), twin
    )
    with torch.no_grad():
        twin.fc1.lora_A["default"].weight.copy_(layer.down[0])
        twin.fc1.lora_B["default"].weight.copy_(layer.up[0])
    rows = torch.randn(2, 3, IN)
    got, wanted = layer(rows), twin(rows)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    got.square().sum().backward()
    wanted.square().sum().backward()
    for mine, theirs in ((layer.down, twin.fc1.lora_A), (layer.up, twin.fc1.lora_B)):
        torch.testing.assert_close(mine.grad[0], theirs["default"].weight.grad, rtol=1e-5, atol=1e-5)


def test_a_starts_as_in_nn_linear_and_b_at_zero() -> None:
    layer = RankMixtureLinear(nn.Linear(400, 30), 1, ViewSelector(), **KINDS["mor"])
    bound = 1 / 400**0.5  # Kaiming uniform with a = √5 is U(-1/√in, 1/√in)
    assert layer.up.abs().max() == 0
    assert 0.95 * bound < layer.down.abs().max() <= bound
    assert F.mse_loss(layer.down.std(), torch.tensor(bound / 3**0.5)) < 1e-5
