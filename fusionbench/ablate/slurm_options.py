"""The options of a SLURM job from the command line, by the names that submitit has for sbatch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusionbench.errors import UserError, nearest

# A job is one process of one node, whose log the sweep reads; the rest wants more than a word.
_OURS = ("nodes", "ntasks_per_node", "stderr_to_stdout", "additional_parameters", "array_parallelism", "num_gpus")
_LISTS = ("setup", "teardown", "srun_args")


def read(given: Sequence[str]) -> dict[str, Any]:
    """Return the options of a job from ``key=value`` on the command line.

    Args:
        given: By the names that submitit has for sbatch's options; what is a list may be given repeatedly.

    Raises:
        UserError: An unknown name, no value, or no time.
    """
    from submitit import SlurmExecutor

    known = SlurmExecutor._valid_parameters() - set(_OURS)
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (equals and value):
            raise UserError(f"--slurm takes key=value such as partition=gpu, not '{text}'")
        if name not in known:
            raise UserError(f"--slurm has no option '{name}'{nearest(name, known)}")
        if name in _LISTS:
            found.setdefault(name, []).append(value)
        else:
            found[name] = int(value) if value.isdecimal() else {"true": True, "false": False}.get(value, value)
    if not isinstance(found.get("time"), int):
        asked = f", not '{found['time']}'" if "time" in found else ""
        raise UserError(
            f"--launcher slurm needs --slurm time=MINUTES, the longest that a job may take{asked}; a run that takes "
            "longer is requeued and goes on"
        )
    return found
