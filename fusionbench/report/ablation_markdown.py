"""An ablation table's report as markdown: scores beside published ones, holes with their reasons, then the verdicts.

Equal results give an equal file: it holds no clock, date or run id. What a clock measured stands in ``ablation_costs``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from fusionbench.metrics import LOWER_IS_BETTER
from fusionbench.report.ablation_comparisons import ColumnVerdicts
from fusionbench.report.ablation_format import Footnotes, figure, interval, markdown, parameters, printed, spread
from fusionbench.report.ablation_results import Results, size
from fusionbench.report.ablation_scores import part, scores_by_seed, sized_columns
from fusionbench.report.ablation_table import MEAN, AblationTable
from fusionbench.report.ablation_verdicts import fusion_section, verdict_section
from fusionbench.report.tables import HOLE, heading

_SHORT = 12  # signs of a fingerprint that the eye compares; the CSV holds them all


def report(table: AblationTable, results: Results, verdicts: Mapping[str, ColumnVerdicts], scores: pd.DataFrame) -> str:
    """Return the whole report; "Did fusion help?" stands last."""
    notes = Footnotes()
    parts = [f"# {table.title}", _basis(table, results)]
    if len(table.columns) > 1:
        for metric in table.shown:
            parts += [f"## {heading(metric)}", _wide(table, results, scores, metric, notes)]
    for column in table.columns:
        parts += [f"## {column}", _detail(table, results, scores, column, notes)]
    parts += [_reading(table), notes.markdown(), *table.notes]
    parts += ["## Run identities", _identities(scores, len(table.columns) > 1)]
    parts += ["## Verdicts", verdict_section(table, verdicts)]
    parts += ["## Did fusion help?", fusion_section(table, verdicts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _basis(table: AblationTable, results: Results) -> str:
    """Say what each column rests on."""
    seeds = ", ".join(map(str, table.seeds))
    lines = [
        f"Seeds {seeds}." if len(table.seeds) > 1 else f"One seed, {seeds}, so how much seeds differ is not known."
    ]
    for column in table.columns:
        runs = results.in_column(column)
        sizes = dict.fromkeys("{:,} test cases of {:,} groups".format(*size(run.predictions)) for run in runs)
        data = dict.fromkeys(run.tags.get("fusionbench.data_fingerprint", "unknown")[:_SHORT] for run in runs)
        told = f"{'; '.join(sizes)}; data {', '.join(f'`{name}`' for name in data)}" if runs else "no result"
        lines.append(f"- **{column}**: {told}")
    return f"{lines[0]}\n\n" + "\n".join(lines[1:])


def _wide(table: AblationTable, results: Results, scores: pd.DataFrame, metric: str, notes: Footnotes) -> str:
    """Return rows by columns for one metric, as papers print it."""
    lines = {"row": [_name(row, results, table.columns, notes) for row in table.rows]}
    sized = sized_columns(table, scores)
    for column in sized:
        name = f"trainable, {column}" if len(sized) > 1 else "trainable"
        lines |= _parameter_columns(part(scores, table.rows, column, metric), name)
    for column in (*table.averages, *table.columns):
        own = part(scores, table.rows, column, metric)
        shown = [spread(mean, sd) for mean, sd in zip(own["mean"], own["sd"], strict=True)]
        shown = _bold(shown, _whole(table, results, own["mean"], column), metric)
        lines[column] = [
            text + _hole_marks(table, results, row, column, notes) for row, text in zip(table.rows, shown, strict=True)
        ]
        if own["published"].notna().any():
            lines[f"{column}, published"] = printed(own)
    return markdown(pd.DataFrame(lines))


def _detail(table: AblationTable, results: Results, scores: pd.DataFrame, column: str, notes: Footnotes) -> str:
    """Return one column's rows with every metric, its interval, and the costs that do not depend on a machine."""
    rows = table.rows_of(column)
    lines = {"row": [_name(row, results, [column], notes) for row in rows]}
    for metric in table.shown:
        own = part(scores, rows, column, metric)
        shown = [spread(m, sd) for m, sd in zip(own["mean"], own["sd"], strict=True)]
        shown = _bold(shown, _whole(table, results, own["mean"], column), metric)
        bounds = [interval(low, high) for low, high in zip(own["low"], own["high"], strict=True)]
        marks = [_hole_marks(table, results, row, column, notes) for row in rows]
        cells = zip(shown, bounds, marks, strict=True)
        lines[heading(metric)] = [f"{score} {bound}".rstrip() + mark for score, bound, mark in cells]
        if own["published"].notna().any():
            lines[f"{metric}, published"] = printed(own)
    own = part(scores, rows, column, table.metric)
    lines |= _parameter_columns(own)
    lines["total"] = [parameters(count) for count in own["total"]]
    lines["GFLOPs a case"] = [figure(value) for value in own["gflops"]]
    return markdown(pd.DataFrame(lines))


def _parameter_columns(own: pd.DataFrame, name: str = "trainable") -> dict[str, list[str]]:
    columns = {name: [parameters(count) for count in own["trainable"]]}
    if own["published_parameters"].notna().any():
        columns[f"{name}, published"] = [parameters(count) for count in own["published_parameters"]]
    return columns


