"""``fusionbench compare --plan``: what difference a test split can show, before anything trains."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusionbench import config
from fusionbench.errors import UserError
from fusionbench.report.compared_runs import MARGIN
from fusionbench.report.power import Assumptions, Detectable, Split, plan
from fusionbench.report.tables import HOLE

if TYPE_CHECKING:
    import pandas as pd

    from fusionbench.data.base import Dataset


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the table and the sentence."""
    assumed = Assumptions(options.score, options.correlation, options.icc, options.methods)
    split = _from_config(options) if options.config else _from_counts(options)
    margin = MARGIN if options.margin is None else options.margin
    show(split, assumed, console, margin, None if options.config else 2)
    return 0


def show(split: Split, assumed: Assumptions, console: Console, margin: float = MARGIN, rows: int | None = None) -> None:
    """Print the table, or its first rows, and what the split can and cannot show."""
    found = plan(split, assumed)
    console.print(_table(found[:rows], split))
    console.print(_sentence(found, split, assumed, margin), markup=False, soft_wrap=True)


def counted(dataset: Dataset, test: pd.DataFrame) -> Split:
    """Count groups and classes of a dataset's test cases."""
    from fusionbench.data.validate import members

    sizes = test["group_id"].value_counts()
    return Split([float(size) for size in sizes], {str(k): float(n) for k, n in members(dataset, test).sum().items()})


def _from_config(options: argparse.Namespace) -> Split:
    """Count the test split of a config's dataset."""
    if (options.cases, options.groups, options.classes) != (None, None, None):
        raise UserError("--config counts the split itself; leave out --cases, --groups and --classes")
    tree = config.merge(config.read(Path(options.config)), config.parse_overrides(options.overrides))
    node = config.resolve(tree).get("data")
    if node is None:
        raise UserError(f"the config '{options.config}' names no dataset; give it a data node, or --cases N")
    from fusionbench.data.base import make_dataset

    dataset = make_dataset(config.check_node("data", "data", node))
    cases = dataset.cases()
    return counted(dataset, cases[cases["split"] == "test"])


def _from_counts(options: argparse.Namespace) -> Split:
    """Take a split of equal groups and equal classes."""
    cases, classes = options.cases, options.classes or 2
    groups = options.groups or cases
    if cases is None or options.overrides:
        raise UserError("--plan wants --config FILE, or --cases N with --groups G and --classes K and no overrides")
    if not (cases >= groups >= 1 and cases >= classes >= 2):
        raise UserError(
            f"{cases} cases, {groups} groups and {classes} classes are no split; "
            "give at least as many cases as groups and as classes, and two classes"
        )
    return Split([cases / groups] * groups, {f"class {k + 1}": cases / classes for k in range(classes)})


def _table(found: list[Detectable], split: Split) -> Table:
    table = Table("metric", box=SIMPLE_HEAD)
    for name in ("cases of it", "could show"):
        table.add_column(name, justify="right")
    for one in found:
        members = split.members.get(one.metric.removeprefix("AUC/"), split.cases)
        table.add_row(Text(one.metric), f"{members:.0f}", _number(one))
    return table


def _number(one: Detectable) -> str:
    return HOLE if math.isnan(one.difference) else f"{one.difference:.3f}"


def _sentence(found: list[Detectable], split: Split, assumed: Assumptions, margin: float) -> str:
    """Return what the split can and cannot show."""
    by_name = {one.metric: one for one in found}
    groups = len(split.group_sizes)
    counted = f"{split.cases:.0f} test cases of {groups} group{'' if groups == 1 else 's'}"
    if groups < 2:
        return f"With {counted} nothing can be said about another group, so no two methods can be told apart."
    tie = assumed.quantiles_of_a_tie(groups) * by_name["accuracy"].error <= margin
    return (
        f"With {counted}, two trained models of {assumed.methods} methods at {assumed.score:g} (correlation "
        f"{assumed.correlation:g} between methods, {assumed.icc:g} within a group) must differ by "
        f"{_number(by_name['mAUC'])} in mAUC or {_number(by_name['accuracy'])} in accuracy to be told apart "
        f"{assumed.power:.0%} of the time; a tie within {margin:g} in accuracy {'can' if tie else 'cannot'} be shown; "
        "how much seeds vary comes on top."
    )
