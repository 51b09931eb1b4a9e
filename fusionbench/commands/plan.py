"""``fusionbench plan``: what a training needs and what its test can show, before a GPU hour is spent."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusionbench import config as configs
from fusionbench.errors import check_number

if TYPE_CHECKING:
    from fusionbench.config import Config
    from fusionbench.plan.choice import Choice, Limits
    from fusionbench.plan.need import Need
    from fusionbench.plan.parts import Part
    from fusionbench.plan.training_plan import Steps, TrainingPlan

GB = 2**30  # as GPUs are sold


def run(options: argparse.Namespace) -> int:
    """Print the tables and what to type."""
    config = configs.load(options.config, options.overrides)
    if options.gpus is not None:
        check_number("--gpus", options.gpus, least=1)
    if options.gpu_memory is not None:
        check_number("--gpu-memory", options.gpu_memory, above=0)
    if options.main_memory is not None:
        check_number("--main-memory", options.main_memory, above=0)
    from fusionbench.data.base import make_dataset

    make_dataset(config.data)  # a folder that is not there is told before anything slow is imported
    console = Console(highlight=False)
    devices, limits = _machine(config, options)
    planned = _plan(config, devices, on_gpu=limits is not None or config.trainer.accelerator != "cpu")
    console.print(_parts_table(planned.parts()))
    needs = planned.needs(planned.cases)
    console.print(_needs_table(needs, planned))
    console.print("main memory: GB on each node, for what is offloaded", markup=False)
    console.print(_advice(planned, config, needs, limits), markup=False, soft_wrap=True)
    console.print(_length(planned.steps()), markup=False, soft_wrap=True)
    if config.init.stage1 == "unimodal":
        console.print("The stage-1 runs of each modality come on top (init.stage1=unimodal).", markup=False)
    _power(planned, console)
    if options.out:
        from fusionbench.plan.files import write

        for path in write(Path(options.out), planned.parts(), needs):
            console.print(str(path), markup=False)
    return 0


def _machine(config: Config, options: argparse.Namespace) -> tuple[int, Limits | None]:
    """Return the GPUs planned for, and the memory there is, None without a limit; this machine's by default.

    This machine's main memory is a limit only where its GPUs are planned for: else it is another's.
    """
    import torch

    from fusionbench.plan.choice import Limits

    here = torch.cuda.device_count() if config.trainer.accelerator != "cpu" else 0
    gpu, main = options.gpu_memory, options.main_memory
    if gpu is None and here:
        gpu = torch.cuda.get_device_properties(0).total_memory / GB
        main = main or psutil.virtual_memory().total / GB
    limits = None if gpu is None else Limits(gpu * GB, math.inf if main is None else main * GB)
    return options.gpus or here or config.trainer.devices, limits


def _plan(config: Config, devices: int, *, on_gpu: bool) -> TrainingPlan:
    """Read the data and return the plan."""
    from fusionbench import build
    from fusionbench.encoders import fallback
    from fusionbench.layers.skeleton import skeleton
    from fusionbench.plan.training_plan import TrainingPlan

    data, trainer = {**config.data, "num_workers": 0}, dataclasses.replace(config.trainer, devices=devices)
    with skeleton():  # a model of the hub is looked for by its config alone
        config = fallback.settled(dataclasses.replace(config, data=data, trainer=trainer))
    return TrainingPlan(config, build.data(config), on_gpu=on_gpu)


def _parts_table(parts: Sequence[Part]) -> Table:
    table = Table("parameters", box=SIMPLE_HEAD)
    for name in ("trained", "frozen"):
        table.add_column(name, justify="right")
    for part in parts:
        table.add_row(Text(part.name), _count(part.trained), _count(part.frozen))
    table.add_section()
    table.add_row("all", _count(sum(p.trained for p in parts)), _count(sum(p.frozen for p in parts)))
    return table


def _needs_table(needs: Sequence[Need], planned: TrainingPlan) -> Table:
    trainer = planned.config.trainer
    devices = f"{trainer.processes} GPU{'' if trainer.processes == 1 else 's'}"
    title = f"GB on each of {devices}, with {planned.cases} cases on each and {trainer.precision}"
    table = Table("strategy", box=SIMPLE_HEAD, title=title, pad_edge=False, collapse_padding=True)
    for name in ("weights", "gradients", "optimizer", "activations", "in all", "main memory"):
        table.add_column(name, justify="right")
    for need in needs:
        values = (need.weights, need.gradients, need.optimizer, need.activations, need.total, need.main)
        table.add_row(_way(need), *(_size(value) for value in values))
    return table


def _advice(planned: TrainingPlan, config: Config, needs: Sequence[Need], limits: Limits | None) -> str:
    """Say what fits, and what to type."""
    if limits is None:
        return "Give --gpu-memory to be told what fits."
    choice = planned.choice(limits)
    if choice is None:
        return _nothing(planned.needs(1), config, limits)
    return _typed(choice, config, limits, needs, planned.source.batch_size)


def _nothing(needs: Sequence[Need], config: Config, limits: Limits) -> str:
    """Say which memory is short, and of how much.

    Args:
        needs: With one case on each GPU.
        config: The run's.
        limits: What there is.
    """
    from fusionbench.plan.choice import nearest_to_fit

    nearest = nearest_to_fit(needs, limits)
    held = f"{_way(nearest)} needs {_size(nearest.total)} GB of each GPU"
    if limits.holds(nearest):
        return (
            f"Nothing fits: main memory is short. With one case on each GPU {held}, of {_short(limits.gpu)}, but also "
            f"{_size(nearest.main)} GB of each node's main memory, of {_short(limits.main)}: take nodes with more, or "
            "more or larger GPUs."
        )
    recompute = "" if config.trainer.checkpointing else ", or trainer.checkpointing=true"
    return (
        f"Nothing fits into {_short(limits.gpu)}: GPU memory is short. With one case on each GPU {held}, and a tenth "
        f"is left free: take more or larger GPUs{recompute}."
    )


def _typed(choice: Choice, config: Config, limits: Limits, needs: Sequence[Need], batch_size: int) -> str:
    from fusionbench.plan.choice import overrides

    typed = " ".join(overrides(choice, config.trainer, batch_size)) or "the config as it is"
    main = f" and {_size(choice.need.main)} GB of each node's main memory" if choice.need.main else ""
    need = f"{_size(choice.need.total)} GB of {_short(limits.gpu)}{main}"
    if choice.parts == 1:
        return f"The least communication that fits ({need}): {typed}"
    cheaper = "" if config.trainer.checkpointing else "; trainer.checkpointing=true may spare that"
    least = min(other.total for other in needs if other.main <= limits.main)
    return (
        f"With this batch at least {_size(least)} GB are needed. With {choice.cases} cases on each GPU at a time, and "
        f"as many as before in a step, it fits ({need}): {typed}{cheaper}"
    )


def _length(steps: Steps) -> str:
    """Say how long the training is."""
    epochs = f"{steps.epochs} epoch{'' if steps.epochs == 1 else 's'}"
    return (
        f"{steps.cases:,} cases in {steps.steps:,} steps an epoch; at most {epochs}, "
        f"{steps.epochs * steps.cases:,} cases in {steps.epochs * steps.steps:,} steps."
    )


def _power(planned: TrainingPlan, console: Console) -> None:
    """Print what difference the test split can show, as ``compare --plan`` does."""
    from fusionbench.commands import compare_plan
    from fusionbench.report.power import Assumptions

    table = planned.source.table
    split = compare_plan.counted(planned.source.dataset, table[table["split"] == "test"])
    compare_plan.show(split, Assumptions(), console)


def _way(need: Need) -> str:
    options = need.options
    return options.strategy if options.offload == "none" else f"{options.strategy} {options.offload}"


def _short(size: float) -> str:
    return f"{size / GB:.3g} GB"


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _size(size: float) -> str:
    return f"{size / GB:.2f}" if size else ""
