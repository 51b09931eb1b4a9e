"""The end of a training: its network is let go, since a process may train many, one by one."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import lightning as L

if TYPE_CHECKING:
    from fusionbench.distributed.zero import Zero


@contextmanager
def released(trainer: L.Trainer, source: L.LightningDataModule) -> Iterator[None]:
    """Let what a Trainer holds go in the end, also after an error.

    After an error one of several processes just ends: its GPU would wait for the others, which may be gone.

    Args:
        trainer: Of the training.
        source: Its data, which may serve further runs and would keep the Trainer.
    """
    from fusionbench.distributed.zero import Zero

    zero: Zero | None = trainer.strategy if isinstance(trainer.strategy, Zero) else None
    failed = True
    try:
        yield
        failed = False
    finally:
        source.trainer = None
        if zero is not None:
            zero.remove_own_folder()
            if not failed:
                zero.release()
            elif trainer.world_size == 1:
                with suppress(Exception):  # the error itself is told
                    zero.release()


def let_go(engines: Iterable[Any]) -> None:
    """Have DeepSpeed's engines and optimizers let their hooks and buffers go.

    A training's engine is replaced by one for predictions before it is over, and only its optimizer knows the hooks at
    the gradients. DeepSpeed's list of modules whose forward is under way keeps the first network of a process.

    Args:
        engines: Engines and optimizers; others than DeepSpeed's are left alone.
    """
    for engine in engines:
        if hasattr(engine, "destroy"):
            engine.destroy()
    from deepspeed.runtime.zero import parameter_offload

    parameter_offload.FWD_MODULE_STACK.clear()
    gc.collect()  # engine, hooks and parameters hold each other
