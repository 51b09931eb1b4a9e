"""What processes that read ahead make of signals: forked, they have the handlers of the process that trains."""

from __future__ import annotations

import os
import signal
from threading import Thread

_DEAF_TO = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


def heed_parent_alone(worker_id: int) -> None:
    """Let signals that come to all processes of a job, as SLURM's and Ctrl-C do, be answered by the parent alone.

    SIGTERM ends the process if it comes from the parent, which is how torch ends a worker that hangs. A worker whose
    parent has gone ends by torch's own watch.

    Args:
        worker_id: Given by ``DataLoader``.
    """
    for number in _DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Thread(target=_await_parents_word, daemon=True).start()


def _await_parents_word() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
