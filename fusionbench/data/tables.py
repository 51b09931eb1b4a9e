"""Table cells to numbers: standardised and one-hot encoded by what the training cases hold, and by nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fusionbench.errors import UserError

Row = Sequence[object]
MOST_WORDS = 50
FEW_ROWS = 10  # so few rows may all differ by chance
ROUNDING = 1e-6  # of a column's greatest value: no deviation but the rounding of float32


class TableEncoder:
    """Turns raw rows into float32 columns.

    Numbers are standardised with the training mean and deviation, a gap in a row that is otherwise there becomes the
    mean (0). Words become one column for each word seen in training; an unseen word is all zeros.

    Args:
        state: What ``state`` of a fitted encoder holds; plain values, so that it can lie beside a checkpoint as JSON.
    """

    def __init__(self, state: Sequence[dict[str, Any]]) -> None:
        self.state = list(state)

    @classmethod
    def fit(cls, columns: Sequence[str], rows: Sequence[Row]) -> TableEncoder:
        """Learn means, deviations and words from the training rows.

        Raises:
            UserError: There is no row to learn from, a value is infinite, or a column's words are too many to be
                categories.
        """
        if not rows:
            raise UserError(f"no training case has the table with columns {', '.join(columns)}")
        frame = pd.DataFrame([list(row) for row in rows], columns=list(columns))
        return cls([_describe(name, frame[name]) for name in columns])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the encoded columns."""
        return tuple(name for column in self.state for name in _names(column))

    def __call__(self, row: Row) -> np.ndarray:
        """Encode one row to (F,) float32.

        Raises:
            UserError: A column of numbers holds a word or an infinite value.
        """
        return np.concatenate([_encode(column, value) for column, value in zip(self.state, row, strict=True)])


def _describe(name: str, values: pd.Series) -> dict[str, Any]:
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.notna().sum() == values.notna().sum():
        numbers = numbers.astype(float)
        if np.isinf(numbers).any():
            raise _not_finite(name, values[np.isinf(numbers)].iloc[0])
        mean = numbers.mean() if numbers.notna().any() else 0.0
        return {"name": name, "mean": float(mean), "std": _deviation(numbers)}
    there = values.dropna().map(str)
    words = sorted(set(there))
    if len(words) > MOST_WORDS or len(words) == len(there) > FEW_ROWS:
        raise UserError(
            f"column '{name}' has {len(words)} different words in {len(there)} training cases, so it looks like a name "
            f"or free text, which a table cannot learn from: leave it out or make it a modality of kind text"
        )
    return {"name": name, "words": words}


def _deviation(numbers: pd.Series) -> float:
    """Return the standard deviation, or 1 for a column that is constant but for rounding."""
    deviation = float(numbers.std(ddof=0))
    return deviation if deviation > ROUNDING * numbers.abs().max() else 1.0


def _names(column: dict[str, Any]) -> list[str]:
    return [f"{column['name']}={w}" for w in column["words"]] if "words" in column else [column["name"]]


def _encode(column: dict[str, Any], value: object) -> np.ndarray:
    if "words" in column:
        return np.array([float(str(value) == word) for word in column["words"]], dtype=np.float32)
    if value is None or value != value or value == "":
        return np.zeros(1, dtype=np.float32)
    try:
        number = float(str(value))
    except ValueError:
        raise UserError(f"column '{column['name']}' holds numbers in training, but here '{value}'") from None
    if not math.isfinite(number):
        raise _not_finite(column["name"], value)
    return np.array([(number - column["mean"]) / column["std"]], dtype=np.float32)


def _not_finite(name: str, value: object) -> UserError:
    return UserError(f"column '{name}' holds '{value}', which is no finite number: correct it or leave the cell empty")
