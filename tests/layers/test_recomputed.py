"""Layers computed again on the way back: equal results and gradients, one layer at a time, little kept meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fusionbench.layers.recomputed import Recomputed


class Layer(nn.Module):
    """A layer that notes when it runs."""

    def __init__(self, name: str, ran: list[str]) -> None:
        super().__init__()
        self.name, self.ran = name, ran
        self.hidden, self.back = nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        self.ran.append(self.name)
        return values + mask * self.back(self.hidden(values).tanh())


def plain(layers: nn.ModuleList, values: Tensor, mask: Tensor) -> list[Tensor]:
    states = []
    for layer in layers:
        values = layer(values, mask)
        states.append(values)
    return states


def kept(run: Callable[[], Iterable[Tensor]]) -> tuple[Tensor, int]:
    """Return the sum of what a function returns, and how many numbers are kept for the way back."""
    sizes: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.update({t.data_ptr(): t.numel()}) or t, lambda t: t):
        out = sum(state.square().sum() for state in run())
    return out, sum(sizes.values())


def test_results_and_gradients_are_the_same_and_less_is_kept() -> None:
    given, ran = nn.ModuleList(Layer(name, []) for name in "abc"), []
    stack = Recomputed(copy.deepcopy(given))
    values, mask = torch.randn(2, 50, 8), torch.rand(2, 50, 1)
    for layer in stack.layers:
        layer.ran = ran
    wanted, whole = kept(lambda: plain(given, values, mask))
    found, least = kept(lambda: stack(values, mask).hidden_states)
    assert torch.equal(found, wanted)
    assert least < whole / 3
    for out in (wanted, found):
        out.backward()
    assert ran == list("abc" + "cba"), "each layer is computed again right before its own way back"
    for name, value in given.named_parameters(prefix="layers"):
        torch.testing.assert_close(stack.get_parameter(name).grad, value.grad)
    last = stack(values, mask)
    assert torch.equal(last.last_hidden_state, last.hidden_states[-1])


@torch.no_grad()
def test_without_gradients_nothing_is_kept_and_names_are_those_of_the_layers() -> None:
    ran: list[str] = []
    stack = Recomputed([Layer("a", ran)])
    assert not stack(torch.randn(1, 2, 8), torch.ones(1)).last_hidden_state.requires_grad
    assert set(stack.state_dict()) == {
        f"layers.0.{part}.{kind}" for part in ("hidden", "back") for kind in ("weight", "bias")
    }
