"""What Adam and AdamW are told, and its ranges."""

from collections.abc import Sequence

from fusionbench.errors import UserError, check_number


def check_adam(lr: float, weight_decay: float, betas: Sequence[float], eps: float) -> tuple[float, float]:
    """Return the betas as a pair.

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
    return betas[0], betas[1]
