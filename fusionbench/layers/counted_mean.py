"""The mean over the cases that count, where processes have different numbers of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def counted(present_B: Tensor) -> Tensor:
    """Return the number of cases to divide a process's sum over its own cases by, (), at least 1 over all processes.

    It is their mean number over all processes, for gradients are averaged over processes afterwards (DDP, ZeRO): sums
    so divided average to the mean over all cases, as one process would take it, where means would weigh a case by how
    few others its process has. Alone it is the number itself. All processes must ask equally often.

    Args:
        present_B: bool, which of this process's cases count.
    """
    count = present_B.sum().float()
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return count.clamp(min=1)
    dist.all_reduce(count)
    return count.clamp(min=1) / dist.get_world_size()


def counted_mean(value_B: Tensor, present_B: Tensor) -> Tensor:
    """Average over the cases that count, without a branch on how many there are; 0 if there is none.

    Args:
        value_B: One of each case; anything where it doesn't count.
        present_B: bool, which do.
    """
    return torch.where(present_B, value_B, torch.zeros_like(value_B)).sum() / counted(present_B)
