"""``fusionbench fit``."""

import argparse
import shlex

from rich.console import Console

from fusionbench import config


def run(options: argparse.Namespace) -> int:
    """Train, test and track a config, then print the result table and where the run is."""
    checked = config.load(options.config, options.overrides)
    from fusionbench.data.base import make_dataset

    make_dataset(checked.data)  # a folder that is not there is told before anything slow is imported
    from fusionbench import run as runs
    from fusionbench.commands.results import print_results
    from fusionbench.report.run_report import summarise

    console = Console(stderr=True, highlight=False)
    results = runs.fit(checked, summarise, lambda text: console.print(text, markup=False), options.resume)
    print_results(results, Console(highlight=False))
    folder = checked.tracking.folder
    command = "fusionbench ui" + ("" if folder == "runs" else f" --folder {shlex.quote(folder)}")
    print(f"run {results[-1].run_id} ({results[-1].name}) in {folder}; look at it with: {command}")
    return 0
