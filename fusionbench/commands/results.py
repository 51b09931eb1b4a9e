"""Finished runs as the table that commands print."""

from collections.abc import Sequence

from rich.console import Console

from fusionbench.report.tables import ResultRow, result_table
from fusionbench.results import Result


def print_results(results: Sequence[Result], console: Console) -> None:
    """Print one row a run, the fusion first and each modality alone below it."""
    ordered = [results[-1], *results[:-1]]
    main = results[-1]
    rows = [ResultRow(r.label(main.cases), r.scores, r.intervals, r.trainable, r.run_id) for r in ordered]
    title = f"Test split: {main.cases} cases of {main.groups} groups"
    console.print(result_table(rows, cases=main.cases, groups=main.groups, width=console.width, title=title))
