"""``fusionbench test``."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from fusionbench.commands.model import load
from fusionbench.report.run_report import summarise
from fusionbench.report.tables import ResultRow, result_table


def run(options: argparse.Namespace) -> int:
    """Score a model on its test split again and print the table; nothing is tracked."""
    model = load(options)
    table = model.predict("test")
    problem = model.task.problem
    with TemporaryDirectory() as folder:
        summary = summarise(table, problem.classes, problem.multilabel, Path(folder))
    row = ResultRow(model.name, summary.scores, summary.intervals, model.trainable)
    console = Console(highlight=False)
    groups = table["group"].nunique()
    console.print(result_table([row], cases=len(table), groups=groups, width=console.width))
    return 0
