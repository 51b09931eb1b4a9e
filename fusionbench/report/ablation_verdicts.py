"""What an ablation table shows: rows against the best, every pair in a word, and whether fusion helped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from fusionbench.metrics import LOWER_IS_BETTER
from fusionbench.report.ablation_comparisons import ColumnVerdicts
from fusionbench.report.ablation_format import fraction, markdown
from fusionbench.report.ablation_table import AblationTable
from fusionbench.report.comparison import Comparison, Pair, Verdict
from fusionbench.report.tables import HOLE

_OPPOSITE: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
_SHORT = {"too few cases": "few"}


def verdict_section(table: AblationTable, verdicts: Mapping[str, ColumnVerdicts]) -> str:
    """Return for each column the rows against its best and the triangle of all pairs."""
    parts = [
        f"By {table.metric}, margin {table.margin:g}; p by Holm's method over all pairs of a column, so that the "
        "best row may be chosen by its test score. *Could show* is the smallest difference found at 80 % power."
    ]
    for column in table.columns:
        found = verdicts[column]
        parts += [f"### {column}"] if len(table.columns) > 1 else []
        if found.comparison is None:
            parts.append(found.reason)
        elif len(found.comparison.scores) < 2:
            parts += ["One row has a result, so there is nothing to compare.", *found.comparison.notes]
        else:
            parts += [_against_best(found.comparison), _triangle(found.comparison), *found.comparison.notes]
    return "\n\n".join(parts)


def fusion_section(table: AblationTable, verdicts: Mapping[str, ColumnVerdicts]) -> str:
    """Return for each column one line a strategy, or the sentence that says why there is none."""
    if not any(table.own_unimodals.values()):
        return "Not answered: this table has no row of one modality alone."
    parts = []
    for column in table.columns:
        found = verdicts[column]
        parts += [f"### {column}"] if len(table.columns) > 1 else []
        answers = "\n".join(f"- {answer.sentence}" for answer in found.help)
        parts += [text for text in (answers, found.unanswered) if text]
    return "\n\n".join(parts)


def best_row(comparison: Comparison) -> str | None:
    """Return the row with the best score, the first of equals; None where no row has one."""
    known = {name: score for name, (score, _, _) in comparison.scores.items() if not math.isnan(score)}
    choose = min if comparison.metric in LOWER_IS_BETTER else max
    return choose(known, key=lambda name: known[name]) if known else None


def oriented(pair: Pair, first: str) -> Pair:
    """Return a pair so that its verdict is about ``first``."""
    if pair.a == first:
        return pair
    word = _OPPOSITE.get(pair.verdict, pair.verdict)
    return replace(pair, a=pair.b, b=pair.a, difference=-pair.difference, low=-pair.high, high=-pair.low, verdict=word)


def _against_best(comparison: Comparison) -> str:
    best = best_row(comparison)
    if best is None:
        return f"{comparison.metric} is undefined for every row."
    pairs = {(pair.a, pair.b): pair for pair in comparison.pairs}
    lines = []
    for name in (name for name in comparison.scores if name != best):
        pair = oriented(pairs.get((name, best)) or pairs[best, name], name)
        lines.append(_line(pair, comparison.scores[name][0]))
    text = f"The best row is {best}, {comparison.metric} {fraction(comparison.scores[best][0])}. Against it:"
    return f"{text}\n\n{markdown(pd.DataFrame(lines))}"


def _line(pair: Pair, score: float) -> dict[str, str]:
    """Return one row against the best; holes where the metric is undefined."""
    known = not math.isnan(pair.difference)
    bounded = not math.isnan(pair.low)
    return {
        "row": pair.a,
        "score": fraction(score),
        "difference": f"{pair.difference:+.3f}" if known else HOLE,
        "95 % interval": f"[{pair.low:+.3f}, {pair.high:+.3f}]" if bounded else HOLE,
        "p (Holm)": _p_value(pair.p_holm),
        "verdict": f"**{pair.verdict}**" if known else HOLE,
        "could show": pair.could_show,
    }


def _triangle(comparison: Comparison) -> str:
    """Return each pair's word, of the row against the column's number."""
    names = list(comparison.scores)
    words = {(pair.a, pair.b): _SHORT.get(pair.verdict, pair.verdict) for pair in comparison.pairs}
    lines = [
        {"": f"{number} {name}"} | {str(k): words.get((name, other), "") for k, other in enumerate(names[1:], 2)}
        for number, name in enumerate(names, 1)
    ]
    return f"Every row against every later one, by number; *few* is too few cases:\n\n{markdown(pd.DataFrame(lines))}"


def _p_value(p: float) -> str:
    if math.isnan(p):
        return HOLE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
