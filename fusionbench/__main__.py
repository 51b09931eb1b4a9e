"""The command line: reads the arguments and runs one command, a module of ``fusionbench.commands``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from fusionbench import world
from fusionbench.arguments import parser
from fusionbench.errors import UserError
from fusionbench.launch.failures import RankError, is_echo, kinds
from fusionbench.signals import terminable

_ABLATE = ("--all", "--rows", "--seeds", "--parallel", "--results", "--launcher", "--slurm")
_PLAN = ("--gpus", "--gpu-memory")
_PREPARE = ("--images", "--reports", "--splits")
_TAKE_A_VALUE = (
    *("--config", "--csv", "--out", "--folder", "--split", "--port", "--table", "--diagram", "--checkpoint"),
    *(*_ABLATE, *_PLAN, *_PREPARE),
)
_THE_WORLDS = {"OSError", "MlflowException", "OutOfMemoryError"}  # errors that are no fault of the program
_ADVICE = {
    "fit": "; 'fusionbench fit --resume' goes on from the last finished epoch",
    "ablate": "; the same command again goes on where it was stopped",
    "prepare": "; the same command again goes on where it was stopped",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parse(list(sys.argv[1:] if arguments is None else arguments))
    warnings.formatwarning = _one_line
    try:
        with terminable():
            return int(import_module(f"fusionbench.commands.{options.command}").run(options))
    except UserError as error:
        if options.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if options.traceback:
            raise
        return _tell(error)
    except KeyboardInterrupt:
        print(f"interrupted{_ADVICE.get(options.command, '')}", file=sys.stderr)
        return 130


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Show a warning as its sentence alone."""
    return f"warning: {message}\n"


def _tell(error: Exception) -> int:
    """Say what is no user's mistake, and return the status; raise what is a fault of this process's program.

    One sentence tells of the disk, a tracking server or a device, of a process that was killed, and, in a process that
    torchrun started beside rank 0, of the others' end.
    """
    if isinstance(error, RankError) and not error.kinds:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sentence = f"{_first_line(error)}; see all of it with 'fusionbench --traceback ...'"
    if not _THE_WORLDS.isdisjoint(kinds(error)):
        print(f"error: {sentence}", file=sys.stderr)
        return 2
    if isinstance(error, RankError):
        print(f"{error.trace}error: {_first_line(error)}", file=sys.stderr)
        return 1
    own = world.current()
    if own.leads or not is_echo(error):
        raise error
    print(f"error: process {own.rank} of {own.size} has lost another, which says why: {sentence}", file=sys.stderr)
    return 1


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:400] or type(error).__name__


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse, with ``key=value`` anywhere among the options, which plain argparse refuses."""
    before = ["", *arguments]
    taken = [_is_override(a) and before[i] not in _TAKE_A_VALUE for i, a in enumerate(arguments)]
    flags = [a for a, is_one in zip(arguments, taken, strict=True) if not is_one]
    overrides = [a for a, is_one in zip(arguments, taken, strict=True) if is_one]
    options = parser().parse_args(flags)
    if overrides and not hasattr(options, "overrides"):
        parser().error(f"'{options.command}' takes no overrides such as '{overrides[0]}'")
    if hasattr(options, "overrides"):
        options.overrides = [*options.overrides, *overrides]
    return options


def _is_override(argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    return bool(equals) and not key.startswith("-") and "/" not in key


if __name__ == "__main__":
    sys.exit(main())
