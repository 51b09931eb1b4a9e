"""``fusionbench predict``."""

import argparse
from pathlib import Path

import pandas as pd

from fusionbench.commands.model import load
from fusionbench.errors import UserError
from fusionbench.inference import write_table


def run(options: argparse.Namespace) -> int:
    """Write each case's probabilities, empty for a case with no modality; ids stay as they are, for the user's own use.

    An answer in words is told by the names of the classes that it names, `` | `` between several, and as written.

    Raises:
        UserError: The file's ending is none of those that can be written.
    """
    out = Path(options.out)
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out '{out}' must end in .csv or .parquet")
    model = load(options)
    table, left = in_words(model.predict(options.split)), model.unpredicted(options.split)
    if len(left):
        table = pd.concat([table, left], ignore_index=True)
    write_table(table, out)
    print(f"{len(table)} cases in {out}")
    return 0


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose answers are classes' names, not indices."""
    if "answer" not in table.columns:
        return table
    return table.drop(columns="answer_named").assign(answer=table["answer_named"])
