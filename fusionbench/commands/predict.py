"""``fusionbench predict``."""

import argparse
from pathlib import Path

from fusionbench.commands.model import load
from fusionbench.errors import UserError
from fusionbench.inference import write_table


def run(options: argparse.Namespace) -> int:
    """Write each case's probabilities; ids stay as they are, since the table is the user's own."""
    out = Path(options.out)
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out '{out}' must end in .csv or .parquet")
    table = load(options).predict(options.split)
    write_table(table, out)
    print(f"{len(table)} cases in {out}")
    return 0
