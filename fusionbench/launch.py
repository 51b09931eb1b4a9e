"""One process for each device of this machine, started and watched by torch's elastic agent (what torchrun is made of).

The agent ends all processes when one fails; the process that failed first says why.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from fusionbench.errors import UserError
from fusionbench.files import write_json
from fusionbench.signals import terminable

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

T = TypeVar("T")
_MONITOR = 0.2  # seconds between two looks of the agent
_SHUTDOWN = 20  # seconds that the processes have to end when one has failed, or at Ctrl-C
# What a process sees of another one's death.
_ECHOES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Socket", "process group")


class RankError(RuntimeError):
    """A process of a run ended by an error that is no user's mistake; holds its traceback."""


@dataclass(frozen=True)
class _Failure:
    """Why a process ended.

    Attributes:
        rank: Which.
        text: The sentence.
        mistake: It is a user's mistake.
        trace: Where in the code.
    """

    rank: int
    text: str
    mistake: bool
    trace: str

    @property
    def is_echo(self) -> bool:
        """Whether it only tells that another process has gone."""
        return not self.mistake and any(sign in self.text for sign in _ECHOES)


def on_each(
    devices: int, function: Callable[..., T], *arguments: object, hear: Callable[[str], None] | None = None
) -> T:
    """Run a function in one process for each device, all of one world, and return what rank 0 returns.

    What the other ranks print goes to files, which are shown if they fail.

    Args:
        devices: Number of processes.
        function: Of a module's top level; called in each with the arguments, which are pickled.
        *arguments: Its arguments.
        hear: Is told each line that rank 0 has printed, when it has ended; None: it prints to the console.

    Raises:
        UserError: A process met a user's mistake.
        RankError: A process failed otherwise, or was killed.
        KeyboardInterrupt: At Ctrl-C, or at a signal that ends.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="fusionbench_") as folder:
        _quiet()
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",  # the host's own name may not resolve
            max_restarts=0,
            monitor_interval=_MONITOR,
            shutdown_timeout=_SHUTDOWN,
            logs_specs=DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(hear is None, devices), Std.ALL)),
        )
        try:
            ended: dict[int, T] = elastic_launch(config, _on_rank)(function, arguments, folder)
        except ChildFailedError as error:
            raise _first(Path(folder), error, devices) from None
        except SignalException:
            raise KeyboardInterrupt from None
        finally:
            for line in _printed(Path(folder), 0, "std*.log") if hear else ():
                hear(line)  # type: ignore[misc]
    return ended[0]


def _quiet() -> None:
    """Let the agent's own messages go; what failed is told by the exception."""
    import logging

    os.environ.setdefault("TORCHELASTIC_LOG_LEVEL", "CRITICAL")
    for name in ("agent.server.api", "agent.server.local_elastic_agent", "multiprocessing.api", "multiprocessing"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)


def die_with_parent() -> None:
    """End this process, a child of ``multiprocessing``, whenever its parent ends, even by SIGKILL."""

    def wait() -> None:
        parent = parent_process()
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def _on_rank(function: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> Any:  # noqa: ANN401 - theirs
    """Call the function in one process; an error is noted for the process that launched it."""
    os.setsid()  # Ctrl-C in the terminal reaches the first process alone, which passes it on once
    die_with_parent()
    try:
        with terminable():  # the agent ends the others by SIGTERM when one has failed
            return function(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        rank = int(os.environ["RANK"])
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        failure = _Failure(rank, text, isinstance(error, UserError), traceback.format_exc())
        write_json(Path(folder) / f"failure{rank}.json", asdict(failure))
        sys.stdout.flush()
        os._exit(1)  # at once: on its way out NCCL would wait for the others


def _first(folder: Path, error: ChildFailedError, devices: int) -> Exception:
    """Return the error of the process that failed by itself, of several the first."""
    paths = sorted(folder.glob("failure*.json"), key=lambda path: path.stat().st_mtime_ns)
    noted = [_Failure(**json.loads(path.read_text("utf-8"))) for path in paths]
    silent = [rank for rank in range(devices) if rank not in {failure.rank for failure in noted}]
    own = [failure for failure in noted if not failure.is_echo]
    if own and own[0].mistake:
        return UserError(own[0].text)
    if own or (noted and not silent):  # all of them echoes: the network itself failed
        first = (own or noted)[0]
        return RankError(f"process {first.rank} of {devices} failed: {first.text}\n{first.trace}")
    if noted:  # an echo of one that could say nothing
        return RankError(f"process {silent[0]} of {devices} was killed; {_last_words(folder, silent[0])}")
    rank, failure = error.get_first_failure()
    return RankError(f"process {rank} of {devices} ended: {failure.message}; {_last_words(folder, rank)}")


def _last_words(folder: Path, rank: int) -> str:
    """Return the end of what a process wrote to its file."""
    lines = _printed(folder, rank, "stderr.log")
    return "its last words: " + " / ".join(lines[-3:]) if lines else "it left no word"


def _printed(folder: Path, rank: int, name: str) -> list[str]:
    """Return what a process has printed to its files, line by line."""
    paths = sorted(folder.rglob(f"{rank}/{name}"))
    lines = [line for path in paths for line in path.read_text("utf-8", errors="replace").splitlines()]
    return [line for line in lines if line.strip()]
