"""Cosine decay after a linear warm-up."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fusionbench.errors import UserError, check_number
from fusionbench.registry import register


@register
def cosine(
    optimizer: Optimizer,
    steps_per_epoch: int,
    max_epochs: int,
    *,
    warmup_epochs: float = 1.0,
    decay_epochs: int | None = None,
    min_lr: float = 1e-7,
) -> LambdaLR:
    """Linear warm-up, then half a cosine from the optimizer's rate down to ``min_lr``, where it stays.

    A part with a rate of its own goes down by the same factor, so to ``min_lr`` times its rate over the optimizer's.

    Args:
        optimizer: Its rate is the highest.
        steps_per_epoch: Steps of the optimizer in an epoch.
        max_epochs: Of the run.
        warmup_epochs: Length of the warm-up; 0: none.
        decay_epochs: Epoch, from the start, at which the rate is down; null: ``max_epochs``. EI's second code version
            has 50.
        min_lr: The lowest rate.

    Raises:
        UserError: A value is out of range, or the decay ends before the warm-up.
    """
    lr = float(optimizer.defaults["lr"])
    check_number("scheduler.warmup_epochs", warmup_epochs, least=0)
    check_number("scheduler.min_lr", min_lr, least=0)
    if min_lr > lr:
        raise UserError(f"'scheduler.min_lr' must not be above 'optimizer.lr', but is {min_lr} > {lr}")
    if decay_epochs is not None:
        check_number("scheduler.decay_epochs", decay_epochs, least=1)
        if decay_epochs <= warmup_epochs:
            raise UserError(
                "'scheduler.decay_epochs' must be above 'scheduler.warmup_epochs', "
                f"but is {decay_epochs} with a warm-up of {warmup_epochs}"
            )
    warm = max(1, round(warmup_epochs * steps_per_epoch))
    total = max(warm + 1, round((decay_epochs or max_epochs) * steps_per_epoch))
    floor = min_lr / lr

    def factor(step: int) -> float:
        if warmup_epochs > 0 and step < warm:
            return (step + 1) / warm
        progress = min(1.0, (step - warm) / (total - warm))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * max(0.0, progress)))

    return LambdaLR(optimizer, factor)
