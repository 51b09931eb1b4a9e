"""Statistics fitted outside train: a table standardised before it was split, and encodings that are not training's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fusionbench.data.leaks import Leak, listed
from fusionbench.data.tables import TableEncoder
from fusionbench.errors import UserError

TOLERANCE = 1e-4  # of mean and deviation: what is left when the values are rounded to 3 decimals
FEW = 3  # values: fewer have no statistics


def standardised_columns(
    cases: pd.DataFrame, tables: Mapping[str, tuple[Sequence[str], Sequence[Any]]]
) -> Iterator[Leak]:
    """Find columns with mean 0 and deviation 1 over all cases, but not over those of training.

    Whole numbers such as -1 and 1 are codes and not looked at.

    Args:
        cases: The case table.
        tables: The columns and the cells of each table, the cells aligned with ``cases``.
    """
    train = (cases["split"] == "train").to_numpy()
    found = []
    for columns, cells in tables.values():
        rows = [row if isinstance(row, list | tuple) else [None] * len(columns) for row in cells]
        frame = pd.DataFrame(rows, columns=list(columns), index=cases.index).apply(pd.to_numeric, errors="coerce")
        found += [f"'{name}'" for name in columns if _is_standard(frame[name]) and not _is_standard(frame[name][train])]
    if found:
        what = "1 table column is" if len(found) == 1 else f"{len(found)} table columns are"
        yield Leak(
            "statistics",
            f"{what} standardised over all cases and not over training alone, {listed(found)}",
            "give the raw values, which are standardised by the training cases here",
        )


def _is_standard(values: pd.Series) -> bool:
    numbers = values.dropna().to_numpy(float)
    if len(numbers) < FEW or not np.isfinite(numbers).all() or (numbers == np.rint(numbers)).all():
        return False
    deviations = numbers.std(), numbers.std(ddof=1)  # scikit-learn's and pandas' own
    return bool(abs(numbers.mean()) < TOLERANCE and min(abs(d - 1) for d in deviations) < TOLERANCE)


def require_own_statistics(
    encoders: Mapping[str, TableEncoder], cases: pd.DataFrame, columns: Mapping[str, Any]
) -> None:
    """Refuse to train with an encoding that was not learned from the training cases alone.

    Args:
        encoders: Of each table.
        cases: The case table, with the raw cells of each table.
        columns: The raw columns of each table.

    Raises:
        UserError: An encoding differs from the one that the training cases give.
    """
    train = cases[cases["split"] == "train"]
    for name, encoder in encoders.items():
        rows = [row for row in train[name] if isinstance(row, list | tuple) and len(row)]
        if TableEncoder.fit(columns[name], rows).state != encoder.state:
            raise UserError(
                f"table '{name}' is encoded by statistics that are not those of the {len(rows)} training cases: open "
                f"the data for training without what another run fitted"
            )
