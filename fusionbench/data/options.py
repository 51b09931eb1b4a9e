"""Checks of options that their types alone do not tell, made before anything is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusionbench.errors import UserError, nearest
from fusionbench.types import ModalitySpec

if TYPE_CHECKING:
    from fusionbench.data.base import Dataset

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


def choose_modalities(dataset: Dataset, wanted: Sequence[str] | None) -> dict[str, ModalitySpec]:
    """Return the chosen modalities' specs in the order asked for.

    Raises:
        UserError: The dataset lacks one, or a name cannot be used.
    """
    from torch.nn import ModuleDict

    if wanted is not None and not len(wanted):
        raise UserError(f"data.modalities is empty: name at least one of {', '.join(dataset.modalities)}")
    names = list(dataset.modalities if wanted is None else wanted)
    for name in names:
        if name not in dataset.modalities:
            raise UserError(f"{type(dataset).__name__} has no modality '{name}'{nearest(name, dataset.modalities)}")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or hasattr(ModuleDict, name):
            raise UserError(f"'{name}' cannot be a modality's name: use another word of letters, digits, - and _")
    if len(set(names)) != len(names):
        raise UserError(f"data.modalities names a modality twice: {', '.join(names)}")
    return {name: dataset.modalities[name] for name in names}
