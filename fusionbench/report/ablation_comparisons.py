"""The comparison of the rows of each column of an ablation table, from their predictions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusionbench.errors import UserError
from fusionbench.metrics import HEADLINE
from fusionbench.report.ablation_results import Results, labels
from fusionbench.report.ablation_table import AblationTable
from fusionbench.report.comparison import Comparison, Entry, FusionHelp, Method, compare_draws, fusion_help
from fusionbench.report.methods import align
from fusionbench.report.resampling import Draws, resample_each

Interval = tuple[float, float]
LEVEL = 0.95


@dataclass(frozen=True)
class ColumnVerdicts:
    """What can be said about a column.

    Attributes:
        intervals: By row and metric; what could not be resampled is left out.
        comparison: All pairs of rows by the table's metric; None where they cannot be compared.
        help: Each strategy against its own unimodal rows and plain concatenation; empty where that is not answered.
        reason: Why there is no comparison, one sentence.
        unanswered: Why "did fusion help?" is not answered, one sentence.
    """

    intervals: Mapping[tuple[str, str], Interval]
    comparison: Comparison | None
    help: Sequence[FusionHelp]
    reason: str = ""
    unanswered: str = ""


def judge_column(table: AblationTable, results: Results, column: str, resamples: int = 2000) -> ColumnVerdicts:
    """Compare the rows of a column that have a result.

    The groups are drawn once, for all metrics, pairs and questions. Rows that were not tested on the same cases still
    get their intervals, each by itself.

    Args:
        table: The table.
        results: Its runs.
        column: The column's name.
        resamples: How many times groups and seeds are drawn.
    """
    methods = results.methods(table, column)
    if not methods:
        reason = "No run of this column has a result."
        return ColumnVerdicts({}, None, (), reason, reason)
    try:
        drawn = _draw(table, methods, resamples)
    except UserError as error:
        reason = f"Rows of this column cannot be compared: {error}."
        alone = (_intervals(_draw(table, [method], resamples)).items() for method in methods)
        return ColumnVerdicts(dict(itertools.chain.from_iterable(alone)), None, (), reason, reason)
    draws = drawn[table.metric]
    entries, unanswered = _entries(table, list(draws.observed), column)
    return ColumnVerdicts(
        _intervals(drawn),
        compare_draws(draws, table.metric, margin=table.margin),
        fusion_help(draws, entries, table.metric, margin=table.margin),
        unanswered=unanswered,
    )


def _draw(table: AblationTable, methods: Sequence[Method], resamples: int) -> dict[str, Draws]:
    """Resample methods that were tested on the same cases, all metrics at once."""
    aligned = align(methods, *labels(methods[0].runs[0]))
    return resample_each(aligned, [m for m in table.shown if m in HEADLINE], resamples=resamples, seed=0)


def _intervals(drawn: Mapping[str, Draws]) -> dict[tuple[str, str], Interval]:
    """Return the interval of every row and metric."""
    return {(row, m): draws.score(row, LEVEL)[1:] for m, draws in drawn.items() for row in draws.observed}


def _entries(table: AblationTable, there: Sequence[str], column: str) -> tuple[list[Entry], str]:
    """Return the strategies that can be held against their modalities alone, and why others cannot."""
    entries = []
    open_: dict[tuple[str, ...], list[str]] = {}
    strategies = [row for row in there if (row, column) in table.own_unimodals]
    for row in strategies:
        alone, concat = table.own_unimodals[row, column], table.own_concat.get((row, column))
        lost = tuple(name for name in alone if name not in there)
        if lost or not alone:
            open_.setdefault(lost, []).append(row)
        else:
            entries.append(Entry(row, alone, concat if concat in there else None))
    if not strategies:
        return [], "Not answered: no strategy has a result."
    named = bool(entries) or len(open_) > 1
    return entries, " ".join(_open_question(lost, rows, named) for lost, rows in open_.items())


def _open_question(lost: Sequence[str], rows: Sequence[str], named: bool) -> str:
    """Return why strategies cannot be held against their modalities alone; names them where others can."""
    who = f"Not answered for {' and '.join(rows)}" if named else "Not answered"
    if not lost:
        return f"{who}: no row has one modality alone with {'their' if len(rows) > 1 else 'its'} tuning and encoders."
    return f"{who}: {' and '.join(lost)} {'has' if len(lost) == 1 else 'have'} no result."
