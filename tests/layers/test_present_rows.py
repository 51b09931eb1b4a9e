"""Rows that are present go through a network as if they were the whole batch; without any its statistics stay."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fusionbench.layers.present_rows import PresentRows


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()


def test_rows_come_back_to_their_places() -> None:
    rows = PresentRows(torch.tensor([False, True, False, True]))
    values = torch.arange(8.0).view(4, 2)
    assert rows.take(values).tolist() == [[2, 3], [6, 7]]
    assert rows.put(rows.take(values)).tolist() == [[0, 0], [2, 3], [0, 0], [6, 7]]
    everything = PresentRows(None)
    assert everything.put(everything.take(values)) is values


def test_absent_rows_have_no_part_in_statistics() -> None:
    made = network()
    other = copy.deepcopy(made)
    values, rows = torch.randn(5, 3), PresentRows(torch.tensor([True, False, True, True, False]))
    with rows.alone(made):
        found = rows.put(made(rows.take(values)))
    torch.testing.assert_close(found[[0, 2, 3]], other(values[[0, 2, 3]]))
    assert not found[[1, 4]].any()
    torch.testing.assert_close(made.state_dict(), other.state_dict())


def test_without_any_row_the_network_is_called_but_statistics_stay_and_gradients_are_zero() -> None:
    made, rows = network(), PresentRows(torch.zeros(3, dtype=torch.bool))
    before, calls = copy.deepcopy(made.state_dict()), []
    made.register_forward_hook(lambda *_: calls.append(1))
    with rows.alone(made):
        found = rows.put(made(rows.take(torch.randn(3, 3))))
    found.sum().backward()
    assert calls == [1]
    assert found.shape == (3, 2)
    assert not found.any()
    assert all(p.grad is not None and not p.grad.any() for p in made.parameters())
    torch.testing.assert_close(made.state_dict(), before, rtol=0, atol=0)
    assert all(module.training for module in made.modules())
