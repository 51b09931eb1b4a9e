"""The comparison of the rows of each column of an ablation table, from their predictions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusionbench.errors import UserError
from fusionbench.report.ablation_results import Results, labels
from fusionbench.report.ablation_table import AblationTable
from fusionbench.report.case_scores import score_intervals
from fusionbench.report.comparison import Comparison, FusionHelp, Method, compare_shared, fusion_help, held_against
from fusionbench.report.shared_cases import SharedCases

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

    The groups are drawn once, for all metrics, pairs and questions, and again for each set of cases of a row that saw
    fewer, since some lack its modality. Rows that cannot be compared still get their intervals, each by itself.

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
    further = score_intervals(methods, table.own_scores, resamples=resamples, level=LEVEL)
    try:
        shared = _shared(table, methods, resamples)
        intervals = _intervals(shared, methods) | further
    except UserError as error:
        reason = f"Rows of this column cannot be compared: {error}."
        each = (_intervals(_shared(table, [method], resamples), [method]).items() for method in methods)
        return ColumnVerdicts(dict(itertools.chain.from_iterable(each)) | further, None, (), reason, reason)
    alone = {row: names for (row, own), names in table.own_unimodals.items() if own == column}
    plain = {row: name for (row, own), name in table.own_concat.items() if own == column}
    entries, unanswered = held_against(alone, plain, [method.name for method in methods])
    return ColumnVerdicts(
        intervals,
        compare_shared(shared, table.metric, margin=table.margin),
        fusion_help(shared, entries, table.metric, margin=table.margin),
        unanswered=unanswered,
    )


def _shared(table: AblationTable, methods: Sequence[Method], resamples: int) -> SharedCases:
    """Return methods ready to be resampled, all metrics at once."""
    metrics = [m for m in table.shown if m not in table.own_scores]
    return SharedCases(methods, *labels(methods[0].runs[0]), metrics, resamples=resamples, seed=0)


def _intervals(shared: SharedCases, methods: Sequence[Method]) -> dict[tuple[str, str], Interval]:
    """Return the interval of every row and metric, on the row's own cases."""
    every = shared.draws()
    drawn = {m.name: shared.draws(m.name) if m.name in shared.fewer else every for m in methods}
    return {(row, m): draws.score(row, LEVEL)[1:] for row, own in drawn.items() for m, draws in own.items()}
