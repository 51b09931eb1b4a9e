"""DynMM against a plain loop, both gates, its resource term, frozen experts, and its parameters counted."""

from __future__ import annotations

from typing import Any

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
from tiny import batch, images, pool, problem, stage_one, step, strategy, trained
from torch import Tensor

from fusionbench.errors import UserError
from fusionbench.fusion.base import Strategy
from fusionbench.fusion.dynmm import DynMM
from fusionbench.layers.frozen import trained_state
from fusionbench.types import Batch, ModalitySpec, Problem

Plain = tuple[list[Tensor | None], list[Tensor]]


def plain_case(network: Strategy, cases: Batch, case: int) -> Plain:
    """Return y of each expert, None where its modality is absent, and the soft gate's weights."""
    joint = "unimodal" if network.frozen else "multimodal"
    parts = [average(vectors(network, cases, case, f"{joint}/{name}")) for name in network.names]
    parts = [v if cases.present[case, m] else torch.zeros_like(v) for m, v in enumerate(parts)]
    y: list[Tensor | None] = []
    for name in network.own:
        here = cases.present[case, network.names.index(name)]
        y.append(
            affine(network.heads[name], average(vectors(network, cases, case, f"unimodal/{name}"))) if here else None
        )
    y.append(affine(network.head, torch.cat(parts)))
    first, _, second = network.gate
    scores = affine(second, affine(first, torch.cat(parts).detach()).clamp(min=0)) / network.temperature
    return y, softmax([None if y[e] is None else scores[e] for e in range(len(y))])


def gated(y: list[Tensor | None], g: list[Tensor]) -> Tensor:
    """Return the weighted sum of the predictions that there are."""
    return sum(share * z for share, z in zip(g, y, strict=True) if z is not None)


def check_weights(network: Strategy, cases: Batch, got_BM: Tensor, shares: list[list[Tensor]]) -> None:
    """Compare how much each modality counted."""
    for case, g in enumerate(shares):
        here = [m for m in range(len(network.names)) if cases.present[case, m]]
        for m, name in enumerate(network.names):
            wanted = g[-1] / len(here) if m in here else torch.zeros(())
            if name in network.own:
                wanted = wanted + g[network.own.index(name)]
            torch.testing.assert_close(got_BM[case, m], wanted, **CLOSE)


def check(network: Strategy, cases: Batch, resource_weight: float) -> None:
    """Compare predictions, weights, both losses and gradients of the soft gate."""
    output, losses = step(network, cases)
    plain = [plain_case(network, cases, case) for case in range(len(cases.target))]
    fused = [gated(y, g) for y, g in plain]
    torch.testing.assert_close(output.logits, torch.stack(fused), **CLOSE)
    wanted = {"fused": cross_entropy(fused, cases, list(range(len(fused))))}
    wanted["resource"] = resource_weight * average([g[-1] for _, g in plain])
    assert set(losses) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(losses[name], value, **CLOSE)
    check_weights(network, cases, output.weights, [g for _, g in plain])
    for e, name in enumerate((*network.own, "multimodal")):
        torch.testing.assert_close(output.diagnostics[f"gate/{name}"], average([g[e] for _, g in plain]), **CLOSE)
    assert not any(value.requires_grad for value in output.diagnostics.values())
    check_gradients(network, sum(losses.values()), sum(wanted.values()))


