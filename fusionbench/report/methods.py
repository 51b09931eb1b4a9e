"""A method's predictions, one table for each seed, and the check that methods can be compared at all.

Names carry shapes: N cases, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fusionbench.errors import UserError
from fusionbench.report import predictions
from fusionbench.report.weighted import Floats

_EXAMPLES = 3


@dataclass(frozen=True, eq=False)
class Method:
    """What is compared: runs that differ by their seed alone.

    Attributes:
        name: What the reader calls it.
        runs: One table as in ``fusionbench.report.predictions`` for each seed; only its test split is used.
        seeds: The runs' seeds, in the same order.
    """

    name: str
    runs: tuple[pd.DataFrame, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Aligned:
    """Methods on one list of cases, in the order of the first method's first seed.

    Groups are numbered, since resampling goes by their order and ids are hashed with a store's own key: equal results
    get equal verdicts in whatever store they lie.

    Attributes:
        target: (N,) class indices, or (N, K) of 0/1 when multi-label.
        groups: N groups (patients), numbered in order of appearance.
        probabilities: For each method one (N, K) a seed, in the order of its seeds.
        seeds: Each method's seeds, ascending.
    """

    target: NDArray[np.int64]
    groups: tuple[str, ...]
    probabilities: dict[str, tuple[Floats, ...]]
    seeds: dict[str, tuple[int, ...]]


def align(methods: Sequence[Method], classes: Sequence[str], multilabel: bool) -> Aligned:
    """Bring every run's test cases into one order, that of the first method's first seed.

    Raises:
        UserError: Two methods share a name, a seed comes twice, or runs differ in cases, groups or labels; names how
            many differ, with examples.
    """
    _check_names(methods)
    tables = {method.name: _by_seed(method) for method in methods}
    first = next(iter(tables[methods[0].name].values()))
    target = predictions.targets(first, classes)
    if (target.ndim == 2) != multilabel:
        raise UserError(
            f"the predictions are {'' if target.ndim == 2 else 'not '}multi-label; say so to the comparison"
        )
    for name, runs in tables.items():
        for seed, table in runs.items():
            _check_same(methods[0].name, first, f"{name} (seed {seed})", table, classes)
    order_N = np.argsort(first.index)
    probabilities = {
        name: tuple(predictions.probabilities(table, classes)[order_N] for table in runs.values())
        for name, runs in tables.items()
    }
    seeds = {name: tuple(runs) for name, runs in tables.items()}
    numbers_N, _ = pd.factorize(np.array(predictions.groups(first))[order_N])
    return Aligned(target[order_N], tuple(f"{number:09}" for number in numbers_N), probabilities, seeds)


def _check_names(methods: Sequence[Method]) -> None:
    if not methods:
        raise UserError("there is no method to compare; give at least one")
    names = [method.name for method in methods]
    for method in methods:
        if names.count(method.name) > 1:
            raise UserError(f"{names.count(method.name)} methods are called '{method.name}'; give each its own name")
        if not method.runs or len(method.runs) != len(method.seeds) or len(set(method.seeds)) != len(method.seeds):
            raise UserError(
                f"method '{method.name}' has {len(method.runs)} runs and the seeds {list(method.seeds)}; "
                "give one run for each seed, and each seed once"
            )


def _by_seed(method: Method) -> dict[int, pd.DataFrame]:
    """Return the test cases of each seed, both ascending; a case's index is its place in the run's table."""
    tables = {}
    for seed, run in sorted(zip(method.seeds, method.runs, strict=True), key=lambda pair: pair[0]):
        table = predictions.select_split(run, "test")
        cases = table["case"].astype(str)
        if cases.duplicated().any():
            twice = cases[cases.duplicated()].iloc[0]
            raise UserError(f"'{method.name}' (seed {seed}) predicts case '{twice}' twice; predict each case once")
        tables[seed] = table.assign(case=cases).reset_index(drop=True).sort_values("case")
    return tables


def _check_same(name: str, first: pd.DataFrame, other: str, table: pd.DataFrame, classes: Sequence[str]) -> None:
    """Refuse cases, groups or labels that differ."""
    ours, theirs = set(first["case"]), set(table["case"])
    if ours != theirs:
        raise UserError(
            f"'{name}' and {other} were not tested on the same cases: {_some(ours - theirs)} only in the former, "
            f"{_some(theirs - ours)} only in the latter; compare runs of one dataset and split"
        )
    cases = first["case"].to_numpy()
    labels, other_labels = predictions.targets(first, classes), predictions.targets(table, classes)
    if labels.shape != other_labels.shape:
        raise UserError(f"'{name}' and {other} have labels of different kinds; compare runs of one task")
    groups, other_groups = np.array(predictions.groups(first)), np.array(predictions.groups(table))
    changed = (labels != other_labels).reshape(len(cases), -1).any(axis=1)
    for what, differs in (("label", changed), ("group", groups != other_groups)):
        if differs.any():
            raise UserError(
                f"'{name}' and {other} disagree on the {what} of {_some(set(cases[differs]))}; "
                "compare runs of one version of the data"
            )


def _some(ids: set[str]) -> str:
    """Return how many cases, with examples."""
    shown = ", ".join(f"'{case}'" for case in sorted(ids)[:_EXAMPLES])
    return f"{len(ids):,} case{'' if len(ids) == 1 else 's'}" + (f" (such as {shown})" if ids else "")
