r"""An ablation table in LaTeX, with booktabs: ours and the published numbers side by side.

It needs ``\usepackage{booktabs}`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import pandas as pd

from fusionbench.report.ablation_format import figure, interval, parameters, printed, spread
from fusionbench.report.ablation_scores import marked_rows, part, sized_columns
from fusionbench.report.ablation_table import AblationTable
from fusionbench.report.tables import HOLE

FEWER = "†"
_OURS, _PUBLISHED = "ours", "published"


def latex(table: AblationTable, scores: pd.DataFrame) -> str:
    """Return the table: with several columns their scores by the metric of the verdicts, else every metric."""
    several = len(table.columns) > 1
    rows = table.rows if several else table.rows_of(table.columns[0])
    cells = _cells(table, scores, rows)
    cells.index = pd.Index([" ".join(row.split()) for row in rows])
    styled = cells.style.format(escape="latex")
    for axis in (0, 1):
        styled = styled.format_index(escape="latex", axis=axis)
    text = styled.to_latex(
        hrules=True,
        column_format="l" + "r" * len(cells.columns),
        multicol_align="c",
        caption=_caption(table, any(marked_rows(scores, column) for column in table.columns)),
        label=f"tab:{table.name}",
        position_float="centering",
    )
    return text.replace("±", r"$\pm$").replace(FEWER, r"$^\dagger$")


def _cells(table: AblationTable, scores: pd.DataFrame, rows: tuple[str, ...]) -> pd.DataFrame:
    """Return rows by (what, ours or published); a side with nothing in it is left out."""
    several = len(table.columns) > 1
    columns = (*table.averages, *table.columns)
    metrics = (table.metric,) if several else table.shown
    made: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        for metric in metrics:
            own = part(scores, rows, column, metric)
            title = column if several else metric
            few = marked_rows(scores, column)
            lines = zip(rows, own.to_dict("records"), strict=True)
            made[title, _OURS] = [_score(line, several) + (FEWER if row in few else "") for row, line in lines]
            if own["published"].notna().any():
                made[title, _PUBLISHED] = printed(own)
    sized = sized_columns(table, scores)
    for column in sized:
        own = part(scores, rows, column, table.metric)
        title = f"Trainable, {column}" if len(sized) > 1 else "Trainable"
        made[title, _OURS] = [parameters(count) for count in own["trainable"]]
        if own["published_parameters"].notna().any():
            made[title, _PUBLISHED] = [parameters(count) for count in own["published_parameters"]]
    made["GFLOPs", _OURS] = [figure(value) for value in part(scores, rows, columns[0], table.metric)["gflops"]]
    return pd.DataFrame(made).replace(HOLE, "--")


def _score(line: Mapping[Hashable, float], narrow: bool) -> str:
    """Return a score, with its interval where there is room for it."""
    text = spread(line["mean"], line["sd"])
    return text if narrow else f"{text} {interval(line['low'], line['high'])}".rstrip()


def _caption(table: AblationTable, few: bool) -> str:
    """Return the caption, escaped: Styler leaves it as it is."""
    seeds = f"mean ± standard deviation over {len(table.seeds)} seeds" if len(table.seeds) > 1 else "one seed"
    several = len(table.columns) > 1
    title = table.title.rstrip(".")
    ended = title if title.endswith(("?", "!")) else f"{title}."
    text = f"{ended} {table.metric if several else 'Scores'}: {seeds}"
    text += f"; 95 % intervals are in {table.name}.csv." if several else ", [95 % interval]."
    printed = " Published numbers are the paper's own." if table.published else ""
    marked = f" {FEWER} tested on fewer cases than the other rows." if few else ""
    return _escape(text + printed + marked)


def _escape(text: str) -> str:
    r"""Return text for LaTeX; the backslash becomes a word that no other replacement touches first."""
    signs = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    }
    return "".join(signs.get(sign, sign) for sign in text)
