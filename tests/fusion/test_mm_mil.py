"""MM-MIL against a plain loop that does over-sample, with missing modalities, and its parameters counted."""

from __future__ import annotations

import math

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
from tiny import batch, images, problem, step, strategy
from torch import Tensor

from fusionbench.errors import UserError
from fusionbench.fusion.base import Strategy
from fusionbench.types import Batch, ModalitySpec, Problem

SMALL = {"heads": 2, "hidden": 5}


def scans(*instances: int) -> Problem:
    """Return a problem on modalities of so many images each."""
    specs = {f"image{m}": ModalitySpec("slices", size=32, instances=s) for m, s in enumerate(instances)}
    return Problem(specs, ("a", "b", "c"))


def bag(network: Strategy, cases: Batch, case: int) -> list[tuple[int, Tensor]]:
    """Return modality and vector of each instance, over-sampled until all modalities have equally many."""
    counts = [s.instances if s.is_image else 1 for s in network.problem.modalities.values()]
    out = []
    for m, name in enumerate(network.names):
        if cases.present[case, m]:
            once = vectors(network, cases, case, name)
            if name in network.projections:
                once = [affine(network.projections[name], v) for v in once]
            out += [(m, v) for v in once] * (math.lcm(*counts) // counts[m])
    return out


def plain_case(network: Strategy, cases: Batch, case: int) -> tuple[Tensor, Tensor]:
    """Return a case's logits (K,) and how much each modality counted (M,)."""
    instances = bag(network, cases, case)
    heads, hidden = network.score.shape
    logits, counted = [], torch.zeros(len(network.names))
    for k in range(heads):
        rows = slice(k * hidden, (k + 1) * hidden)
        U, u = network.hidden.weight[rows], network.hidden.bias[rows]
        a = softmax([network.score[k] @ torch.tanh(U @ v + u) for _, v in instances])
        logits.append(affine(network.head, sum(w * v for w, (_, v) in zip(a, instances, strict=True))))
        for w, (m, _) in zip(a, instances, strict=True):
            counted[m] = counted[m] + w.detach() / heads
    return average(logits), counted


def check(network: Strategy, cases: Batch) -> None:
    """Compare predictions, weights, loss and gradients."""
    output, losses = step(network, cases)
    plain = [plain_case(network, cases, case) for case in range(len(cases.target))]
    torch.testing.assert_close(output.logits, torch.stack([z for z, _ in plain]), **CLOSE)
    torch.testing.assert_close(output.weights, torch.stack([w for _, w in plain]), **CLOSE)
    wanted = cross_entropy([z for z, _ in plain], cases, list(range(len(plain))))
    assert set(losses) == {"fused"}
    torch.testing.assert_close(losses["fused"], wanted, **CLOSE)
    check_gradients(network, losses["fused"], wanted)


@pytest.mark.parametrize(
    "made",
    [images(2), images(3, multilabel=True), scans(1, 4), scans(2, 3), problem(("picture", "report", "record", "scan"))],
    ids=["two", "multilabel", "one of four", "two of three", "widths"],
)
def test_equals_the_plain_loop(made: Problem) -> None:
    check(strategy("mm_mil", made, **SMALL), batch(made, 2))


def test_missing_modalities_are_left_out() -> None:
    made = scans(1, 3, 2)
    check(strategy("mm_mil", made, **SMALL), batch(made, present=MISSING))


def test_copies_of_an_image_change_nothing() -> None:
    one, three = strategy("mm_mil", scans(2, 1), **SMALL), strategy("mm_mil", scans(2, 3), **SMALL)
    three.load_state_dict(one.state_dict())
    cases = batch(scans(2, 1), 2)
    inputs = {**cases.inputs, "image1": cases.inputs["image1"].repeat(1, 3, 1, 1, 1)}
    before, after = one(cases.inputs, cases.present), three(inputs, cases.present)
    torch.testing.assert_close(before.logits, after.logits, **CLOSE)
    torch.testing.assert_close(before.weights, after.weights, **CLOSE)


def test_only_narrower_encoders_are_projected() -> None:
    network = strategy("mm_mil", problem(("picture", "report", "record")), **SMALL)
    widths = {name: network.views.width(name) for name in network.names}
    assert set(network.projections) == {name for name, width in widths.items() if width < max(widths.values())}
    assert not strategy("mm_mil", images(2), **SMALL).projections


@pytest.mark.parametrize("option", ["heads", "hidden"])
def test_a_value_out_of_range_is_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"^'fusion.{option}' must be at least 1, not 0"):
        strategy("mm_mil", images(2), **{option: 0})


def test_trainable_parameters() -> None:
    network = vit_base("mm_mil", 2, 4)
    module, classifier = 8 * (768 * 256 + 256 + 256), 768 * 4 + 4
    assert trainable(network) == 2 * MOR + module + classifier == 4_529_348
    assert (millions("mm_mil", clip), millions("mm_mil", dinov2)) == (202.5, 203.6)
    assert millions("mm_mil", lambda size: MOR) == 5.0
