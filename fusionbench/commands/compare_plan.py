"""``fusionbench compare --plan``: what difference a test split can show, before anything trains."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusionbench import config
from fusionbench.errors import UserError
from fusionbench.report.power import Assumptions, Detectable, Split, plan
from fusionbench.report.tables import HOLE


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the table and the sentence."""
    assumed = Assumptions(options.score, options.correlation, options.icc, options.methods)
    split = _from_config(options) if options.config else _from_counts(options)
    found = plan(split, assumed)
    shown = found if options.config else found[:2]
    console.print(_table(shown, split))
    console.print(_sentence(found, split, assumed, options.margin), markup=False, soft_wrap=True)
    return 0


def _from_config(options: argparse.Namespace) -> Split:
    """Count the test split of a config's dataset."""
    if (options.cases, options.groups, options.classes) != (None, None, None):
        raise UserError("--config counts the split itself; leave out --cases, --groups and --classes")
    tree = config.merge(config.read(Path(options.config)), config.parse_overrides(options.overrides))
    node = config.resolve(tree).get("data")
    if node is None:
        raise UserError(f"the config '{options.config}' names no dataset; give it a data node, or --cases N")
    from fusionbench.data.base import make_dataset
    from fusionbench.data.validate import members

    dataset = make_dataset(config.check_node("data", "data", node))
    cases = dataset.cases()
    test = cases[cases["split"] == "test"]
    sizes = test["group_id"].value_counts()
    return Split([float(size) for size in sizes], {str(k): float(n) for k, n in members(dataset, test).sum().items()})


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
        shown = HOLE if math.isnan(one.difference) else f"{one.difference:.3f}"
        table.add_row(Text(one.metric), f"{members:.0f}", shown)
    return table


def _sentence(found: list[Detectable], split: Split, assumed: Assumptions, margin: float) -> str:
    """Return what the split can and cannot show."""
    by_name = {one.metric: one for one in found}
    tie = assumed.quantiles_of_a_tie * by_name["accuracy"].error <= margin
    return (
        f"With {split.cases:.0f} test cases of {len(split.group_sizes)} groups, two of {assumed.methods} methods at "
        f"{assumed.score:g} (correlation {assumed.correlation:g} between methods, {assumed.icc:g} within a group) must "
        f"differ by {by_name['mAUC'].difference:.3f} in mAUC or {by_name['accuracy'].difference:.3f} in accuracy to be "
        f"told apart {assumed.power:.0%} of the time; a tie within {margin:g} in accuracy "
        f"{'can' if tie else 'cannot'} be shown."
    )
