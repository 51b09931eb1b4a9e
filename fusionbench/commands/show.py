"""``fusionbench show``."""

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fusionbench import config, registry
from fusionbench.commands import ablation_tables, shared_options


def run(options: argparse.Namespace) -> int:
    """Print a component's docstring and its options with types and defaults, from its source, or what a table runs."""
    kind = options.kind.removesuffix("s")
    console = Console(highlight=False)
    if kind == "ablation":
        ablation_tables.show(options.name, console)
        return 0
    component = registry.describe(kind, options.name)
    console.print(f"[bold]{kind} {component.name}[/bold]  ({component.module}.{component.symbol})\n")
    console.print(escape(component.doc) + "\n")
    if around := shared_options.described(kind, component.options):
        console.print(f"Every {kind} node has these options, too:\n\n" + escape(around) + "\n")
    table = Table("option", "type", "default", box=None, pad_edge=False, header_style="bold")
    for option in config.options_of(kind, component.name).values():
        default = "required" if option.required else repr(option.default)
        table.add_row(option.name, escape(option.annotation), escape(default))
    console.print(table if table.row_count else "It has no options.")
    return 0
