"""Orders as jobs of a SLURM cluster, through submitit: one job a run; one that is preempted is requeued and goes on.

What jobs read and write must lie on disks that all nodes share: data, ``tracking.folder``, this environment.
"""

from __future__ import annotations

import getpass
import logging
import os
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench.ablate.worker import Order, Report, do
from fusionbench.errors import UserError

if TYPE_CHECKING:
    from submitit import Job
    from submitit.core.utils import DelayedSubmission

CLUSTER = "slurm"  # submitit's name; its "local" runs the same jobs as processes of this machine
MOST = 64  # jobs in the queue at once, if nobody says
LOOK = 2.0  # seconds between two looks at what jobs have written
QUEUE = 15.0  # seconds between two questions to SLURM, which serves all users
LOST = 3  # looks at the queue without a job before it is given up: its result may lag behind on a network disk
PATIENCE = 20  # seconds that a job has at Ctrl-C to note its run as killed
TIMEOUTS = 20  # times that a job is requeued because its time was up; preempted it may be for ever
_ALIVE = "PENDING,CONFIGURING,RUNNING,SUSPENDED,STOPPED,COMPLETING,REQUEUED"


class Errand:
    """What a job calls; submitit requeues it by ``checkpoint``, and the run then goes on from its last epoch."""

    def __call__(self, order: Order) -> Report:
        """Do an order; what is said goes to the job's log, which the sweep reads."""
        from fusionbench.ablate.sources import Sources

        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
        _use_own_cores(order.config.trainer.devices)
        try:
            return do(order, Sources(), lambda text: print(text, flush=True))
        except KeyboardInterrupt as stop:
            if isinstance(stop.__cause__, SystemExit):  # how submitit ends a process that it has requeued
                raise stop.__cause__ from None
            raise

    def checkpoint(self, order: Order) -> DelayedSubmission:
        """Return what the requeued job does: the same, since the run itself is the checkpoint."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self, order)


def _use_own_cores(devices: int) -> None:
    """Use the cores that were asked for, shared out among a run's processes: not every cluster binds a job to them."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    if cores and "OMP_NUM_THREADS" not in os.environ:
        import torch

        threads = max(1, int(cores) // devices)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


@dataclass
class _Post:
    """An order in the queue.

    Attributes:
        number: Of the order.
        job: Its job.
        begun: Whether the job has.
        read: Bytes of its log that were read.
        lost: Looks at the queue in a row that did not find it.
    """

    number: int
    job: Job[Report]
    begun: bool = False
    read: int = 0
    lost: int = 0


class Jobs:
    """A ``Launcher`` whose orders wait in a cluster's queue.

    Args:
        folder: Takes what jobs write; on a disk that all nodes share.
        most: Jobs in the queue at once.
        options: Of each job, by submitit's names, as ``slurm_options.read`` returns them.

    Raises:
        UserError: There is no SLURM here, or it does not take the options.
    """

    def __init__(self, folder: Path, most: int, options: Mapping[str, Any]) -> None:
        if most < 1:
            raise UserError(f"--parallel must be at least 1, not {most}")
        from submitit import AutoExecutor

        logging.getLogger("submitit").setLevel(logging.ERROR)
        try:
            self._executor = AutoExecutor(folder, cluster=CLUSTER, slurm_max_num_timeout=TIMEOUTS)
        except RuntimeError:
            raise UserError(
                "there is no SLURM on this machine (no 'srun'): call this on the cluster's login node, or take "
                "--launcher local"
            ) from None
        own = {"slurm_" + name: value for name, value in options.items()}
        self._executor.update_parameters(**{"slurm_job_name": "fusionbench", **own, "stderr_to_stdout": True})
        self.folder, self.most = folder, most
        self._posts: list[_Post] = []
        self._asked = float("-inf")

    def run(
        self,
        orders: Iterable[Order],
        started: Callable[[int], None],
        said: Callable[[str], None],
        ended: Callable[[int, Report], None],
    ) -> None:
        """Do all orders, as ``Launcher`` says; an order begins when its job leaves the queue."""
        waiting = enumerate(orders)
        while self._fill(waiting):
            time.sleep(LOOK)
            self._count_lost()
            for post in tuple(self._posts):
                self._hear(post, started, said)
                report = _outcome(post)
                if report is not None:
                    self._posts.remove(post)
                    ended(post.number, report)

    def _fill(self, waiting: Iterator[tuple[int, Order]]) -> bool:
        """Queue orders while there is room; return whether any is in the queue."""
        while len(self._posts) < self.most:
            number, order = next(waiting, (-1, None))
            if order is None:
                break
            self._posts.append(_Post(number, self._submit(order)))
        return bool(self._posts)

    def _submit(self, order: Order) -> Job[Report]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            return self._executor.submit(Errand(), order)
        except (FailedJobError, FailedSubmissionError) as error:  # what sbatch said is its last line
            lines = [line for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()
            raise UserError(f"the cluster takes no such job: {lines[-1].strip()}; see the options of --slurm") from None

    def _count_lost(self) -> None:
        """Ask the cluster, now and then, which jobs it still has."""
        if CLUSTER == "slurm" and time.monotonic() - self._asked < QUEUE:
            return
        self._asked = time.monotonic()
        queued = self._queued()
        for post in self._posts:
            post.lost = 0 if post.job.job_id in queued else post.lost + 1

    def _queued(self) -> set[str]:
        """Return the jobs that wait or run; all, while SLURM does not answer.

        Not by submitit's watcher: sacct answers it up to ten minutes late, and never where no accounts are kept.
        """
        if CLUSTER != "slurm":
            return {post.job.job_id for post in self._posts if not post.job.done()}
        command = ["squeue", "--noheader", "--format=%A", f"--states={_ALIVE}", f"--user={getpass.getuser()}"]
        try:
            return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split())
        except (OSError, subprocess.SubprocessError):
            return {post.job.job_id for post in self._posts}

    def _hear(self, post: _Post, started: Callable[[int], None], said: Callable[[str], None]) -> None:
        """Pass on what a job has said since the last look."""
        log = post.job.paths.stdout
        if not log.exists():
            return
        if not post.begun:
            post.begun = True
            started(post.number)
        with log.open("rb") as file:
            file.seek(post.read)
            whole, end, _ = file.read().rpartition(b"\n")
        post.read += len(whole + end)
        for line in whole.decode("utf-8", "replace").splitlines():
            if line.strip() and not line.startswith("submitit "):
                said(line.rstrip())

    def interrupt(self) -> None:
        """Give running jobs a while to note that they were killed, as at Ctrl-C, then cancel what is left."""
        if CLUSTER == "slurm" and self._posts:
            names = [post.job.job_id for post in self._posts]
            for which in ("--state=PENDING", "--signal=INT"):
                subprocess.run(["scancel", "--quiet", which, *names], capture_output=True, check=False)
        else:
            self._cancel()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and any(post.job.job_id in self._queued() for post in self._posts):
            time.sleep(min(LOOK, 1.0))
        self.close()

    def close(self) -> None:
        """Cancel all jobs."""
        self._cancel()
        self._posts.clear()

    def _cancel(self) -> None:
        for post in self._posts:
            post.job.cancel(check=False)


def _outcome(post: _Post) -> Report | None:
    """Return how a job ended; None: it has not."""
    job = post.job
    if job.paths.result_pickle.exists():
        error = job.exception()
        if error is None:
            report: Report = job.result()
            return report
        told = f"job {job.job_id} ended by an error, which stands in {job.paths.stdout}"
        return Report("died", told, "its job ended by an error")
    if post.lost < LOST:
        return None
    job.get_info()  # asks anew
    state = "" if job.state.upper() in ("UNKNOWN", "FINISHED") else f" ({job.state})"
    told = f"job {job.job_id} ended with no result{state}; its log is {job.paths.stdout}"
    return Report("died", told, f"its job ended with no result{state}")
