"""Stochastic gradient descent."""

from torch.optim import SGD
from torch.optim.optimizer import ParamsT

from fusionbench.errors import UserError, check_number
from fusionbench.registry import register


@register
def sgd(
    parameters: ParamsT,
    *,
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
) -> SGD:
    """SGD with momentum; the defaults are EI's (arXiv 2603.17514, Sec. 4.1).

    Args:
        parameters: What is trained, or groups of it.
        lr: Learning rate; the cyclic schedule sets its own.
        momentum: Share of the last step in the next.
        weight_decay: Factor of the weights that is added to their gradients.
        nesterov: Take the gradient where the momentum leads to.

    Raises:
        UserError: A value is out of range.
    """
    check_number("optimizer.lr", lr, above=0)
    check_number("optimizer.momentum", momentum, least=0, below=1)
    check_number("optimizer.weight_decay", weight_decay, least=0)
    if nesterov and momentum == 0:
        raise UserError("'optimizer.nesterov' needs a momentum: set optimizer.momentum above 0")
    return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
