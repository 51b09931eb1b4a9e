"""What the cells of a csv say: every cell is read as text first, so that nothing is guessed behind the user's back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fusionbench.errors import UserError

MISSING = ("", "NA", "N/A", "NaN", "nan", "null")


def read_table(path: Path, *, names: list[str] | None = None) -> pd.DataFrame:
    """Read a csv as stripped text; an empty cell is the empty string.

    Args:
        path: A comma-separated file in UTF-8, with or without a byte-order mark.
        names: Column names of a file that has no header.

    Raises:
        UserError: The file is no such table.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, names=names, index_col=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().replace("\n", " ")
        raise UserError(f"'{path}' could not be read as a comma-separated table in UTF-8: {reason}") from error
    return pd.DataFrame({column: cells.astype(object).str.strip() for column, cells in table.items()})


def whole_number(text: str) -> int | None:
    """Return the whole number that a cell holds (``2`` and ``2.0`` alike), or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def column_values(cells: pd.Series) -> list[float | str | None]:
    """Return a table column's values: numbers if all that are there are numbers, else text; None where missing."""
    there = cells.where(~cells.isin(MISSING))
    numbers = pd.to_numeric(there, errors="coerce")
    values = numbers if numbers.notna().sum() == there.notna().sum() else there
    return [None if pd.isna(value) else value if isinstance(value, str) else float(value) for value in values]


def json_list(text: str, name: str) -> list[Any]:
    """Return the JSON list in a cell of the table ``name``.

    Raises:
        UserError: The cell holds something else.
    """
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, list):
        raise UserError(f"a cell of table '{name}' is '{text}', which is no JSON list such as [63, 1.2, null]")
    return values


def json_values(values: Sequence[Any]) -> tuple[float | str | None, ...]:
    """Return a JSON list's values as floats and text; null, NaN and what is neither number nor text are None."""
    return tuple(_value(value) for value in values)


def _value(value: Any) -> float | str | None:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, int | float):
        return None if value != value else float(value)
    return value if isinstance(value, str) else None
