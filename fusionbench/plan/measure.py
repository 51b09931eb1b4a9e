"""The memory that a few real steps of training took, to hold an estimate against.

On a GPU it is torch's own count of what was allocated. On a CPU it is the most that was resident, less what was before
the network was built, so it is taken in a fresh process: ``python -m fusionbench.plan.measure --config X``. There the
allocator counts too: by default freed blocks below a threshold stay with the process. ``ALLOCATOR`` has glibc return
what is free and use one arena; set it for the process, since otherwise more is measured than is in use.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fusionbench import build, training
from fusionbench import config as configs
from fusionbench.config import Config
from fusionbench.data.module import FusionData
from fusionbench.distributed.strategy import strategy
from fusionbench.distributed.zero import Zero

ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(config: Config, steps: int = 2) -> int:
    """Train some steps and return the peak of this process's device in bytes.

    Args:
        config: The run's config; of several devices, each of whose processes has joined the group and calls this.
        steps: Optimizer steps; the second is the first with all optimizer states.
    """
    source = build.data(config)
    trainer = _trainer(config, steps)
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if not on_gpu:
        _warm_up(config, source)
    before = _start(on_gpu)
    trainer.fit(build.task(config, source), train_dataloaders=source.train_dataloader())
    return _peak(on_gpu) - before


def _trainer(config: Config, steps: int) -> L.Trainer:
    options = config.trainer
    training.quiet()
    return L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=strategy(options),
        precision=options.precision,
        max_steps=steps,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.gradient_clip,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class _Toy(L.LightningModule):
    """Learns nothing, the way a task does."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 6 * 6, 2))

    def training_step(self, images: Tensor) -> Tensor:
        """Return a number."""
        total: Tensor = self.network(images).float().sum()
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters())


def _warm_up(config: Config, source: FusionData) -> None:
    """Have libraries loaded that are loaded when first used, DeepSpeed's too: they are no memory of the training."""
    next(iter(source.train_dataloader()))
    trainer, batches = _trainer(config, 1), [torch.zeros(2, 3, 8, 8)] * config.trainer.accumulate
    trainer.fit(_Toy(), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list is a dataset too
    if isinstance(trainer.strategy, Zero):
        trainer.strategy.release()


def _start(on_gpu: bool) -> int:
    """Forget the peak so far and return what is in use."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident
    return _resident("VmRSS")


def _peak(on_gpu: bool) -> int:
    return int(torch.cuda.max_memory_allocated()) if on_gpu else _resident("VmHWM")


def _resident(line: str) -> int:
    """Return a line of the process's status in bytes."""
    found = re.search(rf"^{line}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found.group(1))


def main() -> None:
    """Measure a config and print what was found as json."""
    parser = argparse.ArgumentParser(description="Train two steps of a config and print the peak of memory in bytes.")
    parser.add_argument("--config", required=True)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    print(json.dumps({"peak": measure(configs.load(Path(options.config), options.overrides))}))


if __name__ == "__main__":
    main()