def _bold(shown: Sequence[str], means: pd.Series[float], metric: str) -> list[str]:
    """Mark the best score, and what equals it to three decimals."""
    rounded = means.round(3)
    best = rounded.min() if metric in LOWER_IS_BETTER else rounded.max()
    several = means.notna().sum() > 1
    return [f"**{text}**" if several and mean == best else text for text, mean in zip(shown, rounded, strict=True)]


def _whole(table: AblationTable, results: Results, means: pd.Series[float], column: str) -> pd.Series[float]:
    """Return the scores of the rows that were tested on all cases, nan for those that no best is chosen from."""
    parts = table.columns_in(column)
    few = [any(results.fewer_cases(str(row), part) for part in parts) for row in means.index]
    return means.mask(pd.Series(few, index=means.index))


def _name(row: str, results: Results, columns: Sequence[str], notes: Footnotes) -> str:
    """Return a row's name with marks for what was let through and what starts from random weights."""
    sentences: dict[str, None] = {}
    for run in (run for column in columns for run in results.of(row, column)):
        allowed, random = run.tags.get("fusionbench.allow", "none"), run.tags.get("fusionbench.random_weights", "none")
        if allowed != "none":
            sentences[f"The integrity gate was told to let through: {allowed}."] = None
        if random != "none":
            sentences[f"Started from random weights: the encoder of {random}."] = None
    for column in columns:
        if told := results.fewer_cases(row, column):
            where = f" in {column}" if len(columns) > 1 else ""
            sentences[f"Tested on {told}{where} only, so never the best here."] = None
    return row + notes.mark(list(sentences))


def _hole_marks(table: AblationTable, results: Results, row: str, column: str, notes: Footnotes) -> str:
    """Return the marks of the reasons why a row and column, or some of its seeds, have no result."""
    if column in table.averages:
        return notes.mark(_lacking(table, results, row, column))
    seeds: dict[tuple[str, str], list[int]] = {}
    for hole in results.holes:
        if (hole.row, hole.column) == (row, column):
            seeds.setdefault((hole.status, hole.reason or "no reason is known"), []).append(hole.seed)
    return notes.mark([_hole_sentence(table, *key, missing) for key, missing in seeds.items()])


def _lacking(table: AblationTable, results: Results, row: str, mean: str) -> list[str]:
    """Return why a mean over columns is a hole, or is over fewer seeds; nothing for columns that a row is not in."""
    columns = table.columns_in(mean)
    holes = {hole.column for hole in results.holes if hole.row == row}
    lacking = [column for column in columns if column in holes]
    if not lacking:
        return []
    seeds = scores_by_seed(table, results, row, mean, table.metric)
    if not seeds:
        absent = [column for column in lacking if not results.of(row, column)]
        return [f"No mean without a result in {' and in '.join(absent)}." if absent else "No seed is in every column."]
    named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return [f"The mean of {named}, as {' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no more."]


def _hole_sentence(table: AblationTable, status: str, reason: str, seeds: Sequence[int]) -> str:
    """Return why there is no result; it names seeds only where others have one or another reason."""
    named = f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} {status}"
    return f"{status.capitalize() if len(seeds) == len(table.seeds) else named}: {reason.rstrip('.')}."


def _reading(table: AblationTable) -> str:
    """Say how the tables are to be read."""
    sentences = [
        "Ranges are 95 % intervals by a bootstrap over groups and seeds; what follows ± is the standard deviation "
        "between seeds. Overlapping intervals are no verdict; only the paired comparison below is.",
        f"`{HOLE}` is a hole.",
    ]
    if table.means and table.averages:
        made = "; ".join(f"{name} of {', '.join(parts)}" for name, parts in table.means.items())
        sentences.append(f"Means are taken seed by seed, for rows that have a result in each part: {made}.")
        sentences.append("Parameters there are the mean of the parts that have them.")
    elif table.averages:
        sentences.append(
            f"{MEAN} is over the {len(table.columns)} columns, for rows that have a result in each; parameters "
            "there are the mean of the columns that have one."
        )
    if table.own_scores:
        named = " and ".join(heading(score) for score in table.own_scores)
        sentences.append(
            f"Rows whose strategy has no {named} show `{HOLE}`; of the others it is the mean over the test cases that "
            "have one, with an interval, and no verdict is by it."
        )
    if table.published:
        sentences.append("Published numbers are the paper's own, on its runs, and enter no comparison.")
    return " ".join(sentences)


def _identities(scores: pd.DataFrame, several: bool) -> str:
    """Return the fingerprints that say which runs these are."""
    lines = scores[scores["fingerprints"] != ""].drop_duplicates(["row", "column"])
    prints = [", ".join(f"`{name[:_SHORT]}`" for name in text.split()) for text in lines["fingerprints"]]
    frame = pd.DataFrame({"row": lines["row"], "column": lines["column"], "fingerprints, by seed": prints})
    return markdown(frame if several else frame.drop(columns="column"), names=3 if several else 2)
