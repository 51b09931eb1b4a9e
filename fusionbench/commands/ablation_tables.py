"""The ablation tables in ``experiments/ablations``, for ``list`` and ``show``."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from fusionbench import config
from fusionbench.ablate.table import Table, read
from fusionbench.errors import UserError, nearest

FOLDER = Path("experiments/ablations")


def titles() -> dict[str, str]:
    """Return each table's title.

    Raises:
        UserError: There are no tables here.
    """
    return {name: str(config.read(path).get("title", "")) for name, path in _paths().items()}


def show(name: str, console: Console) -> None:
    """Print a table's opening comment and what it runs; no data are read and nothing is run.

    Raises:
        UserError: There is no such table, or a mistake in it.
    """
    paths = _paths()
    if name not in paths:
        raise UserError(f"unknown ablation table '{name}'{nearest(name, paths)}")
    table = read(paths[name])
    console.print(f"[bold]ablation {table.name}[/bold]  ({FOLDER / paths[name].name})\n")
    console.print(escape(f"{table.title}\n\n{_opening(paths[name])}\n"), soft_wrap=True)
    grid = Grid(box=None, pad_edge=False, show_header=False)
    for key, value in _summary(table).items():
        grid.add_row(f"[bold]{key}[/bold]", escape(value))
    console.print(grid)


def _paths() -> dict[str, Path]:
    found = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    if not found:
        raise UserError(f"there is no ablation table in './{FOLDER}'; run this in the project's folder")
    return found


def _opening(path: Path) -> str:
    """Return the comment that a file opens with."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines())
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def _summary(table: Table) -> dict[str, str]:
    """Return what a table runs, a line each."""
    own = set(config.read(table.path)["rows"])
    added = [row for row in table.rows if row not in own]
    printed = sum(len(v) if isinstance(v, dict) else 1 for row in table.published.values() for v in row.values())
    return {
        "columns": ", ".join(table.columns),
        "rows": ", ".join(row for row in table.rows if row in own),
        "baselines": ", ".join(added) or "none added",
        "seeds": ", ".join(map(str, table.seeds)),
        "runs": f"{len(table.trees) * len(table.seeds)}, stage-1 runs not counted",
        "metrics": ", ".join(dict.fromkeys((table.metric, *table.metrics))) + f"; verdicts in {table.metric}",
        "margin": f"{table.margin:g}",
        "published": f"{printed} numbers for {len(table.published)} rows" if printed else "none",
    }
