"""What a table wants, what the store has of it, and what is left to run: one modality alone first, then the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fusionbench import stage_one
from fusionbench.ablate.hub_weights import refuse_without
from fusionbench.ablate.job import Job
from fusionbench.ablate.sources import Sources
from fusionbench.ablate.table import Table
from fusionbench.config import Config
from fusionbench.data.base import make_dataset
from fusionbench.encoders import fallback
from fusionbench.errors import UserError, nearest, public_reason
from fusionbench.fingerprint import fingerprint
from fusionbench.fusion.base import UnimodalState
from fusionbench.tracking import Store, TrackedRun

LEFT_OUT = "not asked for"


class Plan:
    """The jobs of one table.

    Args:
        table: The table.
        store: Where runs are kept; None: nowhere yet.
        sources: Reads data.
        rows: Names of the rows to run; empty: all.
        seeds: Seeds to run; empty: all.

    Attributes:
        jobs: One for each row, column and seed, in the table's order.
        stage_ones: The stage-1 runs that some job needs, and the texts alone that it is held against, by identity.
        skipped: What was wrong with the data of each column that is left out.

    Raises:
        UserError: A row or seed that the table does not have.
    """

    def __init__(
        self, table: Table, store: Store | None, sources: Sources, rows: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> None:
        self.table, self.store, self.sources = table, store, sources
        self._states: dict[tuple[str, str], UnimodalState] = {}
        for row in rows:
            if row not in table.rows:
                raise UserError(f"table '{table.name}' has no row '{row}'{nearest(row, table.rows)}")
        for seed in seeds:
            if seed not in table.seeds:
                raise UserError(f"table '{table.name}' has no seed {seed}; it has {', '.join(map(str, table.seeds))}")
        self.stage_ones: dict[str, Job] = {}
        self.skipped = {c: error for c in table.columns if (error := self._absent(c))}
        self._look()
        self.jobs = [
            self._job(row, column, seed, (not rows or row in rows) and (not seeds or seed in seeds))
            for row in table.rows
            for column in table.columns
            if (row, column) in table.trees
            for seed in table.seeds
        ]
        refuse_without([*self.stage_ones.values(), *self.jobs])

    def _absent(self, column: str) -> UserError | None:
        """Return why a column's data are not there; None if they are."""
        row = next(row for row in self.table.rows if (row, column) in self.table.trees)
        try:
            make_dataset(self.table.config(row, column, self.table.seeds[0]).data)
        except UserError as error:
            return error
        return None

    def _look(self) -> None:
        """Learn which runs the store has."""
        finished = list(self.store.search_all("attributes.status = 'FINISHED'")) if self.store else []
        tagged = [run for run in reversed(finished) if "fusionbench.fingerprint" in run.data.tags]
        self.finished = {run.data.tags["fusionbench.fingerprint"]: run for run in tagged}
        self.unfinished = self.store.unfinished() if self.store else {}

    def _job(self, row: str, column: str, seed: int, wanted: bool) -> Job:
        if column in self.skipped:
            job = Job(row, column, seed, None, wanted=wanted)
            job.end("skipped", public_reason(self.skipped[column]), str(self.skipped[column]))
            return job
        job = Job(row, column, seed, self.table.config(row, column, seed), wanted=wanted)
        try:
            job.config = fallback.settled(_config(job))
            self._plan_stage_one(job)
            self.identify(job)
        except UserError as error:
            job.refuse(error)
        for identity in job.texts.values():
            self.stage_ones[identity].wanted |= job.open
        if job.state != "finished" and not wanted:
            job.end("left out", LEFT_OUT)
        return job

    def _plan_stage_one(self, job: Job) -> None:
        """Note the stage-1 runs that a job needs, and the texts alone that are wanted where it is still to be run."""
        config = _config(job)
        source = self.sources(config)
        for modality, own in stage_one.stage_one_configs(config, source).items():
            job.needs[modality] = self._shared(job, f"stage 1: {modality}", own)
            self.stage_ones[job.needs[modality]].wanted |= job.wanted
        for modality, own in stage_one.text_only_configs(config, source).items():
            job.texts[modality] = self._shared(job, f"text only: {modality}", own)

    def _shared(self, job: Job, name: str, own: Config) -> str:
        """Return the identity of one modality's own run, planned once for all jobs that want it."""
        identity = fingerprint(own, self.sources(own), {})
        if identity not in self.stage_ones:
            stage = Job(name, job.column, job.seed, own, stage_one=True, wanted=False, fingerprint=identity)
            self._settle(stage)
            self.stage_ones[identity] = stage
        return identity

    def identify(self, job: Job) -> None:
        """Give a job its identity, if its stage-1 runs have ended, and say whether it has ended itself.

        Raises:
            UserError: Data or a stage-1 run given by hand do not go with it.
        """
        config = _config(job)
        source = self.sources(config)
        given = {m: run_id for m, run_id in config.init.runs.items() if m in source.problem.modalities}
        states = {m: self._state(m, run_id) for m, run_id in given.items()}
        for modality, identity in job.needs.items():
            stage = self.stage_ones[identity]
            if stage.state != "finished":
                return
            states[modality] = self._state(modality, stage.run_id)
        job.fingerprint = fingerprint(config, source, states)
        self._settle(job)

    def _state(self, modality: str, run_id: str) -> UnimodalState:
        """Return what a stage-1 run hands on, read once."""
        if (modality, run_id) not in self._states:
            if self.store is None:
                raise UserError(f"init.runs names run '{run_id}', but there are no runs yet")
            self._states[modality, run_id] = stage_one.unimodal_state(self.store.open(run_id), modality)
        return self._states[modality, run_id]

    def _settle(self, job: Job) -> None:
        """Say by its identity how far a job has come."""
        if run_id := self._whole(job):
            job.state, job.run_id = "finished", run_id
        elif job.fingerprint in self.unfinished:
            job.state, job.run_id = "to resume", self.unfinished[job.fingerprint][0]

    def _whole(self, job: Job) -> str:
        """Return the run that ended with a job's identity and still has what is needed of it; empty: there is none."""
        if self.store is None or job.fingerprint not in self.finished:
            return ""
        artifacts = stage_one.needed(_config(job))
        newest = TrackedRun(self.store, str(self.finished[job.fingerprint].info.run_id))
        found = newest if all(map(newest.has, artifacts)) else self.store.find_finished(job.fingerprint, artifacts)
        return found.run_id if found else ""

    def open_stage_ones(self) -> Iterator[list[Job]]:
        """Yield the jobs of each such identity that is still to be run; a cell of the table runs before the rest."""
        for identity, stage in self.stage_ones.items():
            if stage.open:
                same = [job for job in self.jobs if job.fingerprint == identity and job.state != "finished"]
                yield sorted([stage, *same], key=lambda job: not (job.open and not job.stage_one))

    def open_jobs(self) -> list[list[Job]]:
        """Return the cells still to be run, by identity, now that stage 1 is over; ends those that it failed."""
        groups: dict[object, list[Job]] = {}
        for job in self.jobs:
            if job.open:
                self._failed_before(job)
            if job.open and not job.fingerprint:
                self._after_stage_one(job)
            if job.open:
                groups.setdefault(job.fingerprint or id(job), []).append(job)
        return list(groups.values())

    def _after_stage_one(self, job: Job) -> None:
        try:
            self.identify(job)
        except UserError as error:
            job.refuse(error)

    def _failed_before(self, job: Job) -> None:
        """End a job if a run that it starts from, or is held against, has failed."""
        for why, identities in (("stage 1 of", job.needs), ("the text alone of", job.texts)):
            for modality, identity in identities.items():
                stage = self.stage_ones[identity]
                if stage.state != "finished":
                    told = f"{why} '{modality}' failed"
                    return job.end("failed", f"{told}: {stage.reason}", f"{told}: {stage.told}")
        return None


def _config(job: Job) -> Config:
    if job.config is None:
        raise ValueError(f"{job.name} has no config, since its data are not there")
    return job.config
