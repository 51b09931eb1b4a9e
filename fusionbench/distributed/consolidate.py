"""A sharded checkpoint, read as the checkpoint that one process alone would have written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionbench.distributed.shards import Layout
from fusionbench.errors import UserError
from fusionbench.layers.sharded import LazyState

TAG = "checkpoint"
_MODEL, _OPTIMIZER, _SHARDED = "*_model_states.pt", "*_optim_states.pt", "zero_pp_rank_"
# What DeepSpeed puts beside Lightning's own into a file.
_NOT_LIGHTNINGS = frozenset(
    (
        *("module", "buffer_names", "optimizer", "param_shapes", "frozen_param_shapes", "frozen_param_fragments"),
        *("shared_params", "lr_scheduler", "data_sampler", "random_ltd", "sparse_tensor_module_names"),
        *("skipped_steps", "global_steps", "global_samples", "dp_world_size", "mp_world_size", "ds_config"),
        *("ds_version", "checkpoint_parallel_dimensions", "universal_checkpoint_info"),
    )
)


class _Unread:
    """Stands for objects of DeepSpeed's in its files, which nobody here looks into."""

    def __init__(self, *arguments: object) -> None:
        """Take whatever the file has."""


# With the call by which Python before 3.11.4 writes a member of an enumeration.
_UNREAD = (
    *("deepspeed.runtime.fp16.loss_scaler.LossScaler", "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    *("deepspeed.runtime.zero.config.ZeroStageEnum", "deepspeed.utils.tensor_fragment.fragment_address"),
    "builtins.getattr",
)


def world_of(folder: Path) -> int:
    """Return how many processes wrote a sharded checkpoint.

    Raises:
        UserError: Files are missing or damaged.
    """
    world: int = _load(folder, _MODEL, first=True)[0]["dp_world_size"]
    names = [path.name for path in (folder / TAG).glob(_MODEL)]
    parts = [len(list((folder / TAG).glob(_OPTIMIZER)))]
    if any(name.startswith(_SHARDED) for name in names):  # stage 3: each process wrote one of these too
        parts.append(len(names))
    if min(parts) != world:
        raise UserError(
            f"'{folder}' holds {min(parts)} of {world} parts: put the missing files back, or fit the run anew"
        )
    return world


def check_parts(folder: Path) -> None:
    """Open every part of a sharded checkpoint.

    Raises:
        UserError: Files are missing or damaged.
    """
    world_of(folder)
    for pattern in (_MODEL, _OPTIMIZER):
        _load(folder, pattern)


def consolidate(folder: Path, optimizer: bool = True) -> dict[str, Any]:
    """Return a plain Lightning checkpoint of what the processes hold together.

    What was trained is in float32, as the optimizer has it. Tensors are put together when they are asked for, out of
    files that stay mapped. The optimizer's states are numbered as those of one process: its parameters, group by group.

    Args:
        folder: A sharded checkpoint of ZeRO stage 2 or 3.
        optimizer: Put the optimizer's states together as well.

    Raises:
        UserError: Files are missing or damaged.
    """
    world_of(folder)
    first, parts = _load(folder, _MODEL, first=True)[0], _load(folder, _OPTIMIZER)
    layout = Layout(first["param_shapes"], [part["optimizer_state_dict"] for part in parts])
    buffers = {name: first["module"][name] for name in first["buffer_names"]}
    plain = {key: value for key, value in first.items() if key not in _NOT_LIGHTNINGS}
    plain["state_dict"] = ShardedState(layout, buffers)
    return plain | ({"optimizer_states": [layout.optimizer_state()]} if optimizer else {})


class ShardedState(LazyState):
    """The state of what was trained and of buffers, each tensor put together when it is asked for.

    Args:
        layout: Where the parameters lie.
        buffers: Whole as they are.
    """

    def __init__(self, layout: Layout, buffers: Mapping[str, Tensor]) -> None:
        self.layout, self.buffers = layout, buffers

    def __getitem__(self, name: str) -> Tensor:
        return self.buffers[name] if name in self.buffers else self.layout.parameter(name)

    def shape(self, name: str) -> torch.Size:
        """Return a tensor's shape; no part is read."""
        return self.buffers[name].shape if name in self.buffers else self.layout.shape(name)

    def __contains__(self, name: object) -> bool:
        return name in self.buffers or name in self.layout.places

    def __iter__(self) -> Iterator[str]:
        yield from self.buffers
        yield from self.layout.names

    def __len__(self) -> int:
        return len(self.buffers) + len(self.layout.names)


def _load(folder: Path, pattern: str, first: bool = False) -> list[dict[str, Any]]:
    """Load the files of all processes by rank, or the first of them; no code in them is run."""
    paths = sorted((folder / TAG).glob(pattern), key=_rank)
    if not paths:
        raise UserError(f"'{folder}' is no sharded checkpoint: it has no '{TAG}/{pattern}'; fit the run again")
    unread: list[Any] = [(_Unread, name) for name in _UNREAD]
    try:
        with torch.serialization.safe_globals(unread):
            return [
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                for path in (paths[:1] if first else paths)
            ]
    except Exception as error:  # torch and pickle have many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"'{folder}' could not be read: {reason}; fit the run again") from None


def _rank(path: Path) -> int:
    """Return the rank in ``zero_pp_rank_3_mp_rank_00_optim_states.pt``, or with ``bf16_`` before it."""
    _, found, after = path.name.partition(_SHARDED)
    return int(after.split("_")[0]) if found else 0
