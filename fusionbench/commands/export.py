"""``fusionbench export``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from fusionbench import models
from fusionbench.commands.model import find, load
from fusionbench.distributed import checkpoints
from fusionbench.errors import UserError
from fusionbench.files import replacing
from fusionbench.layers import sharded
from fusionbench.tracking import TrackedRun

_NETWORK = "strategy."  # what the task calls the network in a checkpoint


def run(options: argparse.Namespace) -> int:
    """Write a model's tensors into one file, whatever number of processes trained it, and compare it with them.

    Raises:
        UserError: The file's ending is another, or there is no such model or checkpoint.
    """
    out = Path(options.out)
    if out.suffix != ".safetensors":
        raise UserError(f"--out '{out}' must end in .safetensors")
    if options.with_base and options.checkpoint is not None:
        raise UserError("--with-base writes the model of a run that has ended; leave --checkpoint out")
    state = sharded.state_dict(load(options).task.strategy) if options.with_base else _trained(options)
    write(out, state)
    print(f"{len(state)} tensors with {sum(t.numel() for t in state.values()):,} values in {out}")
    return 0


def _trained(options: argparse.Namespace) -> dict[str, Tensor]:
    """Return what was trained: of a model, or of a checkpoint of a run that has not ended."""
    found = find(options)
    if not isinstance(found, TrackedRun):
        return models.read_tensors(found / "model.safetensors")
    path = found.folder / "checkpoints" / f"{options.checkpoint or 'best'}.ckpt"
    if checkpoints.find(path) is not None:
        state: Mapping[str, Tensor] = checkpoints.read(path)["state_dict"]
        return {name.removeprefix(_NETWORK): state[name] for name in state if name.startswith(_NETWORK)}
    if options.checkpoint == "last":
        raise UserError(f"run {found.run_id} has no last checkpoint: it has ended or not begun; take the best")
    return models.read_tensors(found.artifact("model") / "model.safetensors")


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors beside a file, compare what was written, and put it in place.

    Args:
        path: The file.
        state: Tensors by name; what two names share is written for each.

    Raises:
        UserError: The file reads back otherwise than it was written.
    """
    with replacing(path) as part:
        safetensors.torch.save_file(_apart(state), part)
        with safetensors.safe_open(part, framework="pt") as file:
            wrong = [name for name, value in state.items() if not torch.equal(file.get_tensor(name), value)]
        if wrong:
            raise UserError(f"'{path}' reads back otherwise than it was written ('{wrong[0]}'); is the disk in order?")


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors that share memory, such as tied weights, some of their own, which the format asks for."""
    seen: set[int] = set()
    out = {}
    for name, value in state.items():
        out[name] = value.contiguous().clone() if value.data_ptr() in seen else value.contiguous()
        seen.add(value.data_ptr())
    return out
