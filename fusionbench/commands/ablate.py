"""``fusionbench ablate``."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from fusionbench.ablate.table import Table, read
from fusionbench.errors import UserError

if TYPE_CHECKING:
    from fusionbench.ablate.execute import Launcher
    from fusionbench.ablate.job import Job
    from fusionbench.ablate.plan import Plan
    from fusionbench.ablate.sources import Sources
    from fusionbench.config import Config

T = TypeVar("T")


def run(options: argparse.Namespace) -> int:
    """Plan every table, run what is left of them, and write their results; 1 if a run or one of many tables failed.

    Raises:
        UserError: A mistake in the one table that was asked for, or it has no data.
    """
    _check_options(options)
    paths = _paths(options)
    _check_names(paths)
    tables = [table for path in paths if (table := _try(partial(read, path, options.overrides), paths))]
    from fusionbench.ablate.sources import Sources
    from fusionbench.ablate.sweep import in_one_place

    tables = [in_one_place(table) for table in tables]
    configs = [table.config(*cell, table.seeds[0]) for table in tables for cell in table.trees]
    workers = _launcher(options, configs)
    sources, well = Sources(), len(tables) == len(paths)
    try:
        for table in tables:
            failed = _try(partial(_run_table, table, sources, workers, options), paths)
            well &= failed is False
    finally:
        workers.close()
    return int(not well)


def _try(act: Callable[[], T], tables: Sequence[Path]) -> T | None:
    """Do something for a table; where there are others, a mistake in it is told and None, so that these go on.

    Raises:
        UserError: The mistake, where it is the only table.
    """
    try:
        return act()
    except UserError as error:
        if len(tables) == 1:
            raise
        Console(stderr=True, highlight=False).print(f"error: {error}", markup=False, soft_wrap=True)
        return None


def _check_options(options: argparse.Namespace) -> None:
    """Refuse a seed that the table could not keep, and a place for results that could not hold any, before any run."""
    for override in options.overrides:
        if override.partition("=")[0] == "seed":
            raise UserError(f"'{override}' cannot be set, as every row has the table's seeds; use --seeds")
    results = Path(options.results).absolute()
    there = next(path for path in (results, *results.parents) if os.path.exists(path))
    if not (there.is_dir() and os.access(there, os.W_OK)):
        why = "cannot be written to" if there.is_dir() else "is a file"
        raise UserError(f"--results '{options.results}' cannot be a folder of results, since '{there}' {why}")


def _launcher(options: argparse.Namespace, configs: Sequence[Config]) -> Launcher:
    """Return who does the runs: processes of this machine, or jobs of a cluster.

    Raises:
        UserError: It cannot, or is asked for what only the other one has.
    """
    if options.launcher == "slurm":
        return _jobs(options, configs)
    if options.slurm:
        raise UserError(f"--slurm {options.slurm[0]} is for --launcher slurm, which is not asked for")
    from fusionbench.ablate.execute import Workers, places

    options.parallel = 1 if options.parallel is None else options.parallel
    devices = max((config.trainer.devices for config in configs), default=1)
    return Workers(places(options.parallel, {config.trainer.accelerator for config in configs}, devices))


def _jobs(options: argparse.Namespace, configs: Sequence[Config]) -> Launcher:
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--launcher slurm needs submitit: pip install 'fusionbench-medical[slurm]'")
    from fusionbench.ablate import slurm, slurm_options
    from fusionbench.tracking import store_uri

    given = slurm_options.read(options.slurm)
    options.parallel = slurm.MOST if options.parallel is None else options.parallel
    tracking = configs[0].tracking
    jobs = slurm.Jobs(Path(tracking.folder).absolute() / "jobs", options.parallel, given)
    if store_uri(tracking).startswith("sqlite:"):
        Console(stderr=True, highlight=False).print(
            f"note: jobs write to SQLite in '{tracking.folder}', which must lie on a disk that all nodes share and "
            "that locks files; over NFS take an MLflow server, tracking.uri=http://...",
            markup=False,
            soft_wrap=True,
        )
    return jobs


def _check_names(paths: Sequence[Path]) -> None:
    """Refuse two tables whose results would have the same files."""
    for name, count in Counter(path.stem for path in paths).items():
        if count > 1:
            files = " and ".join(dict.fromkeys(f"'{path}'" for path in paths if path.stem == name))
            raise UserError(f"table '{name}' is given {count} times ({files}); results are named by it, so give one")


def _paths(options: argparse.Namespace) -> list[Path]:
    """Return the tables that the command line names.

    Raises:
        UserError: A folder without any, or neither file nor folder.
    """
    found = [Path(path) for path in options.config or ()]
    for path in found:
        if path.is_dir():
            raise UserError(f"--config '{path}' is a folder: name a table's file, or run all of them by --all {path}")
    if options.all:
        if not Path(options.all).is_dir():
            raise UserError(f"--all '{options.all}' is no folder that exists")
        in_folder = sorted(Path(options.all).glob("*.yaml"))
        if not in_folder:
            raise UserError(f"--all '{options.all}' holds no table: name a folder with files such as demo_fusion.yaml")
        found += in_folder
    if not found:
        raise UserError("ablate needs a table: --config FILE, or --all FOLDER for every table in a folder")
    return found


def _run_table(table: Table, sources: Sources, workers: Launcher, options: argparse.Namespace) -> bool:
    """Run one table, or only show its plan; return whether a run failed, or will."""
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
        return _print_plan(plan, options.parallel)
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


def _print_plan(plan: Plan, parallel: int) -> bool:
    """Print each run's state, each reason once, and how long what is left will take; return whether any cannot run."""
    from fusionbench.ablate.estimate import estimate

    estimate(plan)
    grid = Grid("row", "column", "seed", "state", "estimate", title=f"{plan.table.name}: {plan.table.title}")
    shared = {job.fingerprint for job in plan.jobs if job.open}
    stages = [stage for stage in plan.stage_ones.values() if stage.wanted and stage.fingerprint not in shared]
    listed = [job for job in [*stages, *plan.jobs] if job.state != "left out"]
    reasons = list(dict.fromkeys(job.told for job in listed if job.told))
    for job in listed:
        reason = f" (reason {reasons.index(job.told) + 1})" if job.told else ""
        time = _duration(job.seconds) if job.open else ""
        grid.add_row(escape(job.row), escape(job.column), str(job.seed), escape(job.state + reason), time)
    console = Console(highlight=False)
    console.print(grid)
    for number, reason in enumerate(reasons, start=1):
        console.print(f"reason {number}: {reason}", markup=False, soft_wrap=True)
    if left_out := len(stages) + len(plan.jobs) - len(listed):
        console.print(f"{left_out} more are not asked for and not listed", markup=False)
    console.print(_total(listed, parallel), markup=False)
    return any(job.state == "failed" for job in listed)


