"""Counted bytes against arithmetic."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fusionbench.plan.live_bytes import LiveBytes

KB = 1024


def test_it_counts_what_is_alive_at_once():
    with LiveBytes() as live:
        first = torch.zeros(KB)
        second = first + 1
        assert live.now == 2 * 4 * KB
        del first
        assert live.now == 4 * KB
        third = second.double()
        del second, third
    assert live.now == 0
    assert live.peak == 3 * 4 * KB


def test_a_view_and_what_was_there_before_add_nothing():
    weight = torch.zeros(8, KB)
    with LiveBytes([weight]) as live:
        seen = weight.t()[3:]
        weight.add_(1)
        other = torch.zeros(KB)
        again = other[4:].view(-1, 2)
    assert live.peak == 4 * KB
    assert len(seen) + len(again) > 0


def test_what_is_forgotten_counts_no_more_nor_when_it_dies():
    with LiveBytes() as live:
        kept, gone = torch.zeros(KB), torch.zeros(KB)
        live.forget(gone)
        assert live.now == 4 * KB
        del gone
        assert live.now == 4 * KB
        del kept
        assert live.now == 0


def test_fake_tensors_count_without_being_there_and_nonzero_is_all():
    with FakeTensorMode(), LiveBytes() as live:
        huge = torch.zeros(2**40)
        assert live.peak == 2**42
        places = torch.ones(3, 5, dtype=torch.bool).nonzero()
    assert huge.numel() == 2**40
    assert places.shape == (15, 2)
