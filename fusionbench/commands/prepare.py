"""``fusionbench prepare``."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def run(options: argparse.Namespace) -> int:
    """Build a dataset's layout from its raw collection and print what is in it."""
    from fusionbench.data.prepare import openi

    out = Path(options.out)
    table = openi.prepare(Path(options.images), Path(options.reports), Path(options.splits), out)
    console = Console(highlight=False)
    counts = openi.summary(table)
    shown = Table("split", *counts.columns)
    for split, row in counts.iterrows():
        shown.add_row(str(split), *(str(count) for count in row))
    console.print(shown)
    for note in openi.notes(table):
        console.print(f"[cyan]note[/]: {escape(note)}", soft_wrap=True)
    command = f"fusionbench check data.name={options.dataset} data.root={out}"
    console.print(escape(f"'{out}' is ready: {command}"), soft_wrap=True)
    return 0
