"""Result tables for the terminal, for markdown and as CSV.

A row that failed keeps its place with holes, and a score is never shown without its interval where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fusionbench.metrics import HEADLINE, LOWER_IS_BETTER

HOLE = "-"
_WIDE = 150  # columns from which a score and its interval fit on one line


@dataclass(frozen=True)
class ResultRow:
    """One method's line.

    Args:
        name: What the reader calls it, e.g. ``EI (fusion)``.
        scores: Headline metrics by name, fractions; a missing or nan one is shown as a hole.
        intervals: Lower and upper bound by metric.
        trainable: Trainable parameters, None where unknown.
        run_id: The tracked run that it comes from.
    """

    name: str
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    trainable: int | None = None
    run_id: str = ""


def result_table(
    rows: Sequence[ResultRow], *, cases: int, groups: int, width: int = 80, level: float = 0.95, title: str = ""
) -> Table:
    """Return the table for a terminal of ``width`` columns; intervals go on a second line below 150.

    Args:
        rows: In the order to show.
        cases: Scored cases.
        groups: Groups (patients) they belong to.
        width: Columns of the terminal.
        level: Coverage of the intervals.
        title: Heading, if any.
    """
    padding = (0, 1) if width >= _WIDE else 0
    table = Table(title=title or None, box=SIMPLE_HEAD, caption=footnote(cases, groups, level), padding=padding)
    table.title_justify = table.caption_justify = "left"
    table.add_column("method", overflow="fold", min_width=8)
    for metric in HEADLINE:
        table.add_column(heading(metric), justify="right", no_wrap=True)
    table.add_column("trainable", justify="right", no_wrap=True)
    for row in rows:
        cells = [_terminal_cell(row, metric, metric in _best(rows, row), width) for metric in HEADLINE]
        table.add_row(Text(row.name), *cells, compact_count(row.trainable))
    return table


def markdown(rows: Sequence[ResultRow], *, cases: int, groups: int, level: float = 0.95) -> str:
    """Return the table as GitHub markdown, with the run that each row comes from, and the footnote."""
    head = ["method", *map(heading, HEADLINE), "trainable", "run"]
    lines = [head, ["---", *["---:"] * (len(HEADLINE) + 1), "---"]]
    for row in rows:
        best = _best(rows, row)
        cells = [f"**{cell}**" if metric in best else cell for metric, cell in _cells(row).items()]
        run = f"`{row.run_id[:8]}`" if row.run_id else HOLE
        lines.append([row.name.replace("|", r"\|"), *cells, compact_count(row.trainable), run])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{footnote(cases, groups, level)}\n"


def csv(rows: Sequence[ResultRow]) -> str:
    """Return the table as CSV in full precision: ``<metric>``, ``<metric>_low``, ``<metric>_high``; holes are empty."""
    records = []
    for row in rows:
        record: dict[str, object] = {"method": row.name}
        for metric in HEADLINE:
            record[metric] = row.scores.get(metric, math.nan)
            record[f"{metric}_low"], record[f"{metric}_high"] = row.intervals.get(metric, (math.nan, math.nan))
        records.append(record | {"trainable": row.trainable, "run_id": row.run_id})
    frame = pd.DataFrame.from_records(records)
    return frame.astype({"trainable": "Int64"}).to_csv(index=False) if records else ""


def heading(metric: str) -> str:
    """Return a metric's column heading, which says when lower is better."""
    return f"{metric} ↓" if metric in LOWER_IS_BETTER else metric


def compact_count(parameters: int | None) -> str:
    """Return a number of parameters as it is published: 3,076 as ``3.1K``, 1,477,732 as ``1.48M``."""
    if parameters is None:
        return HOLE
    for least, size, letter, digits in ((999_995_000, 1e9, "B", 2), (999_950, 1e6, "M", 2), (1_000, 1e3, "K", 1)):
        if parameters >= least:
            return f"{parameters / size:.{digits}f}{letter}"
    return str(parameters)


def footnote(cases: int, groups: int, level: float = 0.95) -> str:
    """Return the line under every table: what it rests on, and what it does not show."""
    return (
        f"{cases:,} cases of {groups:,} groups; ranges are {level:.0%} intervals by bootstrap over groups. "
        "Overlapping intervals are no verdict; only a paired test on the same cases is."
    )


def _cells(row: ResultRow) -> dict[str, str]:
    """Return each metric as ``0.93 [0.90, 0.95]``."""
    cells = {}
    for metric in HEADLINE:
        low, high = row.intervals.get(metric, (math.nan, math.nan))
        interval = "" if math.isnan(low) or math.isnan(high) else f" [{low:.2f}, {high:.2f}]"
        cells[metric] = HOLE if math.isnan(_score(row, metric)) else f"{_score(row, metric):.2f}{interval}"
    return cells


def _terminal_cell(row: ResultRow, metric: str, best: bool, width: int) -> Text:
    """Return the cell, bold where best; on a narrow terminal the interval is ``.90-.95`` on a line of its own."""
    score, _, interval = _cells(row)[metric].partition(" ")
    cell = Text(score, style="bold" if best else "")
    if interval and width >= _WIDE:
        cell.append(f" {interval}", style="not bold dim")
    elif interval:
        low, high = (bound.replace("1.00", "1.0").removeprefix("0") for bound in interval.strip("[]").split(", "))
        cell.append(f"\n{low}-{high}", style="not bold dim")
    return cell


def _best(rows: Sequence[ResultRow], row: ResultRow) -> set[str]:
    """Return the metrics in which no other row is better at two decimals; none where there is nothing to compare."""
    best = set()
    for metric in HEADLINE:
        shown = [round(_score(other, metric), 2) for other in rows if not math.isnan(_score(other, metric))]
        top = (min if metric in LOWER_IS_BETTER else max)(shown, default=math.nan)
        if len(shown) > 1 and round(_score(row, metric), 2) == top:
            best.add(metric)
    return best


def _score(row: ResultRow, metric: str) -> float:
    return row.scores.get(metric, math.nan)
