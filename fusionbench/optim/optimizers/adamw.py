"""AdamW."""

from collections.abc import Iterable, Sequence

from torch.nn import Parameter
from torch.optim import AdamW

from fusionbench.errors import UserError, check_number
from fusionbench.registry import register


@register
def adamw(
    parameters: Iterable[Parameter],
    *,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> AdamW:
    """AdamW: Adam with decoupled weight decay (arXiv 1711.05101).

    Args:
        parameters: What is trained.
        lr: Learning rate, the highest that a cosine schedule reaches.
        weight_decay: Share of a weight that a step takes away, times the rate.
        betas: Decay of the running means of the gradient and of its square.
        eps: Added to the root of the latter.

    Raises:
        UserError: A value is out of range.
    """
    check_number("optimizer.lr", lr, above=0)
    check_number("optimizer.weight_decay", weight_decay, least=0)
    check_number("optimizer.eps", eps, above=0)
    if len(betas) != 2:
        raise UserError(f"'optimizer.betas' must be two numbers, not {list(betas)}")
    for beta in betas:
        check_number("optimizer.betas", beta, least=0, below=1)
    return AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]), eps=eps)
