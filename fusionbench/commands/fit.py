"""``fusionbench fit``."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from rich.console import Console

from fusionbench import config, world
from fusionbench.errors import UserError

if TYPE_CHECKING:
    from fusionbench.config import Config
    from fusionbench.results import Result
    from fusionbench.sections import TrainerOptions
    from fusionbench.world import World


def run(options: argparse.Namespace) -> int:
    """Train, test and track a config, then print the result table and where the run is."""
    checked = config.load(options.config, options.overrides)
    from fusionbench.data.base import make_dataset

    make_dataset(checked.data)  # a folder that is not there is told before anything slow is imported
    started = world.current()
    _refuse(checked, started)
    if checked.trainer.processes > 1 and started.size == 1:
        from fusionbench.launch.processes import on_each

        on_each(checked.trainer.devices, _on_rank, checked, options.resume)
    else:
        _on_rank(checked, options.resume)
    return 0


def _on_rank(checked: Config, resume: bool) -> None:
    """Do one process's part; rank 0 tells the user."""
    from fusionbench import run as runs

    with world.joined(checked.trainer.accelerator) as joined:
        if joined.leads:
            _print(_fit(checked, resume, joined), checked.tracking.folder)
            runs.dismiss(joined)
        else:
            runs.follow(joined)


def _refuse(checked: Config, started: World) -> None:
    """Refuse what can't work on several processes before they are started or, by torchrun, wait for each other."""
    _check_size(checked.trainer, started)
    if checked.trainer.processes > 1:
        from fusionbench.distributed.checks import check

        batch_size = checked.data.get("batch_size", config.data_options()["batch_size"].default)
        check(checked.trainer, batch_size, 0, 0, world_size=started.size)


def _check_size(options: TrainerOptions, started: World) -> None:
    """Refuse another number of processes than the config has devices."""
    if started.size > 1 and (started.size, started.local_size) != (options.processes, options.devices):
        raise UserError(
            f"{started.size} processes were started, {started.local_size} on this node, but trainer.devices is "
            f"{options.devices} and trainer.num_nodes {options.num_nodes}; make them agree"
        )


def _fit(checked: Config, resume: bool, joined: World) -> list[Result]:
    from fusionbench import run as runs
    from fusionbench.report.run_report import summarise

    console = Console(stderr=True, highlight=False)
    return runs.fit(checked, summarise, lambda text: console.print(text, markup=False), resume, joined)


def _print(results: list[Result], folder: str) -> None:
    from fusionbench.commands.results import print_results

    print_results(results, Console(highlight=False))
    command = "fusionbench ui" + ("" if folder == "runs" else f" --folder {shlex.quote(folder)}")
    print(f"run {results[-1].run_id} ({results[-1].name}) in {folder}; look at it with: {command}")
