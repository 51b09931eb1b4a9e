"""A comparison in words: table for the terminal, markdown, CSV, and the sentence that it comes to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fusionbench.report.comparison import Comparison, FusionHelp, Pair
from fusionbench.report.crosscheck import CAVEAT, CrossCheck
from fusionbench.report.tables import HOLE, heading

_STYLES = {"better": "bold green", "worse": "bold red", "tied": "cyan", "too few cases": "dim"}
_PAIR_HEAD = ("a", "b", "a - b", "interval", "p (Holm)", "a is", "could show")


def score_table(comparison: Comparison, title: str = "") -> Table:
    """Return each method's score with its interval, for the terminal."""
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("method", overflow="fold")
    table.add_column(heading(comparison.metric), justify="right", no_wrap=True)
    table.add_column("interval", justify="right", no_wrap=True)
    for name, score, interval in _score_rows(comparison):
        table.add_row(Text(name), score, interval)
    return table


def pair_table(comparison: Comparison) -> Table:
    """Return one line a pair, with the word, for the terminal."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=footnote(comparison), caption_justify="left")
    for name in _PAIR_HEAD:
        right = name in ("a - b", "interval", "p (Holm)", "could show")
        table.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for pair in comparison.pairs:
        cells = [Text(cell) for cell in _pair_row(pair)]
        cells[5].stylize(_STYLES[pair.verdict])
        table.add_row(*cells)
    return table


def crosscheck_table(found: Sequence[CrossCheck]) -> Table:
    """Return the textbook tests, for the terminal."""
    table = Table(title="Cross-checks", title_justify="left", box=SIMPLE_HEAD, caption=CAVEAT, caption_justify="left")
    for name in ("a", "b", "of", "a's", "b's", "test", "p"):
        table.add_column(name, justify="right" if name in ("a's", "b's", "p") else "left", overflow="fold")
    for check in found:
        table.add_row(*(Text(cell) for cell in _check_row(check)))
    return table


def conclusion(comparison: Comparison) -> str:
    """Return what the comparison comes to, in one sentence."""
    pairs, metric = comparison.pairs, comparison.metric
    words = [pair.verdict for pair in pairs]
    wins = {name: _beaten(pairs, name) for name in comparison.scores}
    first = [name for name, beaten in wins.items() if beaten and len(beaten) == len(wins) - 1]
    if not pairs:
        return f"There is one method only on {comparison.cases:,} cases, so nothing to compare its {metric} with."
    if first:
        return f"{first[0]} is better in {metric} than {'every other method' if len(wins) > 2 else _beaten_one(wins)}."
    tied, few = words.count("tied"), words.count("too few cases")
    rest = f"{tied} tied within {comparison.margin:g}, {few} with too few cases to tell"
    if tied == len(words):
        return f"In {metric} all are tied within {comparison.margin:g}."
    if tied + few == len(words):
        return f"In {metric} no method is shown to be better than another: of {_pairs(len(words))}, {rest}."
    beaten = {name for others in wins.values() for name in others}
    best = [name for name in wins if name not in beaten]
    return (
        f"In {metric} {len(words) - tied - few} of {_pairs(len(words))} differ ({rest}), "
        f"and no method is better than all others; not beaten by any: {', '.join(best)}."
    )


def footnote(comparison: Comparison) -> str:
    """Return the line under the table: what it rests on."""
    return (
        f"{comparison.cases:,} cases of {comparison.groups:,} groups; {comparison.level:.0%} intervals by a paired "
        "bootstrap over groups and seeds; 'could show' is the smallest difference found at 80 % power."
    )


def to_markdown(
    comparison: Comparison,
    title: str,
    help_lines: Sequence[FusionHelp] = (),
    checks: Sequence[CrossCheck] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return the comparison as a markdown page."""
    scores = pd.DataFrame(_score_rows(comparison), columns=["method", heading(comparison.metric), "interval"])
    pairs = pd.DataFrame([_pair_row(pair) for pair in comparison.pairs], columns=list(_PAIR_HEAD))
    parts = [f"# {title}", conclusion(comparison), _table(scores), _table(pairs), footnote(comparison)]
    parts += [f"* {note}" for note in (*comparison.notes, *notes)]
    if checks:
        columns = ["a", "b", "of", "a's", "b's", "test", "p"]
        parts += ["## Cross-checks", _table(pd.DataFrame([_check_row(c) for c in checks], columns=columns)), CAVEAT]
    if help_lines:
        parts += ["## Did fusion help?", "\n".join(f"* {line.sentence}" for line in help_lines)]
    return "\n\n".join(parts) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Return the pairs in full precision, one a line."""
    columns = [field.name for field in dataclasses.fields(Pair)]
    frame = pd.DataFrame([dataclasses.asdict(pair) for pair in comparison.pairs], columns=columns)
    return frame.assign(metric=comparison.metric, margin=comparison.margin, level=comparison.level).to_csv(index=False)


def _table(frame: pd.DataFrame) -> str:
    escaped = frame.map(lambda cell: str(cell).replace("|", r"\|"))
    return str(escaped.to_markdown(index=False, disable_numparse=True))


def _score_rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    return [(name, _number(score), _interval(low, high)) for name, (score, low, high) in comparison.scores.items()]


def _pair_row(pair: Pair) -> tuple[str, ...]:
    interval = _interval(pair.low, pair.high, sign="+")
    p = HOLE if math.isnan(pair.low) else _p(pair.p_holm)
    return pair.a, pair.b, _number(pair.difference, "+"), interval, p, pair.verdict, pair.could_show


def _check_row(check: CrossCheck) -> tuple[str, ...]:
    return check.a, check.b, check.metric, _number(check.first), _number(check.second), check.test, _p(check.p)


def _number(value: float, sign: str = "") -> str:
    return HOLE if math.isnan(value) else f"{value:{sign}.3f}"


def _interval(low: float, high: float, sign: str = "") -> str:
    return HOLE if math.isnan(low) or math.isnan(high) else f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _pairs(count: int) -> str:
    return f"{count} pair{'' if count == 1 else 's'}"


def _beaten(pairs: Sequence[Pair], name: str) -> set[str]:
    """Return the methods that one is better than."""
    above = {pair.b for pair in pairs if pair.a == name and pair.verdict == "better"}
    return above | {pair.a for pair in pairs if pair.b == name and pair.verdict == "worse"}


def _beaten_one(wins: dict[str, set[str]]) -> str:
    return next(iter(set.union(*wins.values())))
