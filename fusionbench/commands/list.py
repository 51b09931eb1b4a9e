"""``fusionbench list``."""

import argparse

from rich.console import Console
from rich.table import Table

from fusionbench import registry


def run(options: argparse.Namespace) -> int:
    """Print a kind's components with their first lines."""
    kind = options.kind.removesuffix("s")
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in registry.names(kind):
        table.add_row(f"[bold]{name}[/bold]", registry.describe(kind, name).summary)
    Console(highlight=False).print(table)
    return 0
