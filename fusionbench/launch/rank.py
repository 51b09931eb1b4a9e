"""What one process of several does with its work; it ends with the process that started it."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from multiprocessing import connection, parent_process
from pathlib import Path
from threading import Thread

from fusionbench.launch.failures import log, note
from fusionbench.signals import terminable


def serve(rank: int, folder: Path, work: bytes, redirected: bool) -> None:
    """Do the work; what it returns in rank 0, or why it fails, is left in the folder.

    Args:
        rank: This process's place.
        folder: Of the process that started it.
        work: A function and its arguments, pickled, so that nothing is imported before this process has its place.
        redirected: What it prints goes to a file.
    """
    os.setsid()  # Ctrl-C in the terminal reaches the first process alone, which passes it on once
    die_with_parent()
    for warning in (signal.SIGUSR1, signal.SIGUSR2):  # SLURM's to every process of a step; the first one answers
        signal.signal(warning, signal.SIG_IGN)
    if redirected:
        _redirect(log(folder, rank))
    try:
        with terminable():  # the others are ended by SIGTERM when one has failed
            function, arguments = pickle.loads(work)
            value = function(*arguments)
        if rank == 0:
            result(folder).write_bytes(pickle.dumps(value))
    except (KeyboardInterrupt, SystemExit):  # Lightning ends a process that was told to end by the latter
        _end(signal.SIGTERM)
    except BaseException as error:
        note(folder, rank, error)
        _flush()
        os._exit(1)  # at once: on its way out NCCL would wait for the others


def result(folder: Path) -> Path:
    """Return the file that takes what rank 0 returns."""
    return folder / "result.pickle"


def die_with_parent() -> None:
    """End this process, a child of ``multiprocessing``, whenever its parent ends, even by SIGKILL."""

    def wait() -> None:
        parent = parent_process()
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def _redirect(path: Path) -> None:
    """Let all that this process and its libraries print go to a file."""
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _end(number: signal.Signals) -> None:
    """End by a signal, as if nobody had caught it, so that the status says what happened."""
    _flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
