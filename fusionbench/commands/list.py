"""``fusionbench list``."""

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fusionbench import registry
from fusionbench.commands import ablation_tables


def run(options: argparse.Namespace) -> int:
    """Print a kind's components with their first lines, or the ablation tables with their titles."""
    kind = options.kind.removesuffix("s")
    if kind == "ablation":
        lines = ablation_tables.titles()
    else:
        lines = {name: registry.describe(kind, name).summary for name in registry.names(kind)}
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, line in lines.items():
        table.add_row(f"[bold]{name}[/bold]", escape(line))
    Console(highlight=False).print(table)
    return 0
