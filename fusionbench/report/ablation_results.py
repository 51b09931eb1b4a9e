"""What the finished runs of an ablation table came to, read from the tracking store."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from fusionbench.errors import UserError
from fusionbench.report.ablation_table import AblationTable, Cell
from fusionbench.report.comparison import Method
from fusionbench.report.predictions import groups, select_split
from fusionbench.tracking import Store, TrackedRun

GONE = "its predictions are no longer in the tracking store"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        cell: Where it stands.
        run_id: MLflow's id of the run that has the predictions.
        metrics: The last value of each tracked metric.
        tags: Its tags.
        predictions: Those of the test split.
        epoch_seconds: Median over epochs, nan if unknown.
        minutes: From the run's start to its end by the wall clock, breaks before a resumption included.
    """

    cell: Cell
    run_id: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    predictions: pd.DataFrame
    epoch_seconds: float
    minutes: float


@dataclass(frozen=True)
class Results:
    """Everything that a table's reports show.

    Attributes:
        runs: The finished runs by row and column, by seed.
        holes: The cells without a result, in the table's order.
    """

    runs: Mapping[tuple[str, str], Sequence[Run]]
    holes: Sequence[Cell]

    def of(self, row: str, column: str) -> Sequence[Run]:
        """Return the finished runs of a row and column, none if there are none."""
        return self.runs.get((row, column), ())

    def in_column(self, column: str) -> list[Run]:
        """Return all finished runs of a column."""
        return [run for (_, own), runs in self.runs.items() if own == column for run in runs]

    def fewer_cases(self, row: str, column: str) -> str:
        """Return ``6 of the 8 cases`` for a row that was not tested on all of its column's; empty for others."""
        own, most = self.cases(row, column)
        return f"{own:,} of the {most:,} cases" if own < most else ""

    def cases(self, row: str, column: str) -> tuple[int, int]:
        """Return on how many cases a row was tested, and on how many those rows of its column that saw most."""
        most = max((len(run.predictions) for run in self.in_column(column)), default=0)
        return min((len(run.predictions) for run in self.of(row, column)), default=most), most

    def methods(self, table: AblationTable, column: str) -> list[Method]:
        """Return the rows of a column that have a result, as what is compared."""
        numbered = {id(run): table for run, table in _numbered(self.in_column(column))}
        return [
            Method(row, tuple(numbered[id(run)] for run in runs), tuple(run.cell.seed for run in runs))
            for row in table.rows
            if (runs := self.of(row, column))
        ]


def read(table: AblationTable, store: Store) -> Results:
    """Read the finished cells; one whose predictions are gone becomes a hole."""
    runs: dict[tuple[str, str], list[Run]] = {}
    holes = []
    for cell in _in_order(table):
        if cell.status != "finished":
            holes.append(cell)
            continue
        try:
            runs.setdefault((cell.row, cell.column), []).append(_read(cell, store))
        except UserError:
            holes.append(replace(cell, status="missing", reason=GONE))
    return Results({key: found for key, found in runs.items() if found}, holes)


def labels(predictions: pd.DataFrame) -> tuple[list[str], bool]:
    """Return the classes in label order, and whether a case can have several."""
    classes = [name.removeprefix("prob.") for name in predictions.columns if name.startswith("prob.")]
    return classes, "target" not in predictions.columns


def size(predictions: pd.DataFrame) -> tuple[int, int]:
    """Return the number of cases and of groups."""
    return len(predictions), len(set(groups(predictions)))


def _numbered(runs: Sequence[Run]) -> list[tuple[Run, pd.DataFrame]]:
    """Replace ids by numbers in order of appearance.

    Ids are hashed with a store's own key: by number, what a report says of cases is the same in whatever store they
    lie.
    """
    names: dict[str, dict[str, str]] = {"case": {}, "group": {}}
    for run in runs:
        for column, known in names.items():
            for name in run.predictions[column].astype(str):
                known.setdefault(name, f"{len(known):09}")
    return [
        (run, run.predictions.assign(**{c: run.predictions[c].astype(str).map(known) for c, known in names.items()}))
        for run in runs
    ]


def _in_order(table: AblationTable) -> list[Cell]:
    """Return the cells by column, row and seed, so that no file depends on the order in which runs ended."""
    rows, columns = list(table.rows), list(table.columns)
    return sorted(table.cells, key=lambda cell: (columns.index(cell.column), rows.index(cell.row), cell.seed))


def _read(cell: Cell, store: Store) -> Run:
    run = store.open(cell.run_id)
    tracked = store.client.get_run(run.run_id)
    original = tracked.data.tags.get("fusionbench.copy_of")
    if original:  # the light copy of a run that another table shares has no artifacts
        run = store.open(original)
        tracked = store.client.get_run(run.run_id)
    predictions = select_split(pd.read_parquet(run.artifact("predictions.parquet")), "test")
    info, data = tracked.info, tracked.data
    minutes = (info.end_time - info.start_time) / 60_000 if info.end_time else math.nan
    return Run(cell, run.run_id, data.metrics, data.tags, predictions, _epoch_seconds(run), minutes)


def _epoch_seconds(run: TrackedRun) -> float:
    points = run.store.client.get_metric_history(run.run_id, "cost/epoch_seconds")
    return statistics.median(point.value for point in points) if points else math.nan
