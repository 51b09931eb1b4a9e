"""``fusionbench ablate``."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from fusionbench.ablate.table import Table, read
from fusionbench.errors import UserError

if TYPE_CHECKING:
    from fusionbench.ablate.execute import Workers
    from fusionbench.ablate.job import Job
    from fusionbench.ablate.plan import Plan
    from fusionbench.ablate.sources import Sources


def run(options: argparse.Namespace) -> int:
    """Plan every table, run what is left of them, and write their results; 1 if a run failed.

    Raises:
        UserError: A mistake in a table, or the one table that was asked for has no data.
    """
    tables = [read(path, options.overrides) for path in _paths(options)]
    from fusionbench.ablate.execute import Workers, places
    from fusionbench.ablate.sources import Sources
    from fusionbench.ablate.sweep import in_one_place

    tables = [in_one_place(table) for table in tables]
    configs = [table.config(*cell, table.seeds[0]) for table in tables for cell in table.trees]
    workers = Workers(places(options.parallel, {config.trainer.accelerator for config in configs}))
    sources, failed = Sources(), False
    try:
        for table in tables:
            failed |= _run_table(table, sources, workers, options)
    finally:
        workers.close()
    return int(failed)


def _paths(options: argparse.Namespace) -> list[Path]:
    """Return the tables that the command line names.

    Raises:
        UserError: A folder without any, or neither file nor folder.
    """
    found = [Path(path) for path in options.config or ()]
    if options.all:
        in_folder = sorted(Path(options.all).glob("*.yaml"))
        if not in_folder:
            raise UserError(f"--all '{options.all}' holds no table: name a folder with files such as demo_fusion.yaml")
        found += in_folder
    if not found:
        raise UserError("ablate needs a table: --config FILE, or --all FOLDER for every table in a folder")
    return found


def _run_table(table: Table, sources: Sources, workers: Workers, options: argparse.Namespace) -> bool:
    """Run one table, or only show its plan; return whether a run failed."""
    from fusionbench.ablate.plan import Plan
    from fusionbench.ablate.progress import Bar
    from fusionbench.ablate.sweep import Sweep
    from fusionbench.tracking import Store

    console = Console(stderr=True, highlight=False)
    tracking = table.config(*next(iter(table.trees)), table.seeds[0]).tracking
    store = Store(tracking) if not options.dry_run or Store.is_there(tracking) else None
    plan = Plan(table, store, sources, options.rows, options.seeds)
    if len(plan.skipped) == len(table.columns):
        if not options.all and len(options.config) == 1:
            reason = plan.skipped[table.columns[0]]
            raise UserError(f"table '{table.name}' has no column whose data are there: {reason}")
        console.print(
            f"{table.name} is skipped: none of its data are there: {plan.skipped[table.columns[0]]}", markup=False
        )
        return False
    for column, reason in plan.skipped.items():
        console.print(f"{table.name}: column '{column}' is skipped: {reason}", markup=False)
    if options.dry_run or store is None:
        _print_plan(plan, options.parallel)
        return False
    with Bar(console, _count(plan), options.traceback) as bar:
        sweep = Sweep(plan, store, workers, bar, Path(options.results))
        sweep.run()
    _print_outcome(sweep.plan, sweep.files)
    return sweep.failed


def _count(plan: Plan) -> int:
    """Return how many runs are left, each identity counted once as far as it is known."""
    stages = [group[0].fingerprint for group in plan.open_stage_ones()]
    cells = [job.fingerprint or id(job) for job in plan.jobs if job.open]
    return len({*stages, *cells})


def _print_plan(plan: Plan, parallel: int) -> None:
    """Print each run's state and how long what is left will take."""
    from fusionbench.ablate.estimate import estimate

    estimate(plan)
    grid = Grid("row", "column", "seed", "state", "estimate", title=f"{plan.table.name}: {plan.table.title}")
    shared = {job.fingerprint for job in plan.jobs if job.open}
    stages = [stage for stage in plan.stage_ones.values() if stage.wanted and stage.fingerprint not in shared]
    for job in [*stages, *plan.jobs]:
        reason = f" ({job.reason})" if job.reason else ""
        time = _duration(job.seconds) if job.open else ""
        grid.add_row(escape(job.row), escape(job.column), str(job.seed), escape(job.state + reason), time)
    console = Console(highlight=False)
    console.print(grid)
    console.print(_total([*stages, *plan.jobs], parallel), markup=False)


def _total(jobs: Sequence[Job], parallel: int) -> str:
    """Return one sentence with the number of runs left and their time."""
    left = {job.fingerprint or str(id(job)): job.seconds for job in jobs if job.open}
    known = [seconds for seconds in left.values() if seconds is not None]
    time = f"about {_duration(sum(known) / parallel)}" if known else "no estimate yet"
    missing = len(left) - len(known)
    but = f", {missing} of them without an estimate" if known and missing else ""
    return f"{len(left)} runs to do: {time}{but}"


def _duration(seconds: float | None) -> str:
    """Return a time in words that are as exact as an estimate is."""
    if seconds is None:
        return "no estimate yet"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _print_outcome(plan: Plan, files: Sequence[Path]) -> None:
    """Print how many runs the table has, every hole with its reason, and where the results are."""
    cells = [job.cell() for job in plan.jobs]
    counts = Counter(cell.status for cell in cells)
    print(f"{plan.table.name}: {', '.join(f'{number} {status}' for status, number in counts.items())}")
    for cell in cells:
        if cell.status == "failed":
            print(f"  {cell.row} · {cell.column} · seed {cell.seed}: {cell.reason}")
    for path in files:
        print(f"  {path}")
