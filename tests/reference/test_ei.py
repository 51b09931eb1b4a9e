"""EI's predictions, each of its losses and all gradients against the plain loop over the paper's equations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from plain_ei import Plain, Reading, plain_ei
from tiny import batch, images, problem, step, strategy, trained
from torch import Tensor

from fusionbench.fusion.base import Strategy
from fusionbench.types import Batch, Output

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the problem, of the strategy
    "two": ({"count": 2}, {}),
    "three": ({"count": 3}, {}),
    "multilabel": ({"count": 3, "multilabel": True}, {}),
    "slices": ({"count": 2, "slices": 4}, {}),
    "slices, mean": ({"count": 2, "slices": 4}, {"aux_pool": "mean"}),
    "slices, primary max": ({"count": 2, "slices": 4}, {"primary_pool": "max"}),
    "slices, multilabel": ({"count": 3, "slices": 4, "multilabel": True}, {"detach": False}),
    "as printed": ({"count": 2}, {"detach": False}),
    "as printed, three": ({"count": 3, "multilabel": True}, {"detach": False}),
    "acquired early": ({"count": 2}, {"acquire_layer": 2}),
    "acquired first": ({"count": 2}, {"acquire_layer": 1}),
    "acquired last": ({"count": 2}, {"acquire_layer": 6}),
    "inserted late": ({"count": 2}, {"insert_layer": 3}),
    "inserted last": ({"count": 3}, {"insert_layer": 5, "acquire_layer": 3}),
    "prior named": ({"count": 3}, {"prior": "image1"}),
    "prior by sample": ({"count": 2}, {"prior": "per_sample", "gaps": [1.0, 0.9]}),
    "prior by sample, multilabel": ({"count": 3, "multilabel": True}, {"prior": "per_sample", "gaps": [1.0, 1.0, 1.1]}),
    "no prior": ({"count": 2}, {"prior": "none"}),
    "weights of the losses": ({"count": 2}, {"lambda_aux": 0.7, "lambda_gate": 0.4}),
}
MISSING = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0]], dtype=torch.bool)


def reading(options: dict[str, Any], count: int) -> Reading:
    """Translate options for the loop; stage-1 scores rise with the modalities' order (``tiny.stage_one``)."""
    prior = options.get("prior", "best")
    order = {"best": list(reversed(range(count))), "none": [], "per_sample": []}.get(prior)
    if order is None:
        named = int(prior.removeprefix("image"))
        order = [named, *(m for m in range(count) if m != named)]
    kept = {k: v for k, v in options.items() if k not in ("prior", "gaps", "hidden")}
    return replace(Reading(order=order, gaps=options.get("gaps")), **kept)


def check(network: Strategy, cases: Batch, how: Reading) -> tuple[Output, Plain]:
    """Compare predictions, weights, named losses and gradients to 1e-5."""
    output, losses = step(network, cases)
    plain = plain_ei(network, cases, how)
    torch.testing.assert_close(output.logits, plain.logits, **CLOSE)
    torch.testing.assert_close(output.weights, plain.weights, **CLOSE)
    check_branches(network, output, plain)
    check_losses(losses, plain.losses)
    check_gradients(network, sum(losses.values()), sum(plain.losses.values()))
    return output, plain


def check_branches(network: Strategy, output: Output, plain: Plain) -> None:
    """Compare each branch where the case has its modality."""
    for m, name in enumerate(network.names):
        for role, wanted in (("primary", plain.primary), ("auxiliary", plain.auxiliary)):
            for case, value in enumerate(wanted):
                seen = bool(output.branch_present[f"{role}/{name}"][case])
                assert seen == (value[m] is not None)
                if value[m] is not None:
                    torch.testing.assert_close(output.branches[f"{role}/{name}"][case], value[m], **CLOSE)


def check_losses(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare the terms of Eq. 5-8 by name."""
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, **CLOSE)


def check_gradients(network: Strategy, got: Tensor, wanted: Tensor) -> None:
    """Compare the gradients of all that is trained."""
    names, parameters = zip(*trained(network), strict=True)
    mine = torch.autograd.grad(got, parameters, allow_unused=True)
    theirs = torch.autograd.grad(wanted, parameters, allow_unused=True)
    for name, a, b, parameter in zip(names, mine, theirs, parameters, strict=True):
        zero = torch.zeros_like(parameter)
        torch.testing.assert_close(
            zero if a is None else a, zero if b is None else b, **CLOSE, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_loop(case: str) -> None:
    about, options = CASES[case]
    made = images(**about)
    network = strategy("early_intervention", made, **{"hidden": 12, **options})
    check(network, batch(made, 2), reading(options, about["count"]))


@pytest.mark.parametrize(
    "options", [{}, {"detach": False}, {"prior": "per_sample", "gaps": [1.0, 1.0, 1.0]}, {"prior": "image1"}], ids=str
)
def test_missing_modalities_are_left_out(options: dict[str, Any]) -> None:
    made = images(3)
    network = strategy("early_intervention", made, hidden=12, **options)
    output, _ = check(network, batch(made, present=MISSING), reading(options, 3))
    assert (output.weights[~MISSING] == 0).all()


def test_complete_data_need_no_mask() -> None:
    made = images(3)
    masked = strategy("early_intervention", made, hidden=12)
    plain = strategy("early_intervention", replace(made, complete=True), hidden=12)
    plain.load_state_dict(masked.state_dict())
    output, _ = check(plain, batch(made, 2), reading({}, 3))
    cases = batch(made, 2)
    torch.testing.assert_close(plain(*cases[:2]).logits, masked(*cases[:2]).logits, **CLOSE)
    assert output.logits.shape == (2, 3)


def test_vision_and_text_of_different_widths() -> None:
    made = problem(("picture", "report"))
    network = strategy("early_intervention", made, hidden=12)
    present = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1]], dtype=torch.bool)
    check(network, batch(made, present=present), Reading(order=[1, 0]))


def test_the_fused_loss_trains_the_gate_alone() -> None:
    made = images(2)
    network = strategy("early_intervention", made, hidden=12)
    _, losses = step(network, batch(made))
    losses["fused"].backward()
    assert {name for name, p in trained(network) if p.grad is not None and p.grad.any()} == {"gate.weight", "gate.bias"}


def test_primary_losses_reach_the_auxiliary_adapters() -> None:
    made = images(2)
    network = strategy("early_intervention", made, hidden=12)
    _, losses = step(network, batch(made))
    sum(value for name, value in losses.items() if name.startswith("primary/")).backward()
    views = [network.views.address[f"auxiliary/{name}"][1] for name in network.names]
    ups = [p.grad for name, p in trained(network) if name.endswith(".up")]
    assert all(grad is not None and grad[view].any() for grad in ups[:-1] for view in views)


def test_both_roles_and_the_auxiliary_head_start_from_stage_1() -> None:
    from tiny import pool, stage_one

    from fusionbench.fusion.early_intervention import EarlyIntervention

    made = images(2)
    source = pool(made)
    states = stage_one(made, source)
    network = EarlyIntervention(made, source)
    fresh = {name: network.heads[name].weight.clone() for name in made.modalities}
    network.load_unimodal(states)
    for name, state in states.items():
        for role in ("auxiliary", "primary"):
            torch.testing.assert_close(network.views.adapter(f"{role}/{name}"), state.adapter, rtol=0, atol=0)
        assert torch.equal(network.auxiliary_heads[name].weight, state.head["weight"])
        assert torch.equal(network.heads[name].weight, fresh[name])
