"""The scores of an ablation table in long form, from which the markdown, CSV, LaTeX and figure are made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fusionbench.report.ablation_comparisons import ColumnVerdicts
from fusionbench.report.ablation_results import Results, Run
from fusionbench.report.ablation_table import AblationTable

_COSTS = {
    "trainable": "parameters/trainable",
    "total": "parameters/total",
    "gflops": "cost/gflops_per_case",
}


def long_form(table: AblationTable, results: Results, verdicts: Mapping[str, ColumnVerdicts]) -> pd.DataFrame:
    """Return one line for each row, column and metric; with several columns also for their means.

    Columns: ``row, column, metric, mean``; ``sd`` between seeds (n - 1; nan with one); ``low, high`` (95 %; nan for a
    mean of columns); ``seeds``; ``cases``, and ``all_cases``, the most that a row of the column saw (nan for a mean);
    ``trainable, total, gflops, published, published_high`` (the other end, where a range is published),
    ``published_parameters, fingerprints``. A hole is nan.
    """
    records = []
    for column in table.columns:
        for row in table.rows_of(column):
            runs = results.of(row, column)
            bounds = {m: verdicts[column].intervals.get((row, m), (math.nan, math.nan)) for m in table.shown}
            seen = results.cases(row, column)
            records += [_record(table, row, column, m, runs, bounds[m], seen) for m in table.shown]
    for name in table.averages:
        records += [_mean_record(table, results, row, name, metric) for row in table.rows for metric in table.shown]
    return pd.DataFrame.from_records(records)


def part(scores: pd.DataFrame, rows: Sequence[str], column: str, metric: str) -> pd.DataFrame:
    """Return the lines of a column and metric, indexed by these rows in order; a row without one is all nan."""
    chosen = scores[(scores["column"] == column) & (scores["metric"] == metric)]
    return chosen.set_index("row").reindex(list(rows))


def marked_rows(scores: pd.DataFrame, column: str) -> set[str]:
    """Return the rows that were tested on fewer cases of a column than others, so that their scores are not theirs."""
    own = scores[(scores["column"] == column) & (scores["cases"] < scores["all_cases"])]
    return set(own["row"])


def seed_scores(runs: Sequence[Run], metric: str) -> dict[int, float]:
    """Return a test metric by seed, nan where it is undefined."""
    return {run.cell.seed: run.metrics.get(f"test/{metric}", math.nan) for run in runs}


def scores_by_seed(table: AblationTable, results: Results, row: str, column: str, metric: str) -> dict[int, float]:
    """Return a row's metric by seed; in a mean, that of its parts, for seeds that have a result in each of them."""
    if column not in table.averages:
        return seed_scores(results.of(row, column), metric)
    parts = [scores_by_seed(table, results, row, part, metric) for part in table.averages[column]]
    seeds = sorted(set.intersection(*(set(scores) for scores in parts)))
    return {seed: float(np.mean([scores[seed] for scores in parts])) for seed in seeds}


def sized_columns(table: AblationTable, scores: pd.DataFrame) -> list[str]:
    """Return the columns whose parameters a wide table shows: means for which some are published, else the first."""
    if not table.averages:
        return [table.columns[0]]
    printed = set(scores.loc[scores["published_parameters"].notna(), "column"])
    return [name for name in table.averages if name in printed] or [next(iter(table.averages))]


def cost(runs: Sequence[Run], name: str) -> float:
    """Return a cost that seeds share, such as "trainable"; nan where none has logged it."""
    return next((run.metrics[_COSTS[name]] for run in runs if _COSTS[name] in run.metrics), math.nan)


def _record(
    table: AblationTable,
    row: str,
    column: str,
    metric: str,
    runs: Sequence[Run],
    bounds: tuple[float, float],
    seen: tuple[int, int],
) -> dict[str, object]:
    """Return the line of a row, column and metric."""
    return {
        **_head(row, column, metric, list(seed_scores(runs, metric).values())),
        "low": bounds[0],
        "high": bounds[1],
        "seeds": len(runs),
        "cases": seen[0] if runs else math.nan,
        "all_cases": seen[1],
        **{name: cost(runs, name) for name in _COSTS},
        **_published(table, row, column, metric),
        "fingerprints": " ".join(run.cell.fingerprint for run in runs),
    }


def _mean_record(table: AblationTable, results: Results, row: str, name: str, metric: str) -> dict[str, object]:
    """Return the line of a mean over columns; a row that lacks one of them has none."""
    scores = scores_by_seed(table, results, row, name, metric)
    costs = {what: {column: cost(results.of(row, column), what) for column in table.columns} for what in _COSTS}
    return {
        **_head(row, name, metric, list(scores.values())),
        "low": math.nan,
        "high": math.nan,
        "seeds": len(scores),
        "cases": math.nan,
        "all_cases": math.nan,
        **{what: _mean_cost(table, name, known) for what, known in costs.items()},
        **_published(table, row, name, metric),
        "fingerprints": "",
    }


def _published(table: AblationTable, row: str, column: str, metric: str) -> dict[str, object]:
    """Return what the paper printed, of a range both ends."""
    printed = table.published_value(row, column, metric)
    low, high = printed if isinstance(printed, tuple) else (printed, math.nan)
    count = table.published_value(row, column, "parameters")
    return {"published": low, "published_high": high, "published_parameters": count}


def _mean_cost(table: AblationTable, name: str, of: Mapping[str, float]) -> float:
    """Return the mean of a cost over those parts in which it is known."""
    if name not in table.averages:
        return of[name]
    costs = [_mean_cost(table, part, of) for part in table.averages[name]]
    known = [value for value in costs if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _head(row: str, column: str, metric: str, scores: Sequence[float]) -> dict[str, object]:
    return {
        "row": row,
        "column": column,
        "metric": metric,
        "mean": float(np.mean(scores)) if scores else math.nan,
        "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan,
    }
