"""Checks of options that their types alone do not tell, made before anything is read."""

from __future__ import annotations

from fusionbench.errors import UserError

LAST_SEED = 2**32 - 1  # of numpy's and scikit-learn's generators


def at_least_one(**options: int) -> None:
    """Raise a UserError that names the first option of the dataset which is below 1."""
    for name, value in options.items():
        if value < 1:
            raise UserError(f"'data.{name}' must be at least 1, not {value}")


def check_split_seed(seed: int) -> None:
    """Raise a UserError if a generator cannot start from the seed."""
    if not 0 <= seed <= LAST_SEED:
        raise UserError(f"'data.split_seed' must lie in 0 to {LAST_SEED}, not {seed}")
