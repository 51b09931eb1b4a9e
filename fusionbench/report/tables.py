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
_LEAST = 80  # columns for the headline metrics, intervals on a second line
_MORE = {True: 20, False: 10}  # columns that one further score takes, by whether its interval is on the same line


@dataclass(frozen=True)
class ResultRow:
    """One method's line.

    Args:
        name: What the reader calls it, e.g. ``EI (fusion)``.
        scores: Headline metrics by name, fractions; a missing or nan one is shown as a hole.
        intervals: Lower and upper bound by metric; further scores that have one, such as Dice, get a column too.
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

    Further scores, for which columns are wanting, are named below the table.

    Args:
        rows: In the order to show.
        cases: Scored cases.
        groups: Groups (patients) they belong to.
        width: Columns of the terminal.
        level: Coverage of the intervals.
        title: Heading, if any.
    """
    metrics = shown_metrics(rows)
    further = metrics[len(HEADLINE) :]
    wide = width >= _WIDE + _MORE[True] * len(further)
    caption = footnote(cases, groups, level) + _unknown(rows)
    if width < _LEAST + _MORE[False] * len(further):
        metrics, caption = list(HEADLINE), f"{_named_below(rows, further)}\n{caption}"
    table = Table(title=title or None, box=SIMPLE_HEAD, caption=Text(caption), padding=(0, 1) if wide else 0)
    table.title_justify = table.caption_justify = "left"
    table.add_column("method", overflow="fold", min_width=8)
    for metric in metrics:
        name = heading(metric) if metric in HEADLINE else heading(metric).replace(" ", "\n", 1)
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("trainable", justify="right", no_wrap=True)
    for row in rows:
        cells = [_terminal_cell(row, metric, metric in _best(rows, row), wide) for metric in metrics]
        table.add_row(Text(row.name), *cells, compact_count(row.trainable))
    return table


def markdown(rows: Sequence[ResultRow], *, cases: int, groups: int, level: float = 0.95) -> str:
    """Return the table as GitHub markdown, with the run that each row comes from, and the footnote."""
    metrics = shown_metrics(rows)
    head = ["method", *map(heading, metrics), "trainable", "run"]
    lines = [head, ["---", *["---:"] * (len(metrics) + 1), "---"]]
    for row in rows:
        best = _best(rows, row)
        cells = [f"**{cell}**" if metric in best else cell for metric, cell in _cells(row, metrics).items()]
        run = f"`{row.run_id[:8]}`" if row.run_id else HOLE
        lines.append([row.name.replace("|", r"\|"), *cells, compact_count(row.trainable), run])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{footnote(cases, groups, level)}{_unknown(rows)}\n"


def csv(rows: Sequence[ResultRow]) -> str:
    """Return the table as CSV in full precision: ``<metric>``, ``<metric>_low``, ``<metric>_high``; holes are empty."""
    records = []
    for row in rows:
        record: dict[str, object] = {"method": row.name}
        for metric in shown_metrics(rows):
            record[metric] = row.scores.get(metric, math.nan)
            record[f"{metric}_low"], record[f"{metric}_high"] = row.intervals.get(metric, (math.nan, math.nan))
        records.append(record | {"trainable": row.trainable, "run_id": row.run_id})
    frame = pd.DataFrame.from_records(records)
    return frame.astype({"trainable": "Int64"}).to_csv(index=False) if records else ""


def heading(metric: str) -> str:
    """Return a metric's column heading, which says when lower is better."""
    name = metric.replace("_", " ")
    return f"{name} ↓" if metric in LOWER_IS_BETTER else name


def shown_metrics(rows: Sequence[ResultRow]) -> list[str]:
    """Return the columns: the headline metrics, then further scores that any row has with an interval."""
    further = {name for row in rows for name in row.intervals if "/" not in name} - set(HEADLINE)
    return [*HEADLINE, *sorted(further)]


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


def _unknown(rows: Sequence[ResultRow]) -> str:
    """Return why a score has no interval though others of its row have one; empty if there is none such."""
    known = [{metric for metric in HEADLINE if _bounds(row, metric)} for row in rows]
    scored = [{metric for metric in HEADLINE if not math.isnan(_score(row, metric))} for row in rows]
    if not any(own and there - own for own, there in zip(known, scored, strict=True)):
        return ""
    return " A mean over classes without a range: too few resamples have every class of the test cases."


def _bounds(row: ResultRow, metric: str) -> tuple[float, float] | None:
    low, high = row.intervals.get(metric, (math.nan, math.nan))
    return None if math.isnan(low) or math.isnan(high) else (low, high)


def _cells(row: ResultRow, metrics: Sequence[str]) -> dict[str, str]:
    """Return each metric as ``0.93 [0.90, 0.95]``."""
    cells = {}
    for metric in metrics:
        bounds = _bounds(row, metric)
        interval = "" if bounds is None else f" [{bounds[0]:.2f}, {bounds[1]:.2f}]"
        cells[metric] = HOLE if math.isnan(_score(row, metric)) else f"{_score(row, metric):.2f}{interval}"
    return cells


def _named_below(rows: Sequence[ResultRow], metrics: Sequence[str]) -> str:
    """Return a line for each row that has any of these scores."""
    shown = {row.name: {heading(m): c for m, c in _cells(row, metrics).items() if c != HOLE} for row in rows}
    lines = [f"{name}: {', '.join(f'{m} {c}' for m, c in cells.items())}" for name, cells in shown.items() if cells]
    return "\n".join(lines)


def _terminal_cell(row: ResultRow, metric: str, best: bool, wide: bool) -> Text:
    """Return the cell, bold where best; on a narrow terminal the interval is ``.90-.95`` on a line of its own."""
    score, _, interval = _cells(row, [metric])[metric].partition(" ")
    cell = Text(score, style="bold" if best else "")
    if interval and wide:
        cell.append(f" {interval}", style="not bold dim")
    elif interval:
        low, high = (bound.replace("1.00", "1.0").removeprefix("0") for bound in interval.strip("[]").split(", "))
        cell.append(f"\n{low}-{high}", style="not bold dim")
    return cell


def _best(rows: Sequence[ResultRow], row: ResultRow) -> set[str]:
    """Return the metrics in which no other row is better at two decimals; none where there is nothing to compare."""
    best = set()
    for metric in shown_metrics(rows):
        shown = [round(_score(other, metric), 2) for other in rows if not math.isnan(_score(other, metric))]
        top = (min if metric in LOWER_IS_BETTER else max)(shown, default=math.nan)
        if len(shown) > 1 and round(_score(row, metric), 2) == top:
            best.add(metric)
    return best


def _score(row: ResultRow, metric: str) -> float:
    return row.scores.get(metric, math.nan)
