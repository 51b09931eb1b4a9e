"""CosCat against a plain loop over its docstring's equations, with missing modalities, and its parameters counted."""

from __future__ import annotations

import pytest
import torch
from plain_vectors import (
    CLOSE,
    MISSING,
    MOR,
    affine,
    average,
    check_gradients,
    clip,
    cross_entropy,
    dinov2,
    millions,
    softmax,
    trainable,
    vectors,
    vit_base,
)
from tiny import batch, images, pool, problem, stage_one, step, strategy
from torch import Tensor

from fusionbench.errors import UserError
from fusionbench.fusion.base import Strategy
from fusionbench.types import Batch, Problem


def plain_case(network: Strategy, cases: Batch, case: int) -> tuple[list[Tensor | None], Tensor, list[Tensor]]:
    """Return y of each modality and of all (None where absent), the fused prediction and α."""
    parts: list[Tensor] = []
    y: list[Tensor | None] = []
    for m, name in enumerate(network.names):
        v = average(vectors(network, cases, case, name))
        here = bool(cases.present[case, m])
        parts.append(v if here else torch.zeros_like(v))
        y.append(affine(network.heads[name], v) if here else None)
    together = torch.cat(parts)
    y.append(affine(network.head, together))
    g = affine(network.gate, together)
    alpha = softmax([None if y[e] is None else g[e] for e in range(len(y))])
    fused = average([a * z * len(y) for a, z in zip(alpha, y, strict=True) if z is not None])
    return y, fused * sum(z is not None for z in y) / len(y), alpha


def check(network: Strategy, cases: Batch, weight: float) -> None:
    """Compare predictions, weights, losses and gradients."""
    output, losses = step(network, cases)
    plain = [plain_case(network, cases, case) for case in range(len(cases.target))]
    everyone = list(range(len(plain)))
    wanted = {"fused": cross_entropy([fused for _, fused, _ in plain], cases, everyone)}
    for e, name in enumerate([*(f"unimodal/{n}" for n in network.names), "concat"]):
        seen = [case for case in everyone if plain[case][0][e] is not None]
        assert output.branch_present[name].nonzero().flatten().tolist() == seen
        wanted[name] = weight * cross_entropy([plain[case][0][e] for case in seen], cases, seen)
    for case, (y, fused, alpha) in enumerate(plain):
        torch.testing.assert_close(output.logits[case], fused, **CLOSE)
        count = sum(z is not None for z in y[:-1])
        for m, z in enumerate(y[:-1]):
            share = torch.zeros(()) if z is None else alpha[m] + alpha[-1] / count
            torch.testing.assert_close(output.weights[case, m], share, **CLOSE)
    assert set(losses) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(losses[name], value, **CLOSE)
    torch.testing.assert_close(output.diagnostics["gate/concat"], average([a[-1] for _, _, a in plain]), **CLOSE)
    assert not output.diagnostics["gate/concat"].requires_grad
    check_gradients(network, sum(losses.values()), sum(wanted.values()))


@pytest.mark.parametrize(
    "made",
    [images(2), images(3, multilabel=True), images(2, slices=3), problem(("picture", "report", "record"))],
    ids=["two", "multilabel", "slices", "widths"],
)
def test_equals_the_plain_loop(made: Problem) -> None:
    check(strategy("coscat", made, branch_weight=0.7), batch(made, 3), 0.7)


def test_missing_modalities_are_left_out() -> None:
    made = images(3)
    check(strategy("coscat", made), batch(made, present=MISSING), 1.0)


def test_without_branch_losses_the_fused_one_is_alone() -> None:
    made = images(2)
    _, losses = step(strategy("coscat", made, branch_weight=0.0), batch(made, 2))
    assert set(losses) == {"fused"}


def test_it_is_not_concat() -> None:
    made = images(2)
    network = strategy("coscat", made)
    output, _ = step(network, batch(made, 3))
    assert not torch.allclose(output.logits, output.branches["concat"])


def test_stage_1_hands_on_adapters_and_unimodal_heads() -> None:
    made = images(2)
    source = pool(made)
    network = strategy("coscat", made, source)
    fresh = network.head.weight.clone()
    states = stage_one(made, source)
    network.load_unimodal(states)
    for name, state in states.items():
        torch.testing.assert_close(network.views.adapter(name), state.adapter, rtol=0, atol=0)
        assert torch.equal(network.heads[name].weight, state.head["weight"])
    assert torch.equal(network.head.weight, fresh)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(UserError, match=r"^'fusion.branch_weight' must be at least 0, not -1"):
        strategy("coscat", images(2), branch_weight=-1)


def test_trainable_parameters() -> None:
    network = vit_base("coscat", 2, 4)
    heads, gate = 2 * (768 * 4 + 4) + (1536 * 4 + 4), 1536 * 3 + 3
    assert trainable(network) == 2 * MOR + heads + gate == 2_966_223
    assert (millions("coscat", clip), millions("coscat", dinov2)) == (201.0, 202.0)
