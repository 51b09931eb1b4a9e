"""``fusionbench compare``."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from rich.console import Console

from fusionbench.commands import compare_plan
from fusionbench.errors import UserError
from fusionbench.files import write_bytes
from fusionbench.report.compared_runs import Contest, from_runs, from_table, labels
from fusionbench.report.comparison import Comparison, FusionHelp, compare, did_fusion_help
from fusionbench.report.comparison_text import (
    conclusion,
    crosscheck_table,
    pair_table,
    score_table,
    to_csv,
    to_markdown,
)
from fusionbench.report.crosscheck import CrossCheck, crosscheck
from fusionbench.report.forest import draw_forest
from fusionbench.report.rank_diagram import dataset_key, pooled, rank_diagram
from fusionbench.report.shared_cases import by_cases
from fusionbench.sections import TrackingOptions
from fusionbench.tracking import Store


def run(options: argparse.Namespace) -> int:
    """Compare runs or the columns of tables, or say beforehand what a split can show."""
    console = Console(highlight=False)
    if options.plan:
        return compare_plan.run(options, console)
    contests = [_as_asked(options, contest) for contest in _contests(options)]
    found = [_compare(options, contest) for contest in contests]
    for contest, comparison in zip(contests, found, strict=True):
        _show(options, console, contest, comparison)
    if options.diagram:
        _diagram(options, console, contests, found)
    return 0


def _contests(options: argparse.Namespace) -> list[Contest]:
    """Read what is compared."""
    if options.overrides:
        raise UserError(f"only 'compare --plan --config FILE' takes overrides such as '{options.overrides[0]}'")
    if bool(options.runs) == bool(options.table):
        raise UserError("compare wants runs (ids or names) or --table NAME, one of both, or --plan")
    if options.diagram and not options.table:
        raise UserError("--diagram needs tables: give --table NAME for each")
    store = _store(options)
    if options.runs:
        contest = from_runs(store, options.runs)
        if len(options.runs) == 1:
            raise UserError(f"there is nothing to compare '{options.runs[0]}' with: give another run besides")
        return [contest]
    return [contest for name in options.table for contest in from_table(store, name)]


def _as_asked(options: argparse.Namespace, contest: Contest) -> Contest:
    """Put the flags' metric and margin in place of the table's."""
    metric = contest.metric if options.metric is None else options.metric
    return replace(contest, metric=metric, margin=contest.margin if options.margin is None else options.margin)


def _store(options: argparse.Namespace) -> Store:
    tracking = TrackingOptions(folder=options.folder)
    if not Store.is_there(tracking):
        raise UserError(f"there are no runs in '{tracking.folder}'; give their place with --folder")
    return Store(tracking)


def _compare(options: argparse.Namespace, contest: Contest) -> Comparison:
    classes, multilabel = labels(contest.methods[0].runs[0])
    return compare(contest.methods, classes, multilabel, metric=contest.metric, margin=contest.margin)


def _help(options: argparse.Namespace, contest: Contest) -> list[FusionHelp]:
    """Answer "did fusion help?" where both sides are there."""
    if not contest.entries:
        return []
    classes, multilabel = labels(contest.methods[0].runs[0])
    return did_fusion_help(
        contest.methods, contest.entries, classes, multilabel, metric=contest.metric, margin=contest.margin
    )


def _show(options: argparse.Namespace, console: Console, contest: Contest, comparison: Comparison) -> None:
    """Print one comparison and write its files."""
    classes, multilabel = labels(contest.methods[0].runs[0])
    checks = crosscheck(by_cases(contest.methods)[0], classes, multilabel) if options.crosscheck else []
    answers = _help(options, contest)
    console.print(score_table(comparison, contest.title))
    console.print(pair_table(comparison))
    if checks:
        console.print(crosscheck_table(checks))
    for note in (*comparison.notes, *contest.notes):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    for answer in answers:
        console.print(f"Did fusion help? {answer.sentence}", markup=False, soft_wrap=True)
    console.print(conclusion(comparison), markup=False, soft_wrap=True)
    if options.out:
        _write(Path(options.out), contest, comparison, answers, checks)


def _write(
    folder: Path, contest: Contest, comparison: Comparison, answers: list[FusionHelp], checks: list[CrossCheck]
) -> None:
    """Write markdown, CSV and the forest plot."""
    ending = re.sub(r"\W+", "-", contest.title).strip("-")
    path = folder / (f"comparison-{ending}" if ending else "comparison")
    title = f"Comparison: {contest.title}" if contest.title else "Comparison"
    page = to_markdown(comparison, title, answers, checks, contest.notes)
    write_bytes(path.with_name(f"{path.name}.md"), page.encode())
    write_bytes(path.with_name(f"{path.name}.csv"), to_csv(comparison).encode())
    if comparison.pairs:
        buffer = BytesIO()
        draw_forest(comparison, title).savefig(buffer, format="png", metadata={"Software": None})
        write_bytes(path.with_name(f"{path.name}.png"), buffer.getvalue())


def _diagram(options: argparse.Namespace, console: Console, contests: list[Contest], found: list[Comparison]) -> None:
    """Draw the critical-difference diagram over the datasets of all tables."""
    columns = {
        f"{number} {contest.title}": (
            dataset_key(contest.methods[0].runs[0]),
            {name: mean for name, (mean, _, _) in comparison.scores.items()},
        )
        for number, (contest, comparison) in enumerate(zip(contests, found, strict=True))
    }
    metrics = {contest.metric for contest in contests}
    if len(metrics) > 1:
        raise UserError(f"the tables differ in their metric ({', '.join(sorted(metrics))}); choose one with --metric")
    said = rank_diagram(pooled(columns), metrics.pop(), Path(options.diagram))
    console.print(f"{said}; drawn in {options.diagram}", markup=False, soft_wrap=True)
