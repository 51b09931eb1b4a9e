"""Checkpoints of runs, plain files and sharded folders alike: found, replaced in one step, and read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fusionbench.distributed.consolidate import check_parts, consolidate, world_of
from fusionbench.distributed.deepspeed_config import STAGES
from fusionbench.errors import UserError
from fusionbench.sections import TrainerOptions

_OLD, _NEW = ".old", ".new"


def find(path: Path) -> Path | None:
    """Return a checkpoint, or the one before it where a process was killed between the two steps of ``replace``."""
    old = path.with_name(path.name + _OLD)
    return path if path.exists() else old if old.exists() else None


def beside(path: Path) -> Path:
    """Return where a checkpoint is written before it takes its place."""
    return path.with_name(path.name + _NEW)


def replace(path: Path) -> None:
    """Put what was written beside a checkpoint in its place; at any moment ``find`` finds the old or the new one."""
    old = path.with_name(path.name + _OLD)
    if path.exists():
        remove(old)
        os.replace(path, old)
    os.replace(beside(path), path)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read(path: Path, optimizer: bool = False) -> dict[str, Any]:
    """Return a checkpoint as a plain run writes it, whatever it was written by.

    Args:
        path: ``best.ckpt`` or ``last.ckpt``, a file or a sharded folder.
        optimizer: Put a sharded one's optimizer states together as well, twice the size of what is trained.

    Raises:
        UserError: There is none.
    """
    found = find(path)
    if found is None:
        raise UserError(f"there is no checkpoint '{path}'; fit the run again")
    if found.is_dir():
        return consolidate(found, optimizer)
    checkpoint: dict[str, Any] = torch.load(found, map_location="cpu", weights_only=True)
    return checkpoint


def to_resume(path: Path, options: TrainerOptions, processes: int) -> Path | None:
    """Return what ``trainer.fit(ckpt_path=...)`` takes to go on from a checkpoint; every process calls this.

    ZeRO goes on from its own parts. All else goes on from a plain file, which is first made of the parts, here and of
    the run's other checkpoints beside, so that a run may change from several processes to one.

    Args:
        path: ``last.ckpt``.
        options: Of the run as it shall go on.
        processes: With how many it shall.

    Returns:
        The checkpoint; None: there is none yet.

    Raises:
        UserError: ZeRO can't go on from it.
    """
    path = path.with_name(path.name.removesuffix(_OLD))
    found = find(path)
    if found is None:
        return None
    if options.strategy in STAGES:
        check_world(found, processes)
        return found
    if not dist.is_initialized() or dist.get_rank() == 0:
        for name in {each.name.removesuffix(_OLD) for each in path.parent.glob("*.ckpt*") if each.is_dir()}:
            _make_plain(path.with_name(name))
    if dist.is_initialized():
        dist.barrier()
    return find(path)


def check_world(path: Path, processes: int) -> None:
    """Refuse a checkpoint that ZeRO can't go on from.

    Raises:
        UserError: It is of another number of processes, not sharded, or not whole.
    """
    if not path.is_dir():
        raise UserError(
            "the run's last checkpoint was written without ZeRO, which can't go on from it: set trainer.strategy=auto, "
            "or fit the run anew"
        )
    wrote = world_of(path)
    if wrote != processes:
        raise UserError(
            f"the run's last checkpoint was written by {_counted(wrote, 'process', 'processes')}, and ZeRO can't go on "
            f"from it with {processes}: give it {_counted(wrote, 'device', 'devices')} again, or, in "
            "trainer.precision=32-true, any number with trainer.strategy=auto"
        )


def check_resume(path: Path, options: TrainerOptions) -> None:
    """Refuse, before a run is opened again, to go on from a checkpoint that is damaged or that its options can't use.

    Args:
        path: ``last.ckpt``.
        options: Of the run as it shall go on.

    Raises:
        UserError: It can't be read, or ZeRO can't go on from it.
    """
    found = find(path)
    if found is None:
        return
    remedy = f"for which '{path.parent.parent}' must be removed first"
    try:
        if found.is_dir():
            check_parts(found)
        else:
            torch.load(found, map_location="cpu", weights_only=True, mmap=True)
    except UserError as error:
        raise UserError(f"{error}, {remedy}") from None
    except Exception as error:  # torch and pickle have many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"'{found}' could not be read: {reason}; fit the run again, {remedy}") from None
    if options.strategy in STAGES:
        check_world(found, options.processes)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _make_plain(path: Path) -> None:
    """Turn a sharded checkpoint into the file of a plain run."""
    found = find(path)
    if found is None or not found.is_dir():
        return
    whole = consolidate(found, optimizer=True)
    whole["state_dict"] = dict(whole["state_dict"])
    torch.save(whole, beside(path))
    replace(path)
