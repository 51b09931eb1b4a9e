"""A process that runs one config after another; it imports everything once and dies with the process that started it.

Nothing heavy is imported before ``serve`` has set which device and how many threads the process may use.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Literal

from fusionbench.config import data_options
from fusionbench.errors import UserError, public_reason
from fusionbench.launch.failures import RankError
from fusionbench.launch.rank import die_with_parent
from fusionbench.world import World, joined

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from fusionbench.ablate.sources import Sources
    from fusionbench.config import Config


@dataclass(frozen=True)
class Order:
    """One run to do.

    Attributes:
        config: The run.
        tags: Put on the MLflow run if it is a new one.
    """

    config: Config
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """What a worker tells.

    Attributes:
        kind: ``say`` is a message on the way; ``finished`` and ``failed`` end an order; ``died`` is said for a worker
            that can no longer say anything.
        text: The message, or why it failed, for the console alone.
        public: Why it failed, in words that may be written to files and trackers.
        run_id: The MLflow run of a finished order.
        fingerprint: Its identity.
        trace: Where in the code an error came from that is no user's mistake.
    """

    kind: Literal["say", "finished", "failed", "died"]
    text: str = ""
    public: str = ""
    run_id: str = ""
    fingerprint: str = ""
    trace: str = ""


@dataclass(frozen=True)
class Place:
    """What of the machine a worker may use.

    Attributes:
        device: What ``CUDA_VISIBLE_DEVICES`` must be; None leaves it.
        threads: Torch's threads in each process of a run; None leaves the choice to ``OMP_NUM_THREADS``.
    """

    device: str | None = None
    threads: int | None = None


class _Pipe:
    """A worker's end of the pipe, for all of its threads; processes forked from it, such as loaders, send nothing.

    Args:
        pipe: The end itself.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock, self._process = pipe, RLock(), os.getpid()

    @property
    def is_own(self) -> bool:
        """Whether this is the process that the pipe was made for."""
        return os.getpid() == self._process

    def send(self, report: Report) -> None:
        """Send a report whole."""
        if self.is_own:
            with self._lock:
                self._pipe.send(report)

    def recv(self) -> Order | None:
        """Wait for an order; None ends the worker."""
        order: Order | None = self._pipe.recv()
        return order


class _Lines(io.TextIOBase):
    """What a worker's libraries print, line by line to the process that started it, so that no bar is torn."""

    def __init__(self, pipe: _Pipe) -> None:
        self._pipe, self._rest, self._lock = pipe, "", RLock()

    def write(self, text: str) -> int:
        """Send each line that is whole."""
        if self._pipe.is_own:
            with self._lock:
                *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                if line.strip():
                    self._pipe.send(Report("say", line.rstrip()))
        return len(text)


def serve(pipe: Connection, place: Place) -> None:
    """Do orders until the pipe closes; at Ctrl-C the run is noted as killed and the process ends."""
    os.setsid()  # Ctrl-C in the terminal reaches the first process alone, which passes it on once
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell script starts in the background
    if place.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.device
    if place.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(place.threads)  # also of the processes that this one starts
    own = _Pipe(pipe)
    sys.stdout = sys.stderr = _Lines(own)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        _serve(own, place.threads)
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        os._exit(130)  # nothing of it is left to be tidied up


def _serve(pipe: _Pipe, threads: int | None) -> None:
    import torch

    from fusionbench.ablate.sources import Sources

    if threads is not None:
        torch.set_num_threads(threads)
    sources = Sources()
    while True:
        order = pipe.recv()
        if order is None:
            return
        pipe.send(do(order, sources, lambda text: pipe.send(Report("say", text))))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def do(order: Order, sources: Sources, say: Callable[[str], None]) -> Report:
    """Do one order and say how it ended.

    Args:
        order: The run.
        sources: Reads its data.
        say: Hears messages on the way.

    Returns:
        A report that it finished or failed.
    """
    try:
        if order.config.trainer.processes == 1:
            run_id, identity = _fit(order, sources, say)
        else:
            run_id, identity = _fit_on_devices(order, say)
        return Report("finished", run_id=run_id, fingerprint=identity)
    except UserError as error:
        return Report("failed", str(error), public_reason(error))
    except RankError as error:
        return Report("failed", str(error), next(iter(error.kinds), "a process of it ended"), trace=error.trace)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        told = f"{type(error).__name__}: {reason}"
        return Report("failed", told, public_reason(error), trace=traceback.format_exc())


def _fit(order: Order, sources: Sources, say: Callable[[str], None], world: World | None = None) -> tuple[str, str]:
    """Return the id and the identity of an order's run, once it has ended."""
    from fusionbench.report.run_report import summarise
    from fusionbench.run import Session, fit_in
    from fusionbench.tracking import Store

    store = Store(order.config.tracking)
    session = Session(store, summarise, say, resume=True, source=sources, tags=order.tags, told=True)
    session.world = world or session.world
    run_id = fit_in(session, order.config)[-1].run_id
    return run_id, store.open(run_id).tags()["fusionbench.fingerprint"]


def _fit_on_devices(order: Order, say: Callable[[str], None]) -> tuple[str, str]:
    """Do the same on several devices, each with a process of its own; what rank 0 says is heard when it has ended."""
    from fusionbench.distributed.checks import check
    from fusionbench.launch.processes import on_each

    options, data = order.config.trainer, order.config.data
    check(options, data.get("batch_size", data_options()["batch_size"].default), 0, 0, world_size=1)
    return on_each(options.devices, _on_rank, order, hear=say)


def _on_rank(order: Order) -> tuple[str, str]:
    """Do one process's part of an order."""
    from fusionbench import run as runs
    from fusionbench.ablate.sources import Sources

    with joined(order.config.trainer.accelerator) as world:
        if not world.leads:
            runs.follow(world)
            return "", ""
        ended = _fit(order, Sources(), print, world)
        runs.dismiss(world)
        return ended
