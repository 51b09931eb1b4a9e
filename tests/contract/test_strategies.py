"""What every fusion strategy must pass; they are found in their folder, so a new file is covered by itself."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    SPECS,
    adaptation,
    batch,
    criterion,
    encoder_node,
    key_lengths,
    pool_for,
    problem,
    stage_one,
    step,
    strategy,
    trained,
)
from torch import Tensor
from trials import accepts_missing, counts, gradients, same_dropout, some, spoil, subsets, up_to_three

from fusionbench import registry
from fusionbench.errors import UserError
from fusionbench.fusion.base import Strategy
from fusionbench.types import Batch

STRATEGIES = registry.names("fusion")
METHODS = registry.names("adapt")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=STRATEGIES)
def name(request: pytest.FixtureRequest) -> str:
    """Go through the strategies."""
    return str(request.param)


@pytest.mark.parametrize("multilabel", [False, True], ids=["multiclass", "multilabel"])
def test_shapes(name: str, multilabel: bool) -> None:
    for count in counts(name):
        made = some(name, count, multilabel)
        output, losses = step(strategy(name, made), batch(made, 3))
        assert output.logits.shape == (3, 3)
        assert all(b.shape == (3, 3) and b.isfinite().all() for b in output.branches.values())
        assert all(p.shape == (3,) and p.dtype == torch.bool for p in output.branch_present.values())
        assert output.weights is None or output.weights.shape == (3, count)
        assert losses
        assert all(value.ndim == 0 and value.isfinite() for value in losses.values())


@pytest.mark.parametrize("multilabel", [False, True], ids=["multiclass", "multilabel"])
def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one(name: str, multilabel: bool) -> None:
    made = some(name, counts(name)[-1], multilabel)
    network = strategy(name, made)
    grads = gradients(network, batch(made, 4))
    for parameter, value in network.named_parameters():
        grad = grads[parameter]
        if value.requires_grad:
            assert grad is not None, f"{parameter} is trained but gets no gradient"
            assert grad.isfinite().all(), f"the gradient of {parameter} is not finite"
            assert grad.any(), f"the gradient of {parameter} is zero"
        else:
            assert grad is None, f"{parameter} is frozen but gets a gradient"


def test_what_is_absent_is_never_read(name: str) -> None:
    if not accepts_missing(name):
        pytest.skip("needs_all: data with missing modalities are refused")
    made = up_to_three(name)
    network = strategy(name, made)
    cases = batch(made, present=subsets(made))
    spoilt = spoil(made, cases)
    (a, first), (b, second) = (same_dropout(step, network, c) for c in (cases, spoilt))
    assert torch.equal(a.logits, b.logits)
    assert all(torch.equal(a.branches[k], b.branches[k]) for k in a.branches)
    assert all(torch.equal(first[k], second[k]) for k in first)
    clean, dirty = (same_dropout(gradients, network, c) for c in (cases, spoilt))
    assert all(torch.equal(grad, dirty[k]) for k, grad in clean.items() if grad is not None)


def test_any_subset_of_modalities_gives_finite_predictions_and_gradients(name: str) -> None:
    if not accepts_missing(name):
        pytest.skip("needs_all: data with missing modalities are refused")
    made = up_to_three(name)
    network = strategy(name, made)
    every = subsets(made)
    output = network(batch(made, present=every).inputs, every)
    assert output.logits.isfinite().all()
    if output.weights is not None:
        assert (output.weights[~every] == 0).all()
        torch.testing.assert_close(output.weights.sum(dim=1), torch.ones(len(every)))
    for row in range(len(every)):
        present = every[row : row + 1].repeat(2, 1)
        grads = gradients(network, batch(made, present=present))
        assert all(g.isfinite().all() for g in grads.values() if g is not None)


def test_what_is_present_is_read(name: str) -> None:
    made = some(name, counts(name)[-1])
    network = strategy(name, made).eval()
    cases = batch(made, 2)
    before = network(cases.inputs, cases.present).logits
    read = []
    for modality, value in cases.inputs.items():
        other = value.roll(1, dims=0)
        after = network({**cases.inputs, modality: other}, cases.present).logits
        read.append(not torch.equal(before, after))
    assert any(read)
    assert all(read) or name == "unimodal"


@pytest.mark.parametrize("training", [True, False])
def test_the_views_whose_features_are_stored_are_those_that_are_looked_up(name: str, training: bool) -> None:
    made = some(name, counts(name)[-1])
    network = strategy(name, made).train(training)
    asked: set[str] = set()
    real = network.views.stored
    network.views.stored = lambda inputs: asked.update(inputs) or real(inputs)
    cases = batch(made, 3)
    network(cases.inputs, cases.present)
    assert asked == set(network.feature_views)


def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    made = up_to_three(name)
    network = strategy(name, made).eval()
    present = subsets(made) if accepts_missing(name) else None
    cases = batch(made, 4, present)
    whole = network(cases.inputs, cases.present).logits
    for row in range(len(whole)):
        alone = network({k: v[row : row + 1] for k, v in cases.inputs.items()}, cases.present[row : row + 1]).logits
        torch.testing.assert_close(alone[0], whole[row], **CLOSE)


def test_the_state_survives_a_round_trip(name: str) -> None:
    made = some(name, counts(name)[-1])
    first, second = strategy(name, made).eval(), strategy(name, made).eval()
    cases = batch(made, 2)
    before = first(cases.inputs, cases.present).logits
    assert not torch.equal(before, second(cases.inputs, cases.present).logits)
    second.load_state_dict(first.state_dict())
    assert torch.equal(before, second(cases.inputs, cases.present).logits)


def test_the_forward_pass_is_repeatable_and_leaves_its_inputs_alone(name: str) -> None:
    made = some(name, counts(name)[-1])
    network = strategy(name, made).eval()
    cases = batch(made, 2)
    kept = {k: v.clone() for k, v in cases.inputs.items()}
    first = network(cases.inputs, cases.present).logits
    assert torch.equal(first, network(cases.inputs, cases.present).logits)
    assert all(torch.equal(kept[k], cases.inputs[k]) for k in kept)


def test_stage_1_states_can_be_loaded_and_change_the_predictions(name: str) -> None:
    made = some(name, counts(name)[-1])
    source = pool_for(name, made)
    network = strategy(name, made, source).eval()
    cases = batch(made, 2)
    before = network(cases.inputs, cases.present).logits
    network.load_unimodal(stage_one(made, source))
    assert not torch.equal(before, network(cases.inputs, cases.present).logits)


@pytest.mark.parametrize("method", METHODS)
def test_every_pair_of_strategy_and_tuning_method_trains(name: str, method: str) -> None:
    made = up_to_three(name)
    source = pool_for(name, made, method)
    if registry.describe("fusion", name).constants.get("encoders") and not suits_language_models(method):
        with pytest.raises(UserError, match="works on a transformer's layers"):
            strategy(name, made, source)
        return
    network = strategy(name, made, source)
    cases = batch(made, 3)
    before = descend(network, cases)
    output, losses = step(network, cases)
    assert output.logits.isfinite().all()
    assert sum(losses.values()) < before


def suits_language_models(method: str) -> bool:
    """Whether a tuning method can be put into a language model whose layers a strategy runs itself."""
    kind, options = encoder_node("llama_vision")
    try:
        adaptation(method).apply(kind(SPECS["report"], **options), 1)
    except UserError:
        return False
    return True


def descend(network: Strategy, cases: Batch, rate: float = 1e-3) -> Tensor:
    """Take one small step down the gradient and return the loss before it."""
    network.eval()
    _, losses = step(network, cases)
    total = sum(losses.values())
    total.backward()
    size = sum(p.grad.square().sum() for _, p in trained(network) if p.grad is not None)
    with torch.no_grad():
        for _, parameter in trained(network):
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad / size.sqrt())
    return total.detach()


@pytest.mark.parametrize("encoder", registry.names("encoder"))
def test_every_encoder_serves_every_strategy_that_can_take_it(name: str, encoder: str) -> None:
    about = registry.describe("encoder", encoder).constants
    if registry.describe("fusion", name).constants.get("adds_tokens") and not about.get("takes_tokens", True):
        pytest.skip("the strategy adds tokens, which the encoder cannot take; build refuses the pair")
    kinds = about.get("kinds", ("image", "slices"))
    taken = registry.describe("fusion", name).constants.get("encoders", {})
    if taken and not any(encoder in taken.get(kind, ()) for kind in kinds):
        pytest.skip("the strategy takes encoders of its own kind; build refuses the pair")
    names = tuple(n for n, spec in SPECS.items() if spec.kind in kinds)
    others = set(names) - {"picture", "report", "record"}
    made = problem((*names, "report")) if others and not taken else up_to_three(name)
    network = strategy(name, made, pool_for(name, made, "full", dict.fromkeys(kinds, encoder)))
    output, losses = step(network, batch(made, 3))
    assert output.logits.isfinite().all()
    assert all(value.isfinite() for value in losses.values())


def test_mixed_precision_gives_finite_losses_and_gradients(name: str) -> None:
    made = some(name, counts(name)[-1])
    network = strategy(name, made)
    cases = batch(made, 2)
    full, _ = same_dropout(step, network, cases)
    with torch.autocast("cpu", torch.bfloat16):
        output, losses = same_dropout(step, network, cases)
    sum(losses.values()).backward()
    torch.testing.assert_close(output.logits.float(), full.logits, rtol=0.1, atol=0.1)
    assert all(p.grad.isfinite().all() for _, p in trained(network) if p.grad is not None)


def test_one_key_is_no_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention over a single key has weight 1 whatever the query, so its query and key weights would be dead."""
    made = some(name, counts(name)[-1])
    network = strategy(name, made)
    lengths = key_lengths(monkeypatch, network)
    step(network, batch(made, 2))
    assert lengths
    assert all(length > 1 for length in lengths)


def test_the_criterion_of_an_all_absent_branch_is_zero() -> None:
    for multilabel in (False, True):
        made = problem(("picture", "report"), multilabel=multilabel)
        cases = batch(made, 2)
        logits = torch.randn(2, 3, requires_grad=True)
        loss = criterion(made)(logits, cases.target, torch.zeros(2, dtype=torch.bool))
        loss.backward()
        assert loss == 0
        assert not logits.grad.any()
