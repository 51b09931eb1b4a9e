"""AdamW."""

from collections.abc import Sequence

from torch.optim import AdamW
from torch.optim.optimizer import ParamsT

from fusionbench.optim.adam_options import check_adam
from fusionbench.registry import register


@register
def adamw(
    parameters: ParamsT,
    *,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> AdamW:
    """AdamW: Adam with decoupled weight decay (arXiv 1711.05101).

    Args:
        parameters: What is trained, or groups of it.
        lr: Learning rate, the highest that a cosine schedule reaches.
        weight_decay: Share of a weight that a step takes away, times the rate.
        betas: Decay of the running means of the gradient and of its square.
        eps: Added to the root of the latter.

    Raises:
        UserError: A value is out of range.
    """
    pair = check_adam(lr, weight_decay, betas, eps)
    return AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=pair, eps=eps)
