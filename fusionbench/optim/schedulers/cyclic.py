"""The cyclic schedule of EI."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR

from fusionbench.errors import UserError, check_number
from fusionbench.registry import register


class _Decay:
    """Scales the n-th cycle by ``gamma ** (n - 1)``; a class, so that the scheduler's state can be saved."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def __call__(self, cycle: float) -> float:
        return float(self.gamma ** (cycle - 1))


@register
def cyclic(
    optimizer: Optimizer,
    steps_per_epoch: int,
    max_epochs: int,
    *,
    base_lr: float = 1e-5,
    max_lr: float = 1e-3,
    epochs_up: float = 4,
    gamma: float = 0.8,
    cycle_momentum: bool = True,
) -> CyclicLR:
    """Triangles between two rates, each lower than the last (EI, Sec. 4.1).

    The authors' first code version leaves torch's ``cycle_momentum`` on, which lets the momentum run between 0.9 and
    0.8 against the rate and overrides the 0.95 that the paper states.

    Args:
        optimizer: Its own rate is not used; a part with another one has both rates changed by the ratio of the two.
        steps_per_epoch: Steps of the optimizer in an epoch.
        max_epochs: Of the run.
        base_lr: The lower rate.
        max_lr: The higher rate, of the first cycle.
        epochs_up: Length of the way up, and of the way down.
        gamma: Factor of the height from one cycle to the next.
        cycle_momentum: Let the momentum run against the rate; ``false`` keeps the optimizer's.

    Raises:
        UserError: A value is out of range.
    """
    check_number("scheduler.base_lr", base_lr, least=0)
    check_number("scheduler.max_lr", max_lr, above=0)
    check_number("scheduler.epochs_up", epochs_up, above=0)
    check_number("scheduler.gamma", gamma, above=0)
    if base_lr > max_lr:
        raise UserError(f"'scheduler.base_lr' must not be above 'scheduler.max_lr', but is {base_lr} > {max_lr}")
    ratios = [group["lr"] / optimizer.defaults["lr"] for group in optimizer.param_groups]
    return CyclicLR(
        optimizer,
        base_lr=[base_lr * ratio for ratio in ratios],
        max_lr=[max_lr * ratio for ratio in ratios],
        step_size_up=max(1, round(epochs_up * steps_per_epoch)),
        scale_fn=_Decay(gamma),
        scale_mode="cycle",
        cycle_momentum=cycle_momentum and "momentum" in optimizer.defaults,
    )
