"""One process for each device of this machine; if one fails, all are ended, and the error is its own."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TypeVar

from fusionbench.launch import rank
from fusionbench.launch.failures import cause, printed
from fusionbench.world import MEETING

T = TypeVar("T")
_LOOK = 0.1  # seconds between two looks at the processes
_SHUTDOWN = 20  # seconds that the processes have to end when one has failed, or at Ctrl-C


def on_each(
    devices: int, function: Callable[..., T], *arguments: object, hear: Callable[[str], None] | None = None
) -> T:
    """Run a function in one process for each device, all of one world, and return what rank 0 returns.

    What the other ranks print goes to files, which are shown if they fail. The processes meet in a file and speak over
    the loopback interface, so that nothing of them is open to the network.

    Args:
        devices: Number of processes.
        function: Of a module's top level; called in each with the arguments, which are pickled.
        *arguments: Its arguments.
        hear: Is told each line that rank 0 has printed, when it has ended; None: it prints to the console.

    Raises:
        UserError: A process met a user's mistake.
        RankError: A process failed otherwise, or was killed.
    """
    with tempfile.TemporaryDirectory(prefix="fusionbench_") as name:
        folder, work = Path(name), pickle.dumps((function, arguments))
        context = get_context("spawn")  # a forked process cannot use a GPU that its parent has looked at
        to_file = [place > 0 or hear is not None for place in range(devices)]
        processes = [context.Process(target=rank.serve, args=(i, folder, work, to_file[i])) for i in range(devices)]
        try:
            failed = _run(processes, folder)
        finally:
            for line in printed(folder, 0) if hear else ():
                hear(line)  # type: ignore[misc]
        if failed:
            raise cause(folder, devices, failed)
        value: T = pickle.loads(rank.result(folder).read_bytes())
        return value


def _run(processes: Sequence[SpawnProcess], folder: Path) -> dict[int, int]:
    """Start all and wait for their end; return the exit status of those that failed by themselves."""
    try:
        for place, process in enumerate(processes):
            with _environment(_place(place, len(processes), folder)):
                process.start()
        while not any(process.exitcode for process in processes):
            if all(process.exitcode == 0 for process in processes):
                return {}
            time.sleep(_LOOK)  # not on their sentinels, which loader workers hold open after a process's death
        failed = {place: process.exitcode for place, process in enumerate(processes) if process.exitcode}
    except BaseException:  # Ctrl-C, or what a signal's handler raises
        _stop(processes, signal.SIGTERM)  # SIGINT is ignored by what a shell script starts in the background
        raise
    stopped = _stop(processes, signal.SIGTERM)
    slow = {p: -signal.SIGKILL for p, process in enumerate(processes) if process.exitcode == -signal.SIGKILL}
    return failed | {place: status for place, status in slow.items() if place not in stopped}


def _stop(processes: Sequence[SpawnProcess], number: signal.Signals) -> list[int]:
    """End all that still run; return which had to be killed."""
    for process in processes:
        if process.pid is not None and process.exitcode is None:
            os.kill(process.pid, number)
    end = time.monotonic() + _SHUTDOWN
    while _running(processes) and time.monotonic() < end:
        time.sleep(_LOOK)
    left = _running(processes)
    for place in left:
        processes[place].kill()
        processes[place].join()
    return left


def _running(processes: Sequence[SpawnProcess]) -> list[int]:
    return [i for i, process in enumerate(processes) if process.pid is not None and process.exitcode is None]


def _place(place: int, devices: int, folder: Path) -> dict[str, str]:
    """Return the environment of one process: torchrun's, and what else the user has not set."""
    numbers = {"RANK": place, "LOCAL_RANK": place, "WORLD_SIZE": devices, "LOCAL_WORLD_SIZE": devices}
    own = {name: str(number) for name, number in numbers.items()}
    own |= {MEETING: str(folder / "meeting"), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # read, but not called
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    ours = {"OMP_NUM_THREADS": str(max(1, cores() // devices))}
    if loopback is not None:
        ours |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    return own | {name: value for name, value in ours.items() if name not in os.environ}


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for a while: a process that it starts has them before it imports anything."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
