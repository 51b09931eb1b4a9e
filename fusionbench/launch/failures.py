"""Which process of a run failed by itself, and why."""

from __future__ import annotations

import json
import re
import signal
import traceback
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fusionbench.errors import UserError
from fusionbench.files import write_json

# What a process sees of another one's death; a fault of the network itself may read the same.
_ECHOES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Socket", "process group")
_HINTS: dict[int, str] = {signal.SIGKILL: ", perhaps because the machine ran out of memory"}
_WARNING = re.compile(r"\[rank\d+\]:\[W|warning: ")  # of libtorch and of ours
_WORDS = 200  # characters of a line that a silent process printed


class RankError(RuntimeError):
    """A process of a run ended by an error that is no user's mistake, or was killed.

    Args:
        told: The sentence.
        kinds: Names of the error's class and of its bases; none: the process could say nothing.
        trace: Where in the code it came from.
    """

    def __init__(self, told: str, kinds: Collection[str] = (), trace: str = "") -> None:
        super().__init__(told)
        self.kinds, self.trace = tuple(kinds), trace
        if trace:
            self.add_note(trace)


@dataclass(frozen=True)
class _Failure:
    """Why a process ended.

    Attributes:
        rank: Which.
        text: The sentence.
        kinds: Names of the error's class and of its bases.
        trace: Where in the code.
    """

    rank: int
    text: str
    kinds: tuple[str, ...]
    trace: str

    @property
    def is_mistake(self) -> bool:
        """Whether it is a user's mistake."""
        return UserError.__name__ in self.kinds

    @property
    def is_echo(self) -> bool:
        """Whether it may only tell that another process has gone."""
        return not self.is_mistake and any(sign in self.text for sign in _ECHOES)

    def error(self, devices: int) -> Exception:
        """Return it as the error of the whole run."""
        if self.is_mistake:
            return UserError(self.text)
        return RankError(f"process {self.rank} of {devices} failed: {self.text}", self.kinds, self.trace)


def _failure(rank: int, error: BaseException) -> _Failure:
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return _Failure(rank, text, kinds(error), "".join(traceback.format_exception(error)))


def kinds(error: BaseException) -> tuple[str, ...]:
    """Return the names of an error's class and of its bases; of a process's error, those of what it met."""
    return error.kinds if isinstance(error, RankError) else tuple(kind.__name__ for kind in type(error).__mro__)


def is_echo(error: BaseException) -> bool:
    """Say whether an error may only tell that another process has gone."""
    return _failure(0, error).is_echo


def note(folder: Path, rank: int, error: BaseException) -> None:
    """Write down why this process ends, for the one that started it."""
    write_json(folder / f"failure{rank}.json", asdict(_failure(rank, error)))


def cause(folder: Path, devices: int, ended: Mapping[int, int]) -> Exception:
    """Return the error of the process that failed by itself; of several, of the first.

    One that could say nothing is no echo, but for SIGABRT: NCCL's watchdog aborts a process whose peers have gone.

    Args:
        folder: Where the processes have noted their failures.
        devices: Number of processes.
        ended: Exit status of those that nobody had told to end.
    """
    paths = sorted(folder.glob("failure*.json"), key=lambda path: path.stat().st_mtime_ns)
    noted = [_Failure(**json.loads(path.read_text("utf-8"))) for path in paths]
    mute = [rank for rank in ended if rank not in {failure.rank for failure in noted}]
    killed = [rank for rank in mute if ended[rank] != -signal.SIGABRT]
    own = [failure for failure in noted if not failure.is_echo]
    if mute and (killed or not own):
        rank = (killed or mute)[0]
        return _silent(folder, rank, devices, ended[rank])
    return (own or noted)[0].error(devices)


def _silent(folder: Path, rank: int, devices: int, status: int) -> RankError:
    """Return the error of a process that could say nothing."""
    how = f"ended with status {status}"
    if status < 0:
        known = {number.value: number for number in signal.Signals}
        name = known[-status].name if -status in known else f"signal {-status}"
        how = f"was killed by {name}{_HINTS.get(-status, '')}"
    lines = [line[:_WORDS] for line in printed(folder, rank) if not _WARNING.match(line)]
    words = f"; its last words: {' / '.join(lines[-3:])}" if lines else ""
    return RankError(f"process {rank} of {devices} {how}{words}")


def log(folder: Path, rank: int) -> Path:
    """Return the file that takes what a process prints."""
    return folder / f"{rank}.log"


def printed(folder: Path, rank: int) -> list[str]:
    """Return what a process has printed to its file, line by line."""
    path = log(folder, rank)
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
    return [line for line in lines if line.strip()]
