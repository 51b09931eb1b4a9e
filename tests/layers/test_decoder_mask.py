"""Attention masks of decoders against a plain double loop, and that nothing leaks from answers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from fusionbench.layers.decoder_mask import Role, decoder_mask, encoder_roles

I, P, A = Role.IMAGE, Role.PROMPT, Role.ANSWER  # noqa: E741 - the letters make sequences readable
ONE_TURN = [P, I, I, P, P, A, A]
TWO_TURNS = [I, P, A, P, I, A]


def plain(roles: list[Role], open_: list[bool], causal: bool, mutual: bool) -> Tensor:
    """Return which key each query of one case sees, by cases."""
    seen = torch.zeros(len(roles), len(roles), dtype=torch.bool)
    for query, key in itertools.product(range(len(roles)), repeat=2):
        may = key <= query or not causal
        if causal and mutual and roles[query] is I:
            if roles[key] is P and A not in roles[:key]:
                may = True
            if roles[key] is A:
                may = False
        seen[query, key] = may and open_[key]
    return seen


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mutual", [True, False])
def test_it_equals_a_double_loop(causal: bool, mutual: bool) -> None:
    cases = [ONE_TURN, [*TWO_TURNS, P], [I, I, I, I, P, P, P]]
    keys = torch.rand(len(cases), 7) > 0.3
    found = decoder_mask(torch.tensor(cases), keys, causal=causal, mutual=mutual)
    assert found.shape == (3, 1, 7, 7)
    for row, roles in enumerate(cases):
        assert torch.equal(found[row, 0], plain(roles, keys[row].tolist(), causal, mutual))
    unmasked = decoder_mask(torch.tensor(cases), causal=causal, mutual=mutual)
    assert torch.equal(unmasked[1, 0], plain(cases[1], [True] * 7, causal, mutual))


def test_mutual_attention_opens_prompts_behind_an_image_and_nothing_for_text() -> None:
    roles = torch.tensor([ONE_TURN])
    causal, mutual = (decoder_mask(roles, mutual=m)[0, 0] for m in (False, True))
    opened = {(q, k) for q, k in (mutual & ~causal).nonzero().tolist()}
    assert opened == {(q, k) for q in (1, 2) for k in (3, 4)}
    assert torch.equal(mutual[roles[0] != I], causal[roles[0] != I])
    assert not mutual.triu(1)[roles[0] != I].any(), "text sees later text"


def states(roles: list[Role], values_ND: Tensor) -> list[Tensor]:
    """Run three layers of attention under the mutual mask and return every token's last state."""
    mask = decoder_mask(torch.tensor([roles]), mutual=True)
    torch.manual_seed(1)
    hidden = values_ND[None, None]
    for _ in range(3):
        q, k, v = (hidden @ torch.randn(4, 4) for _ in range(3))
        hidden = hidden + nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return list(hidden[0, 0])


@pytest.mark.parametrize("roles", [ONE_TURN, TWO_TURNS], ids=["one turn", "two turns"])
def test_no_state_depends_on_an_answer_behind_it_through_any_layers(roles: list[Role]) -> None:
    values = torch.randn(len(roles), 4, requires_grad=True)
    for place, state in enumerate(states(roles, values)):
        (gradient,) = torch.autograd.grad(state.sum(), values, retain_graph=True)
        reached = {key for key in range(len(roles)) if gradient[key].any()}
        assert place in reached
        assert not {key for key in reached if roles[key] is A and key > place}


def test_an_answer_changes_no_image_and_no_prompt_in_front_of_it() -> None:
    values = torch.randn(len(ONE_TURN), 4)
    other = values.clone()
    other[5] += 1
    before, after = states(ONE_TURN, values), states(ONE_TURN, other)
    assert all(torch.equal(before[place], after[place]) for place in range(5))
    assert all(not torch.equal(before[place], after[place]) for place in (5, 6))


def test_an_encoders_own_tokens_are_its_views_and_appended_ones_are_prompt() -> None:
    roles = encoder_roles([True, False], torch.zeros(4, 3, 2), appended=1)
    assert roles.tolist() == [[I, I, P], [I, I, P], [P, P, P], [P, P, P]]