def _total(jobs: Sequence[Job], parallel: int) -> str:
    """Return one sentence with the number of runs left, their time, and how many lines cannot be run."""
    wanted = [job for job in jobs if job.open]
    left = {job.fingerprint or str(id(job)): job.seconds for job in wanted}
    failed = sum(job.state == "failed" for job in jobs)
    cannot = f"{failed} of {len(jobs)} lines cannot be run" if failed else ""
    if not left:
        return f"nothing is left that can be run: {cannot}" if failed else "everything is finished"
    known = [seconds for seconds in left.values() if seconds is not None]
    time = f"about {_duration(sum(known) / parallel)}" if known else "no estimate yet"
    missing = len(left) - len(known)
    but = f", {missing} of them without an estimate" if known and missing else ""
    shared = f" for {len(wanted)} lines, since some share a run" if len(wanted) > len(left) else ""
    return f"{len(left)} run{'' if len(left) == 1 else 's'} to do{shared}: {time}{but}{f'; {cannot}' if cannot else ''}"


def _duration(seconds: float | None) -> str:
    """Return a time in words that are as exact as an estimate is."""
    if seconds is None:
        return "no estimate yet"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _print_outcome(plan: Plan, files: Sequence[Path]) -> None:
    """Print how many runs the table has, every hole with its reason, and where the results are."""
    counts = Counter(job.cell().status for job in plan.jobs)
    print(f"{plan.table.name}: {', '.join(f'{number} {status}' for status, number in counts.items())}")
    for job in plan.jobs:
        if job.state == "failed":
            print(f"  {job.name}: {job.told}")
    for path in files:
        print(f"  {path}")
