"""The results of an ablation table as files: markdown, CSV, LaTeX, a figure, and the costs.

``<name>.md``, ``.csv``, ``.tex`` and ``.png`` are byte-identical for equal results; what a clock measured and MLflow's
run ids stand in ``<name>.costs.md`` and ``<name>.costs.csv``.
"""

from __future__ import annotations

from pathlib import Path

from fusionbench.files import write_bytes
from fusionbench.report.ablation_comparisons import judge_column
from fusionbench.report.ablation_costs import costs, costs_markdown
from fusionbench.report.ablation_figure import draw
from fusionbench.report.ablation_latex import latex
from fusionbench.report.ablation_markdown import report
from fusionbench.report.ablation_results import read
from fusionbench.report.ablation_scores import long_form
from fusionbench.report.ablation_table import AblationTable, Cell, Published, Status
from fusionbench.tracking import Store

__all__ = ["AblationTable", "Cell", "Published", "Status", "write"]


def write(table: AblationTable, store: Store, folder: Path, resamples: int = 2000) -> list[Path]:
    """Write a table's results, holes and all.

    Args:
        table: Which run fills which cell.
        store: Where the runs are kept.
        folder: Where the files go; made if need be.
        resamples: How many times groups and seeds are drawn for intervals and verdicts.

    Returns:
        The files written.
    """
    results = read(table, store)
    verdicts = {column: judge_column(table, results, column, resamples) for column in table.columns}
    scores = long_form(table, results, verdicts)
    measured = costs(table, results)
    files = {
        "md": report(table, results, verdicts, scores).encode(),
        "csv": scores.to_csv(index=False).encode(),
        "tex": latex(table, scores).encode(),
        "png": draw(table, results, scores),
        "costs.md": costs_markdown(table, measured).encode(),
        "costs.csv": measured.to_csv(index=False).encode(),
    }
    return [write_bytes(folder / f"{table.name}.{ending}", content) for ending, content in files.items()]
