"""``fusionbench plan``: what a training needs and what its test can show, before a GPU hour is spent."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusionbench import config as configs
from fusionbench.errors import check_number

if TYPE_CHECKING:
    from fusionbench.config import Config
    from fusionbench.plan.choice import Choice
    from fusionbench.plan.memory import Need
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
    from fusionbench.data.base import make_dataset

    make_dataset(config.data)  # a folder that is not there is told before anything slow is imported
    console = Console(highlight=False)
    devices, memory = _machine(config, options.gpus, options.gpu_memory)
    planned = _plan(config, devices, on_gpu=memory is not None or config.trainer.accelerator != "cpu")
    console.print(_parts_table(planned.parts()))
    needs = planned.needs(planned.cases)
    console.print(_needs_table(needs, planned))
    console.print("offloaded: GB of main memory on each node", markup=False)
    console.print(_advice(planned, config, needs, memory), markup=False, soft_wrap=True)
    console.print(_length(planned.steps()), markup=False, soft_wrap=True)
    if config.init.stage1 == "unimodal":
        console.print("The stage-1 runs of each modality come on top (init.stage1=unimodal).", markup=False)
    _power(planned, console)
    if options.out:
        from fusionbench.plan.files import write

        for path in write(Path(options.out), planned.parts(), needs):
            console.print(str(path), markup=False)
    return 0


def _machine(config: Config, gpus: int | None, memory: float | None) -> tuple[int, float | None]:
    """Return the GPUs planned for, and bytes of each, None without a limit; this machine's where nothing is said."""
    import torch

    here = torch.cuda.device_count() if config.trainer.accelerator != "cpu" else 0
    if memory is None and here:
        memory = torch.cuda.get_device_properties(0).total_memory / GB
    return gpus or here or config.trainer.devices, None if memory is None else memory * GB


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
    for name in ("weights", "gradients", "optimizer", "activations", "in all", "offloaded"):
        table.add_column(name, justify="right")
    for need in needs:
        options = need.options
        way = options.strategy if options.offload == "none" else f"{options.strategy} {options.offload}"
        values = (need.weights, need.gradients, need.optimizer, need.activations, need.total, need.main)
        table.add_row(way, *(_size(value) for value in values))
    return table


def _advice(planned: TrainingPlan, config: Config, needs: Sequence[Need], memory: float | None) -> str:
    """Say what fits, and what to type."""
    if memory is None:
        return "Give --gpu-memory to be told what fits."
    import psutil

    given = f"{memory / GB:.3g} GB"
    choice = planned.choice(memory, psutil.virtual_memory().total)
    if choice is None:
        recompute = "" if config.trainer.checkpointing else ", or trainer.checkpointing=true"
        return f"Nothing fits into {given}, with one case on each GPU either: take more or larger GPUs{recompute}."
    return _typed(choice, config, given, needs, planned.source.batch_size)


def _typed(choice: Choice, config: Config, given: str, needs: Sequence[Need], batch_size: int) -> str:
    from fusionbench.plan.choice import overrides

    typed = " ".join(overrides(choice, config.trainer, batch_size)) or "the config as it is"
    need = f"{_size(choice.need.total)} GB of {given}"
    if choice.parts == 1:
        return f"The least communication that fits ({need}): {typed}"
    cheaper = "" if config.trainer.checkpointing else "; trainer.checkpointing=true may spare that"
    least = min(other.total for other in needs)
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


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _size(size: float) -> str:
    return f"{size / GB:.2f}" if size else ""
