"""The pair of processes that the other tests here run in."""

from __future__ import annotations

import signal

import pytest
import torch
import torch.distributed as dist
from pairs import PairError, run_pair


def add_up(values: torch.Tensor) -> tuple[int, torch.Tensor]:
    rank = dist.get_rank()
    dist.all_reduce(values := values * (rank + 1))
    return rank, values


def fail_alone() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the second rank gives up")
    dist.barrier()


def test_both_ranks_join_one_group_and_return_their_results_in_order() -> None:
    handler = signal.getsignal(signal.SIGINT)
    first, second = run_pair(add_up, torch.arange(3.0))
    assert [first[0], second[0]] == [0, 1]
    assert torch.equal(first[1], 3 * torch.arange(3.0))
    assert torch.equal(second[1], first[1])
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_rank_that_fails_ends_the_other_and_shows_its_own_error() -> None:
    with pytest.raises(PairError, match=r"^Traceback[\s\S]*fail_alone[\s\S]*the second rank gives up"):
        run_pair(fail_alone)
