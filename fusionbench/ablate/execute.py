"""Worker processes, one a device: orders go out to whoever is free, and a process that dies is a failed order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import TYPE_CHECKING, Any, Protocol

from fusionbench.ablate.worker import Order, Place, Report, serve
from fusionbench.errors import UserError
from fusionbench.launch.processes import cores

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

START = "spawn"  # a forked process cannot use a GPU that its parent has looked at
PATIENCE = 20  # seconds that a worker has at Ctrl-C to note its run as killed


class Launcher(Protocol):
    """Who does the orders of a sweep: processes of this machine, or a cluster's jobs."""

    def run(
        self,
        orders: Iterable[Order],
        started: Callable[[int], None],
        said: Callable[[str], None],
        ended: Callable[[int, Report], None],
    ) -> None:
        """Do all orders.

        Args:
            orders: What is to be run; taken one by one, as there is room for them.
            started: Told the number of each order that begins, counted from 0.
            said: Told what is said on the way.
            ended: Told how each order ended.
        """

    def interrupt(self) -> None:
        """Pass Ctrl-C on once, and wait a while for runs to note that they were killed; what does not end is killed."""

    def close(self) -> None:
        """Leave nothing behind that runs."""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    number: int | None = None  # of the order in hand


class Workers:
    """Up to ``count`` spawned processes, which live on between orders, so that imports and data are paid once.

    Args:
        places: What of the machine each may use.
    """

    def __init__(self, places: list[Place]) -> None:
        self.places = places
        self._workers: dict[int, _Worker] = {}

    def run(
        self,
        orders: Iterable[Order],
        started: Callable[[int], None],
        said: Callable[[str], None],
        ended: Callable[[int, Report], None],
    ) -> None:
        """Do all orders, as ``Launcher`` says; one begins when a worker takes it."""
        waiting = enumerate(orders)
        more = self._hand_out(waiting, started)
        while any(worker.number is not None for worker in self._workers.values()):
            self._hear(said, ended)
            more = more and self._hand_out(waiting, started)

    def _hand_out(self, waiting: enumerate[Order], started: Callable[[int], None]) -> bool:
        """Give every free worker an order; return whether there may be more."""
        for index in range(len(self.places)):
            worker = self._workers.get(index)
            if worker is not None and worker.number is not None:
                continue
            number, order = next(waiting, (-1, None))
            if order is None:
                return False
            started(number)
            self._send(index, order).number = number
        return True

    def _send(self, index: int, order: Order) -> _Worker:
        """Give a worker an order; one that died while it was idle is replaced."""
        worker = self._workers.get(index) or self._start(index)
        try:
            worker.pipe.send(order)
        except (BrokenPipeError, ConnectionResetError):
            self._bury(index)
            worker = self._start(index)
            worker.pipe.send(order)
        return worker

    def _start(self, index: int) -> _Worker:
        context: Any = get_context(START)
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, self.places[index]), name=f"fusionbench-{index}")
        process.start()
        there.close()
        self._workers[index] = _Worker(process, here)
        return self._workers[index]

    def _hear(self, said: Callable[[str], None], ended: Callable[[int, Report], None]) -> None:
        """Wait until some worker says something or dies, and pass it on."""
        pipes = {worker.pipe: index for index, worker in self._workers.items()}
        for pipe in connection.wait(list(pipes)):
            worker = self._workers[pipes[pipe]]  # type: ignore[index]
            try:
                report: Report = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                why = self._bury(pipes[pipe])  # type: ignore[index]
                report = Report("died", why, why)
            if report.kind == "say":
                said(report.text)
            elif worker.number is not None:
                number, worker.number = worker.number, None
                ended(number, report)

    def _bury(self, index: int) -> str:
        """Let go of a worker that died and return why it did."""
        worker = self._workers.pop(index)
        worker.process.join()
        worker.pipe.close()
        code = worker.process.exitcode or 0
        return f"process ended by signal {-code}" if code < 0 else f"process ended with status {code}"

    def interrupt(self) -> None:
        """Pass Ctrl-C on once, and wait for the workers to end; what does not end is killed."""
        for worker in self._workers.values():
            if worker.process.is_alive() and worker.process.pid:
                os.kill(worker.process.pid, signal.SIGINT)
        for worker in self._workers.values():
            worker.process.join(PATIENCE)
        self.close()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self._workers.clear()


def places(count: int, accelerators: Iterable[str], devices: int = 1) -> list[Place]:
    """Return what each of ``count`` workers may use: GPUs of its own where there are any, a share of the cores.

    Args:
        count: Number of workers.
        accelerators: What the runs ask for.
        devices: How many GPUs, or processes, a run takes at most.

    Raises:
        UserError: More workers than GPUs for runs that want one, or take one where there are any.
    """
    if count < 1:
        raise UserError(f"--parallel must be at least 1, not {count}")
    wanted = set(accelerators)
    there = _devices() if wanted & {"auto", "gpu"} else []
    most = max(1, len(there) // devices)  # without any GPU a run that wants one says so itself
    if count > most and ("gpu" in wanted or there):
        each = "a GPU" if devices == 1 else f"{devices} GPUs"
        raise UserError(f"--parallel {count} wants {each} for each process, but there are {len(there)}; ask for fewer")
    threads = None if "OMP_NUM_THREADS" in os.environ else max(1, cores() // (count * devices))
    own = [there[i % most * devices :][:devices] for i in range(count)]
    return [Place(",".join(named) or None, threads) for named in own]


def _devices() -> list[str]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    there = [str(i) for i in range(torch.cuda.device_count())]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[: len(there)] if named else there
