"""A table in MLflow: the table's run, below it one for each row and column, below that one for each seed.

A run that two tables share lies below one of them and is represented in the other by a light copy: its metrics and
tags, and the id of the run itself. What is there already is found again, so a table that is run again gains nothing
twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from fusionbench.ablate.job import Job
from fusionbench.ablate.table import Table
from fusionbench.config import Config, flatten, without_password
from fusionbench.tracking import LONGEST_PARAM, Store, TrackedRun

PARENT, COPY_OF = "mlflow.parentRunId", "fusionbench.copy_of"
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
_SHARED_TAGS = ("fusion", "adapt", "data", "data_fingerprint", "data_version", "modalities", "random_weights", "allow")
_AVERAGED = ("test/", "parameters/", "cost/gflops_per_case")


class Tree:
    """The MLflow runs that hold a table together.

    Args:
        store: Where runs are kept; the table lies in its experiment.
        table: The table.
        base: The config of its first run, which the table's run shows.
    """

    def __init__(self, store: Store, table: Table, base: Config) -> None:
        self.store, self.table, self.client = store, table, store.client
        digest = f"tags.`fusionbench.table_digest` = '{table.digest}' and tags.`fusionbench.level` = 'table'"
        found = next(self._here(digest), None)
        self.parent = str(found.info.run_id) if found else self._create_parent(base)
        children = self._here(f"tags.`{PARENT}` = '{self.parent}' and tags.`fusionbench.level` = 'row'")
        self._rows = {(r.data.tags["fusionbench.row"], r.data.tags["fusionbench.column"]): r for r in children}
        margin = f"{table.margin:g}"
        TrackedRun(store, self.parent).tag({"fusionbench.metric": table.metric, "fusionbench.margin": margin})
        self._set(self.parent, "RUNNING")

    def _here(self, condition: str) -> Any:  # noqa: ANN401 - an iterator over MLflow runs
        return (r for r in self.store.search_all(condition) if r.info.experiment_id == self.store.experiment)

    def _create(self, name: str, tags: Mapping[str, str], start: int | None = None) -> str:
        tags = {"mlflow.user": "fusionbench", **tags}
        created = self.client.create_run(self.store.experiment, start_time=start, run_name=name, tags=tags)
        return str(created.info.run_id)

    def _create_parent(self, base: Config) -> str:
        name = self.table.name
        tags = {"fusionbench.table": name, "fusionbench.level": "table", "fusionbench.table_digest": self.table.digest}
        parent = self._create(name, {**tags, "mlflow.note.content": self.table.title})
        TrackedRun(self.store, parent).log_params({"table": self._yaml()[:LONGEST_PARAM], **flatten(base.public())})
        return parent

    def _yaml(self) -> str:
        """Return the table's yaml as a tracker may hold it."""
        return without_password(self.table.path.read_text("utf-8"))

    def row(self, row: str, column: str) -> str:
        """Return the run of a row and column."""
        if (row, column) not in self._rows:
            tags = {PARENT: self.parent, "fusionbench.level": "row"}
            name = row if len(self.table.columns) == 1 else f"{row} · {column}"
            run_id = self._create(name, {**tags, "fusionbench.row": row, "fusionbench.column": column})
            tree = self.table.trees[row, column]
            shown = {"row": row, "column": column} | flatten({k: tree.get(k) or {} for k in ("fusion", "adapt")})
            TrackedRun(self.store, run_id).log_params(shown)
            self._rows[row, column] = self.client.get_run(run_id)
        return str(self._rows[row, column].info.run_id)

    def tags(self, job: Job) -> dict[str, str]:
        """Return the tags that put a new run in its place."""
        if job.stage_one:
            return {PARENT: self.parent, "fusionbench.level": "stage1"}
        where = {"fusionbench.row": job.row, "fusionbench.column": job.column}
        return {PARENT: self.row(job.row, job.column), "fusionbench.level": "seed", **where}

    def place(self, job: Job) -> None:
        """See that a finished run is below its row: put it there, or a light copy if it lies elsewhere already."""
        tags = self.tags(job)
        own = self.client.get_run(job.run_id)
        if own.data.tags.get(PARENT) == tags[PARENT]:
            return
        if PARENT not in own.data.tags and own.info.experiment_id == self.store.experiment:
            TrackedRun(self.store, job.run_id).tag(tags)
        elif not any(self._here(f"tags.`{PARENT}` = '{tags[PARENT]}' and tags.`{COPY_OF}` = '{job.run_id}'")):
            self._copy(own, tags)

    def _copy(self, own: Any, tags: Mapping[str, str]) -> None:  # noqa: ANN401 - an MLflow run
        from mlflow.entities import Metric

        kept = {f"fusionbench.{n}": own.data.tags.get(f"fusionbench.{n}") for n in (*_SHARED_TAGS, "seed")}
        shown = {**{k: v for k, v in kept.items() if v is not None}, **tags, COPY_OF: own.info.run_id}
        copy = self._create(str(own.info.run_name), shown, own.info.start_time)
        points = [Metric(name, value, own.info.start_time, 0) for name, value in own.data.metrics.items()]
        for start in range(0, len(points), 500):
            self.client.log_batch(copy, metrics=points[start : start + 500])
        self.client.set_terminated(copy, "FINISHED", own.info.end_time)

    def place_stage_ones(self, stages: Iterable[Job], jobs: Iterable[Job]) -> None:
        """See that the finished stage-1 runs are below the table's run, but for those that a row has as its own."""
        cells = {job.run_id for job in jobs if job.state == "finished"}
        for stage in stages:
            if stage.state == "finished" and stage.run_id not in cells:
                self.place(stage)

    def keep(self, files: Iterable[Path], runs_csv: str) -> None:
        """Put the yaml and files on the table's run, and the list of its runs under one name for all tables."""
        for path in files:
            self.client.log_artifact(self.parent, str(path))
        self.client.log_text(self.parent, self._yaml(), self.table.path.name)
        self.client.log_text(self.parent, runs_csv, "runs.csv")

    def close(self, jobs: Sequence[Job], status: Status) -> None:
        """Put every finished run in its place, and the means over seeds on the rows."""
        cells: dict[tuple[str, str], list[Job]] = {}
        for job in jobs:
            if job.state in ("finished", "failed"):
                cells.setdefault((job.row, job.column), []).append(job)
        for (row, column), own in cells.items():
            self._close_row(row, column, own)
        self._set(self.parent, status)

    def stop(self, jobs: Sequence[Job], status: Status) -> None:
        """End the table's run before its time, with all below it that nobody goes on with; a whole row is finished."""
        open_ = {(job.row, job.column) for job in jobs if job.state != "finished"}
        below = {self.parent, *(str(row.info.run_id) for row in self._rows.values())}
        for run in list(self._here("attributes.status = 'RUNNING'")):
            tags = run.data.tags
            if tags.get(PARENT) in below:
                place = tags.get("fusionbench.row"), tags.get("fusionbench.column")
                whole = tags.get("fusionbench.level") == "row" and place not in open_
                self._set(run.info.run_id, "FINISHED" if whole else status)
        self._set(self.parent, status)

    def bury(self, fingerprint: str) -> str:
        """Note the run of a worker that died as failed, and return its id; empty if it died before it had one."""
        found = next(self._here(f"tags.`fusionbench.fingerprint` = '{fingerprint}'"), None)
        if found is None or found.info.status != "RUNNING":
            return ""
        self._set(found.info.run_id, "FAILED")
        return str(found.info.run_id)

    def _close_row(self, row: str, column: str, jobs: Sequence[Job]) -> None:
        done = [job for job in jobs if job.state == "finished"]
        for job in done:
            self.place(job)
        run = TrackedRun(self.store, self.row(row, column))
        found = [self.client.get_run(job.run_id).data for job in done]
        old = run.metrics()
        values = {k: v for k, v in _over_seeds([data.metrics for data in found]).items() if old.get(k) != v}
        run.log_metrics(values)
        run.flush()
        if found:
            kept = {f"fusionbench.{n}": found[0].tags.get(f"fusionbench.{n}") for n in _SHARED_TAGS}
            run.tag({name: value for name, value in kept.items() if value is not None})
        self._set(run.run_id, "FAILED" if any(job.state == "failed" for job in jobs) else "FINISHED")

    def _set(self, run_id: str, status: Status) -> None:
        if status == "RUNNING":
            self.client.update_run(run_id, status=status)
        elif self.client.get_run(run_id).info.status != status:
            self.client.set_terminated(run_id, status)


def _over_seeds(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over seeds of what is scored, its standard deviation as ``test_std/``, and how many seeds."""
    values: dict[str, float] = {"seeds": float(len(metrics))}
    for name in sorted({n for run in metrics for n in run if n.startswith(_AVERAGED)}):
        seen = [run[name] for run in metrics if name in run]
        values[name] = mean(seen)
        if len(seen) > 1 and name.startswith("test/"):
            values[f"test_std/{name.removeprefix('test/')}"] = stdev(seen)
    return values
