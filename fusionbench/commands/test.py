"""``fusionbench test``."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from rich.console import Console

from fusionbench.commands.model import Model, load
from fusionbench.metrics import HEADLINE
from fusionbench.report.run_report import summarise
from fusionbench.report.tables import ResultRow, result_table
from fusionbench.results import read_result, text_content, with_text

T = TypeVar("T")


def run(options: argparse.Namespace) -> int:
    """Score a model on its test split again and print the table, below it texts alone as tracked; track nothing."""
    model = load(options)
    table = model.predict("test")
    problem = model.task.problem
    with TemporaryDirectory() as folder:
        summary = summarise(table, problem.classes, problem.multilabel, Path(folder))
    name = with_text(model.name, text_content(model.source))
    rows = [ResultRow(name, summary.scores, summary.intervals, model.trainable), *_texts_alone(model)]
    console = Console(highlight=False)
    groups = table["group"].nunique()
    console.print(result_table(rows, cases=len(table), groups=groups, width=console.width))
    return 0


def _texts_alone(model: Model) -> Iterator[ResultRow]:
    """Yield what the run tells of each text alone beside it, unless these are other data than it was scored on."""
    if model.run is None:
        return
    result = read_result(model.run)
    texts = [name for name, spec in model.task.problem.modalities.items() if spec.kind == "text"]
    names = {f"text_only/{name}/": name for name in texts} | {"text_only/": texts[0] if len(texts) == 1 else "text"}
    held = [prefix for prefix in names if any(prefix + metric in result.scores for metric in HEADLINE)]
    if held and model.run.tags().get("fusionbench.data_fingerprint") != model.source.fingerprint:
        print("note: texts alone are not shown, since the run's were scored on other data", file=sys.stderr)
        return
    for prefix in held:
        scores, bounds = _below(prefix, result.scores), _below(prefix, result.intervals)
        yield ResultRow(with_text(f"{names[prefix]} alone", result.text), scores, bounds)


def _below(prefix: str, values: Mapping[str, T]) -> dict[str, T]:
    """Return the headline metrics among values whose names begin with a prefix."""
    return {metric: values[prefix + metric] for metric in HEADLINE if prefix + metric in values}
