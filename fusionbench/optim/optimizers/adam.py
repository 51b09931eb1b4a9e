"""Adam."""

from collections.abc import Sequence

from torch.optim import Adam
from torch.optim.optimizer import ParamsT

from fusionbench.optim.adam_options import check_adam
from fusionbench.registry import register


@register
def adam(
    parameters: ParamsT,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Adam:
    """Adam (arXiv 1412.6980); its weight decay is an L2 penalty, added to the gradient.

    Args:
        parameters: What is trained, or groups of it.
        lr: Learning rate, the highest that a cosine schedule reaches.
        weight_decay: Factor of the weight that is added to its gradient.
        betas: Decay of the running means of the gradient and of its square.
        eps: Added to the root of the latter.

    Raises:
        UserError: A value is out of range.
    """
    pair = check_adam(lr, weight_decay, betas, eps)
    return Adam(parameters, lr=lr, weight_decay=weight_decay, betas=pair, eps=eps)
