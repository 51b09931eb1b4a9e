"""The gated layer against a plain loop, its start as the identity, and closed or gated tokens of its context."""

from __future__ import annotations

import math

import pytest
import torch
from plain_cross import rms
from torch import Tensor

from fusionbench.layers.gated_cross_attention import GatedCrossAttention

OPEN, CLOSED = 0.0, float("-inf")


def layer() -> GatedCrossAttention:
    """Return a layer with grouped queries, as it starts."""
    return GatedCrossAttention(12, heads=6, kv_heads=2, head_width=4, hidden=10)


def plain(made: GatedCrossAttention, x_ND: Tensor, c_TD: Tensor, bias_T: list[float]) -> Tensor:
    """Return the layer's result for one case from its equations."""
    if not any(one > CLOSED for one in bias_T):
        return x_ND
    size, share = made.q_norm.weight.shape[0], made.heads // made.kv_heads
    out = []
    for x in x_ND:
        heads = []
        for h in range(made.heads):
            own, group = slice(h * size, (h + 1) * size), slice(h // share * size, (h // share + 1) * size)
            q = rms((made.q.weight @ rms(x, made.norm))[own], made.q_norm)
            k = [rms((made.k.weight @ c)[group], made.k_norm) for c in c_TD]
            weights = [math.exp(b) * (q @ one / math.sqrt(size)).exp() for b, one in zip(bias_T, k, strict=True)]
            values = [(made.v.weight @ c)[group] for c in c_TD]
            heads.append(sum(w / sum(weights) * v for w, v in zip(weights, values, strict=True)))
        x = x + made.attention_gate.tanh() * (made.proj.weight @ torch.cat(heads))
        normed = rms(x, made.norm_out)
        gate = made.gate.weight @ normed
        hidden = gate / (1 + (-gate).exp()) * (made.fc1.weight @ normed)
        out.append(x + made.mlp_gate.tanh() * (made.fc2.weight @ hidden))
    return torch.stack(out)


def strong() -> GatedCrossAttention:
    """Return a layer whose weights and gates are all large enough to tell."""
    made = layer()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return made


def test_it_is_what_the_equations_say() -> None:
    made = strong()
    values, context = torch.randn(4, 3, 12), torch.randn(4, 5, 12)
    bias = torch.tensor([[OPEN] * 5, [OPEN, -2.0, CLOSED, -0.3, OPEN], [CLOSED] * 4 + [OPEN], [CLOSED] * 5])
    out, unbiased = made(values, context, bias), made(values, context)
    for row in range(4):
        wanted = plain(made, values[row], context[row], bias[row].tolist())
        torch.testing.assert_close(out[row], wanted, rtol=1e-4, atol=1e-5)
        wanted = plain(made, values[row], context[row], [OPEN] * 5)
        torch.testing.assert_close(unbiased[row], wanted, rtol=1e-4, atol=1e-5)
    assert (unbiased - values).abs().amax() > 0.05


def test_it_starts_as_the_identity_and_only_its_gates_learn_at_first() -> None:
    made, values = layer(), torch.randn(2, 3, 12)
    out = made(values, torch.randn(2, 5, 12))
    assert torch.equal(out, values)
    (out * torch.randn_like(out)).sum().backward()
    assert {name for name, p in made.named_parameters() if p.grad.any()} == {"attention_gate", "mlp_gate"}


def test_after_a_step_everything_learns_and_so_do_context_and_gated_tokens() -> None:
    made = strong()
    context, bias = torch.randn(2, 5, 12, requires_grad=True), torch.full((2, 5), -0.7, requires_grad=True)
    made(torch.randn(2, 3, 12), context, bias).square().sum().backward()
    given = [*made.parameters(), context, bias]
    assert all(value.grad.isfinite().all() and value.grad.any() for value in given)


def test_a_row_closed_everywhere_is_unchanged_with_finite_gradients_and_none_to_its_context() -> None:
    made, values = strong(), torch.randn(2, 3, 12)
    context = torch.randn(2, 5, 12, requires_grad=True)
    out = made(values, context, torch.tensor([[CLOSED] * 5, [OPEN] * 5]))
    assert torch.equal(out[0], values[0])
    assert not torch.equal(out[1], values[1])
    out.square().sum().backward()
    assert not context.grad[0].any()
    assert context.grad[1].any()
    assert all(p.grad.isfinite().all() for p in made.parameters())


def test_a_closed_token_is_as_if_it_were_not_there() -> None:
    made, values, context = strong(), torch.randn(1, 3, 12), torch.randn(1, 5, 12)
    closed = made(values, context, torch.tensor([[OPEN, OPEN, OPEN, CLOSED, CLOSED]]))
    torch.testing.assert_close(closed, made(values, context[:, :3]))


@pytest.mark.parametrize("biased", [True, False])
def test_bfloat16_is_near_float32_mixed_or_true(biased: bool) -> None:
    made, values, context = strong(), torch.randn(2, 3, 12), torch.randn(2, 5, 12)
    bias = torch.full((2, 5), -0.5) if biased else None
    wanted = made(values, context, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = made(values, context, bias)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, wanted, rtol=0.05, atol=0.1)
    true = made.bfloat16()(values.bfloat16(), context.bfloat16(), None if bias is None else bias.bfloat16())
    assert true.dtype == torch.bfloat16
    torch.testing.assert_close(true.float(), wanted, rtol=0.1, atol=0.2)
