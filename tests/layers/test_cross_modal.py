"""The cross-modal block against plain loops in both directions, its gate, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import perturb
from torch import Tensor
from torch.nn import functional as F

from fusionbench.errors import UserError
from fusionbench.layers.cross_modal import CrossModal

WIDTH, CHANNELS, HEADS, GRID = 8, 3, 2, 2


def block(**options: Any) -> CrossModal:
    return CrossModal(WIDTH, CHANNELS, **{"heads": HEADS, "grid": GRID, **options})


def inputs(rows: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, CHANNELS, 6, 6), torch.randn(rows, 5, WIDTH)


def shares(layer: CrossModal, asks_ND: Tensor, answers_TD: Tensor) -> list[list[list[Tensor]]]:
    """Return exp(q·k / √d) by head, asking token and answering token."""
    d = WIDTH // HEADS
    cuts = [slice(h * d, (h + 1) * d) for h in range(HEADS)]
    q, k = asks_ND @ layer.q.weight.T, answers_TD @ layer.k.weight.T
    return [[[torch.exp(x[c] @ y[c] / math.sqrt(d)) for y in k] for x in q] for c in cuts]


def plain(layer: CrossModal, asks_ND: Tensor, answers_TD: Tensor) -> Tensor:
    """Return x + α softmax(q·k / √d) v of each asking token, head by head."""
    d, values = WIDTH // HEADS, answers_TD @ layer.v.weight.T
    found = shares(layer, asks_ND, answers_TD)
    out = []
    for n, x in enumerate(asks_ND):
        heads = []
        for h in range(HEADS):
            row = found[h][n]
            heads.append(sum(row[t] / sum(row) * values[t, h * d : (h + 1) * d] for t in range(len(row))))
        out.append(x + layer.alpha * torch.cat(heads))
    return torch.stack(out)


def read(query_BND: Tensor, tokens_BTD: Tensor, bias_BT: Tensor | None) -> Tensor:
    """Attend to tokens under an additive bias, as a decoder layer does."""
    bias = None if bias_BT is None else bias_BT[:, None]
    return F.scaled_dot_product_attention(query_BND, tokens_BTD, tokens_BTD, attn_mask=bias)


def test_the_unet_asks() -> None:
    layer, (skip, vision) = perturb(block(alpha=0.7)), inputs()
    tokens, bias, picture = layer(skip, vision)
    gate = torch.sigmoid(layer.gate_logit)
    assert picture is None
    assert torch.equal(tokens[:, :5], vision)
    for row in range(2):
        wanted = plain(layer, layer.skip(skip)[row], vision[row])
        torch.testing.assert_close(tokens[row, 5:], wanted)
        torch.testing.assert_close(bias[row], torch.cat([torch.zeros(5), gate.log().expand(GRID**2)]))


def test_the_vision_tokens_ask() -> None:
    layer, (skip, vision) = perturb(block(query="vision", alpha=0.7)), inputs()
    tokens, bias, _ = layer(skip, vision)
    assert bias is None
    for row in range(2):
        torch.testing.assert_close(tokens[row], plain(layer, vision[row], layer.skip(skip)[row]))


@pytest.mark.parametrize("query", ["unet", "vision"])
def test_the_map_is_the_share_of_each_place(query: str) -> None:
    layer, (skip, vision) = perturb(block(query=query)), inputs()
    picture = layer(skip, vision, maps=True).map
    for row in range(2):
        places, wanted = layer.skip(skip)[row], torch.zeros(GRID**2)
        for h in range(HEADS):
            for t in range(5):
                both = (places, vision[row]) if query == "unet" else (vision[row], places)
                found = shares(layer, *both)[h]
                one = torch.stack([found[p][t] if query == "unet" else found[t][p] for p in range(GRID**2)])
                wanted += one / one.sum() / (HEADS * 5)
        torch.testing.assert_close(picture[row].flatten(), wanted.detach())
    assert not picture.requires_grad


def test_the_gate_and_alpha_start_where_they_are_put() -> None:
    layer = block()
    assert layer.log_gate.exp().item() == pytest.approx(0.1)
    assert layer.alpha.item() == pytest.approx(0.1)
    assert {"alpha", "gate_logit"} <= dict(layer.named_parameters()).keys()
    fixed = block(learn_alpha=False, gate=1.0)
    assert fixed.log_gate == 0
    assert not {"alpha", "gate_logit"} & dict(fixed.named_parameters()).keys()
    assert "gate_logit" not in dict(block(query="vision").named_parameters())


def test_a_closed_gate_is_the_unfused_model_with_finite_gradients() -> None:
    layer, (skip, vision), query = block(gate=0.0), inputs(), torch.randn(2, 3, WIDTH)
    tokens, bias, _ = layer(skip, vision)
    out = read(query, tokens, bias)
    torch.testing.assert_close(out, read(query, vision, None), rtol=0, atol=1e-6)
    out.square().sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def test_a_learned_gate_stays_finite_however_far_it_closes() -> None:
    layer, (skip, vision), query = block(), inputs(), torch.randn(2, 3, WIDTH)
    with torch.no_grad():
        layer.gate_logit.fill_(-200)
    tokens, bias, _ = layer(skip, vision)
    out = read(query, tokens, bias)
    torch.testing.assert_close(out, read(query, vision, None), rtol=0, atol=1e-6)
    out.sum().backward()
    assert layer.log_gate == -200
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_alpha_of_zero_is_the_unfused_model_where_vision_asks() -> None:
    layer, (skip, vision) = block(query="vision", alpha=0.0), inputs()
    tokens = layer(skip, vision).tokens
    assert torch.equal(tokens, vision)
    tokens.square().sum().backward()
    assert layer.alpha.grad is not None
    assert layer.alpha.grad.abs() > 0


@pytest.mark.parametrize("query", ["unet", "vision"])
def test_every_weight_matters(query: str) -> None:
    layer, (skip, vision) = block(query=query), inputs()
    tokens, bias, _ = layer(skip, vision)
    read(torch.randn(2, 3, WIDTH), tokens, bias).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("query", ["unet", "vision"])
def test_a_case_without_a_picture_is_closed_everywhere(query: str) -> None:
    layer, (skip, vision) = perturb(block(query=query)), inputs(3)
    tokens, bias, _ = layer(skip, vision, torch.tensor([True, False, True]))
    assert bias.shape == tokens.shape[:2]
    assert torch.isneginf(bias[1]).all()
    assert bias[[0, 2]].isfinite().all()


@pytest.mark.parametrize("query", ["unet", "vision"])
def test_a_frozen_model_in_bfloat16_is_read_in_float32_and_given_its_own_type(query: str) -> None:
    layer, (skip, vision) = block(query=query), inputs()
    tokens, bias, _ = layer(skip, vision.bfloat16(), torch.tensor([True, True]))
    assert tokens.dtype == bias.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heads": 3}, "'fusion.heads' must divide the tokens' width 8, but 3 does not"),
        ({"alpha": -1.0}, "'fusion.alpha' must be at least 0, not -1.0"),
        ({"gate": 1.5}, "'fusion.gate' must lie in 0 to 1, not 1.5"),
        ({"gate": float("nan")}, "'fusion.gate' must be finite and at least 0, not nan"),
        ({"query": "visoin"}, "'fusion.query' cannot be 'visoin'; did you mean 'vision'?"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        block(**options)
    assert str(caught.value) == sentence
