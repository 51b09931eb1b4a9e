"""No schedule."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fusionbench.registry import register


def _one(step: int) -> float:
    return 1.0


@register
def constant(optimizer: Optimizer, steps_per_epoch: int, max_epochs: int) -> LambdaLR:
    """The optimizer's own rate throughout."""
    return LambdaLR(optimizer, _one)
