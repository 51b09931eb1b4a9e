"""One table from plan to results: one modality alone first, then the rest, then the files and the table in MLflow."""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fusionbench import config as configs
from fusionbench.ablate.execute import Launcher
from fusionbench.ablate.job import Job
from fusionbench.ablate.plan import Plan
from fusionbench.ablate.table import Table
from fusionbench.ablate.tree import Tree
from fusionbench.ablate.worker import Order, Report
from fusionbench.config import Config
from fusionbench.errors import UserError, public_reason
from fusionbench.files import write_bytes
from fusionbench.report.ablation import AblationTable, write
from fusionbench.tracking import Store, TrackedRun


class Watch(Protocol):
    """What is told how a sweep goes on."""

    def say(self, text: str) -> None:
        """Hear a message."""

    def start(self, job: Job) -> None:
        """Hear that a run begins."""

    def end(self, jobs: Sequence[Job], trace: str) -> None:
        """Hear that a run ended, with all jobs that it is the result of; ``trace`` says where in the code it failed."""


@dataclass
class Sweep:
    """The run of one table.

    Args:
        plan: What it wants and what is there.
        store: Where runs are kept.
        workers: Who runs.
        watch: Who is told.
        results: Folder of the results.
        files: What was written, once it is.
    """

    plan: Plan
    store: Store
    workers: Launcher
    watch: Watch
    results: Path
    files: list[Path] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a run has failed."""
        return any(job.state == "failed" for job in self.plan.jobs)

    def run(self) -> None:
        """Run what is left, and write the results.

        Raises:
            KeyboardInterrupt: At Ctrl-C, when the workers have ended; finished runs are kept.
        """
        plan = self.plan
        base = next(job.config for job in plan.jobs if job.config is not None)
        with _alone(self.store, plan.table):
            tree = Tree(self.store, plan.table, base)
            try:
                self._work(tree, plan.open_stage_ones())
                self._work(tree, iter(plan.open_jobs()))
            except KeyboardInterrupt:
                self.workers.interrupt()
                tree.stop(plan.jobs, "KILLED")
                raise
            except BaseException:
                tree.stop(plan.jobs, "FAILED")
                raise
            runs_csv = self._write()
            tree.place_stage_ones(plan.stage_ones.values(), plan.jobs)
            tree.keep(self.files[:-1], runs_csv)
            tree.close(plan.jobs, "FAILED" if self.failed else "FINISHED")

    def _work(self, tree: Tree, groups: Iterator[list[Job]]) -> None:
        """Run the first job of each group; all of a group have the same identity and share the result."""
        taken: list[list[Job]] = []

        def orders() -> Iterator[Order]:
            for group in groups:
                taken.append(group)
                yield Order(_quiet(group[0]), tree.tags(group[0]))

        def ended(number: int, report: Report) -> None:
            died = tree.bury(taken[number][0].fingerprint) if report.kind == "died" else ""
            for job in taken[number]:
                job.run_id, job.fingerprint = report.run_id or died, report.fingerprint or job.fingerprint
                job.end("finished" if report.kind == "finished" else "failed", report.public, report.text)
            self.watch.end(taken[number], report.trace)

        self.workers.run(orders(), lambda number: self.watch.start(taken[number][0]), self.watch.say, ended)

    def _write(self) -> str:
        """Write the results; run ids and what a clock measured have files of their own. Return the list of runs."""
        for job in self.plan.jobs:
            if job.state == "finished" and not TrackedRun(self.store, job.run_id).has("predictions.parquet"):
                job.end("failed", "its predictions are gone from the store")
        runs_csv = _runs_csv(self.plan)
        self.files = write(ablation_table(self.plan), self.store, self.results)
        self.files.append(write_bytes(self.results / f"{self.plan.table.name}.runs.csv", runs_csv.encode()))
        return runs_csv


def ablation_table(plan: Plan) -> AblationTable:
    """Return what the report of a table is written from."""
    table = plan.table
    told = {f.name: getattr(table, f.name) for f in dataclasses.fields(AblationTable) if hasattr(table, f.name)}
    notes = tuple(f"{column} was skipped: {public_reason(error)}" for column, error in plan.skipped.items())
    return AblationTable(**told, cells=tuple(job.cell() for job in plan.jobs), notes=notes)


def in_one_place(table: Table) -> Table:
    """Return a table whose runs are all tracked where its first run is, or MLflow could not show them as one tree.

    Every run is named after its place in the table, and shows no bar of its own.
    """
    first = configs.from_dict(next(iter(table.trees.values())))
    tracking = dataclasses.asdict(first.tracking)
    trees = {}
    for (row, column), tree in table.trees.items():
        name = row if len(table.columns) == 1 else f"{row} · {column}"
        own = {"tracking": {**tracking, "run_name": name}, "trainer": {"progress": False}}
        trees[row, column] = configs.merge(tree, own)
    return dataclasses.replace(table, trees=trees)


def _quiet(job: Job) -> Config:
    """Return the config as it is run: a cell of the table carries its seed in its name."""
    if job.config is None:
        raise ValueError(f"{job.name} has no config, since its data are not there")
    name = job.config.tracking.run_name
    tracking = dataclasses.replace(job.config.tracking, run_name=f"{name} · seed {job.seed}" if name else None)
    return dataclasses.replace(job.config, tracking=tracking)


def _runs_csv(plan: Plan) -> str:
    """Return one line a cell: its run, to which every number can be traced, and the rows that it is held against."""
    text = io.StringIO()
    columns = ("row", "column", "seed", "run_id", "fingerprint", "status", "reason")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*columns, "unimodals", "concat"))
    for cell in (job.cell() for job in plan.jobs):
        place = cell.row, cell.column
        own = "|".join(plan.table.own_unimodals.get(place, ())), plan.table.own_concat.get(place, "")
        writer.writerow((*(getattr(cell, name) for name in columns), *own))
    return text.getvalue()


@contextmanager
def _alone(store: Store, table: Table) -> Iterator[None]:
    """Keep a table to this process.

    Raises:
        UserError: Another process runs it.
    """
    path = store.folder / "tables" / f"{table.digest}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"table '{table.name}' is being run by another process; wait for it or stop it") from None
        yield