CASES: dict[str, tuple[Problem, dict[str, Any]]] = {
    "two": (images(2), {"temperature": 0.5}),
    "multilabel": (images(3, multilabel=True), {}),
    "slices": (images(2, slices=2), {}),
    "widths": (problem(("picture", "report", "record")), {"resource_weight": 0.3}),
    "one expert": (images(3), {"unimodal": "image1"}),
    "frozen": (images(2), {"experts": "frozen"}),
    "frozen, one expert": (images(2), {"experts": "frozen", "unimodal": "image1"}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_loop(case: str) -> None:
    made, options = CASES[case]
    network = strategy("dynmm", made, hidden=6, **options)
    check(network, batch(made, 3), options.get("resource_weight", 0.1))


@pytest.mark.parametrize("options", [{}, {"unimodal": "image1"}, {"experts": "frozen"}], ids=str)
def test_missing_modalities_are_left_out(options: dict[str, Any]) -> None:
    made = images(3)
    network = strategy("dynmm", made, hidden=6, **options)
    check(network, batch(made, present=MISSING), 0.1)


def test_the_straight_through_gate_chooses_and_has_the_soft_gates_gradient() -> None:
    made = images(3)
    network = strategy("dynmm", made, hidden=6, gate="straight_through")
    cases = batch(made, present=MISSING)
    output, losses = step(network, cases)
    plain = [plain_case(network, cases, case) for case in range(len(MISSING))]
    fused, shares = [], []
    for case, (y, soft) in enumerate(plain):
        best = max(range(len(y)), key=torch.stack(soft).tolist().__getitem__)
        torch.testing.assert_close(output.logits[case], y[best], **CLOSE)
        hard = [float(e == best) - g.detach() + g for e, g in enumerate(soft)]
        fused.append(gated(y, hard))
        shares.append(hard)
    wanted = cross_entropy(fused, cases, list(range(len(fused)))) + 0.1 * average([g[-1] for g in shares])
    torch.testing.assert_close(sum(losses.values()), wanted, **CLOSE)
    check_weights(network, cases, output.weights, shares)
    gates = list(network.gate.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(sum(losses.values()), gates), torch.autograd.grad(wanted, gates), strict=True
    ):
        assert mine.any()
        torch.testing.assert_close(mine, theirs, **CLOSE)


def test_the_choice_is_exact_at_test() -> None:
    made = images(2)
    network = strategy("dynmm", made, hidden=6, gate="straight_through").eval()
    output, _ = step(network, batch(made, 4))
    stacked = torch.stack(list(output.branches.values()), dim=1)
    assert all(any(torch.equal(z, y) for y in row) for z, row in zip(output.logits, stacked, strict=True))


def test_the_gate_does_not_train_the_encoders_it_reads() -> None:
    made = images(2)
    network = strategy("dynmm", made, hidden=6)
    _, losses = step(network, batch(made, 3))
    losses["resource"].backward()
    assert {n.split(".")[0] for n, p in trained(network) if p.grad is not None and p.grad.any()} == {"gate"}


def test_the_expected_cost_counts_tokens_layers_and_images() -> None:
    specs = {"small": ModalitySpec("image", size=32), "large": ModalitySpec("slices", size=64, instances=3)}
    made = Problem(specs, ("a", "b", "c"))
    network = strategy("dynmm", made, hidden=6)
    output, _ = step(network, batch(made, 2))
    flops = {}
    for name, spec in specs.items():
        d, n = network.views.width(f"multimodal/{name}"), (spec.size // 16) ** 2 + 1
        linear_layers, attention = 24 * n * d * d, 4 * n * n * d
        flops[name] = spec.instances * network.views.depth(f"multimodal/{name}") * (linear_layers + attention)
    rate = output.diagnostics
    wanted = sum(rate[f"gate/{n}"] * f / sum(flops.values()) for n, f in flops.items()) + rate["gate/multimodal"]
    torch.testing.assert_close(rate["gate/cost"], wanted, **CLOSE)


@pytest.mark.parametrize("method", ["mor", "full"])
def test_frozen_experts_come_from_stage_1_and_are_kept_in_a_checkpoint(method: str) -> None:
    made = images(2)
    source = pool(made, method)
    network, again = DynMM(made, source, experts="frozen"), DynMM(made, source, experts="frozen")
    assert network.needs_unimodal
    assert not DynMM(made, source).needs_unimodal
    states = stage_one(made, source)
    network.load_unimodal(states)
    assert {name.split(".")[0] for name, _ in trained(network)} == {"gate", "head"}
    for name, state in states.items():
        assert torch.equal(network.heads[name].weight, state.head["weight"])
    network.train()
    assert not any(part.training for part in network.views.modules())
    again.load_state_dict(trained_state(network), strict=False)
    assert {name.split(".")[0] for name, _ in trained(again)} == {"gate", "head"}
    cases = batch(made, 2)
    first, second = (n.eval()(cases.inputs, cases.present).logits for n in (network, again))
    torch.testing.assert_close(first, second)


def test_trained_experts_start_from_stage_1() -> None:
    made = images(2)
    source = pool(made)
    network = DynMM(made, source)
    states = stage_one(made, source)
    network.load_unimodal(states)
    for name, state in states.items():
        for role in ("unimodal", "multimodal"):
            torch.testing.assert_close(network.views.adapter(f"{role}/{name}"), state.adapter, rtol=0, atol=0)
        assert torch.equal(network.heads[name].weight, state.head["weight"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.0}, "'fusion.temperature' must be above 0, not 0.0"),
        ({"hidden": 0}, "'fusion.hidden' must be at least 1, not 0"),
        ({"resource_weight": -1.0}, "'fusion.resource_weight' must be at least 0, not -1.0"),
        ({"unimodal": "image7"}, "there is no modality 'image7' for fusion.unimodal; did you mean 'image"),
    ],
)
def test_a_value_out_of_range_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        strategy("dynmm", images(2), **options)
    assert str(caught.value).startswith(said)


def test_without_a_resource_weight_there_is_no_term() -> None:
    made = images(2)
    _, losses = step(strategy("dynmm", made, resource_weight=0.0), batch(made, 2))
    assert set(losses) == {"fused"}


def test_trainable_parameters() -> None:
    network = vit_base("dynmm", 2, 4)
    heads, gate = 2 * (768 * 4 + 4) + (1536 * 4 + 4), 1536 * 128 + 128 + 128 * 3 + 3
    assert trainable(network) == 4 * MOR + heads + gate == 6_108_047
    assert (millions("dynmm", clip, 2), millions("dynmm", dinov2, 2)) == (402.2, 404.3)
