"""What an ablation table is, once its runs are done: which run fills which cell, and what the paper printed for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fusionbench.metrics import HEADLINE

Status = Literal["finished", "failed", "skipped", "missing"]
Printed = float | tuple[float, float]
Published = Mapping[str, Mapping[str, Printed] | float]
MEAN = "MEAN"


@dataclass(frozen=True)
class Cell:
    """One run of a table.

    Attributes:
        row: The row's name.
        column: The column's name.
        seed: The run's seed.
        status: Whether there is a result; everything but "finished" is a hole.
        reason: Why there is none, in words that are equal for equal failures; empty for a finished run.
        run_id: The MLflow run that holds the result; empty for a run that never started.
        fingerprint: The run's identity: equal for runs that must give the same result.
    """

    row: str
    column: str
    seed: int
    status: Status
    reason: str
    run_id: str
    fingerprint: str


@dataclass(frozen=True)
class AblationTable:
    """All runs of a table, and how they are to be shown.

    Attributes:
        name: The table's name, which names its files.
        title: One line.
        rows: The rows' names, in the order of the yaml.
        columns: The columns' names: datasets, backbones.
        seeds: The seeds of each row and column.
        metric: The metric of the verdicts, without its "test/".
        metrics: The metrics shown, scores of some rows' strategies among them.
        margin: Two rows whose difference lies within it for certain are tied.
        cells: One record for each row, column and seed.
        published: What the paper printed: by row, then by column, mean or "mean", then by metric or "parameters"; the
            number of trainable parameters may stand at the row itself, `{row: {"parameters": 8.87e6}}`.
        means: Named means, each over columns or over means before it; without, several columns have one mean, "MEAN".
        own_unimodals: For each strategy and column the rows of its modalities alone, tuned and encoded as it is; what
            is no key is no strategy.
        own_concat: For each strategy and column the row of plain concatenation that is tuned and encoded as it is.
        notes: Sentences that stand below the table.
    """

    name: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    seeds: tuple[int, ...]
    metric: str
    metrics: tuple[str, ...]
    margin: float
    cells: tuple[Cell, ...]
    published: Mapping[str, Published]
    means: Mapping[str, tuple[str, ...]]
    own_unimodals: Mapping[tuple[str, str], tuple[str, ...]]
    own_concat: Mapping[tuple[str, str], str]
    notes: tuple[str, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """The metrics shown, that of the verdicts first."""
        return tuple(dict.fromkeys((self.metric, *self.metrics)))

    @property
    def own_scores(self) -> tuple[str, ...]:
        """Those of the metrics shown that are some strategies' own, such as ``dice``; no verdict is by them."""
        return tuple(metric for metric in self.shown if metric not in HEADLINE)

    @property
    def averages(self) -> Mapping[str, tuple[str, ...]]:
        """The means over columns that are shown: those named, else that of all columns; none of a single column."""
        if len(self.columns) == 1:
            return {}
        return self.means or {MEAN: self.columns}

    def columns_in(self, name: str) -> tuple[str, ...]:
        """Return the columns that a mean is made of, in order; a column is made of itself."""
        parts = self.averages.get(name)
        return (name,) if parts is None else tuple(dict.fromkeys(c for part in parts for c in self.columns_in(part)))

    def rows_of(self, column: str) -> tuple[str, ...]:
        """Return the rows that have a run, or a published number, in a column; in a mean of columns, all."""
        if column in self.averages:
            return self.rows
        planned = {cell.row for cell in self.cells if cell.column == column}
        return tuple(row for row in self.rows if row in planned or column in self.published.get(row, {}))

    def published_value(self, row: str, column: str, name: str) -> Printed:
        """Return the metric, or the "parameters", that the paper printed for a row and column; nan if it did not.

        Of some scores papers print but a range; that is its two ends.
        """
        printed = self.published.get(row, {})
        values = printed.get("mean" if column == MEAN and column not in self.means else column, {})
        if isinstance(values, Mapping) and name in values:
            return values[name]
        overall = printed.get(name)
        return math.nan if overall is None or isinstance(overall, Mapping) else float(overall)
