"""Several columns, LaTeX and the small parts of an ablation table's report, without a store."""

import dataclasses
import math
import re

import pandas as pd
import pytest

from fusionbench.report.ablation_comparisons import ColumnVerdicts
from fusionbench.report.ablation_figure import draw
from fusionbench.report.ablation_format import Footnotes, figure, interval, markdown, spread
from fusionbench.report.ablation_latex import latex
from fusionbench.report.ablation_markdown import report
from fusionbench.report.ablation_results import Results, Run
from fusionbench.report.ablation_scores import long_form
from fusionbench.report.ablation_table import MEAN, AblationTable, Cell
from fusionbench.report.ablation_verdicts import best_row, oriented
from fusionbench.report.comparison import Comparison, FusionHelp, Pair
from fusionbench.report.comparison_text import to_markdown

NOTHING = pd.DataFrame({"case": ["a", "b"], "group": ["p", "q"]})
TABLE = AblationTable(
    name="two_columns",
    title="50 % of $x_1$ & {y}",
    rows=("EI #1", "DynMM_soft"),
    columns=("MMC|CLIP", "Derm7pt"),
    seeds=(0, 1, 2),
    metric="mAP",
    metrics=("mAP", "ECE"),
    margin=0.02,
    cells=(),
    published={
        "EI #1": {"MMC|CLIP": {"mAP": 0.889, "parameters": 7.1e6}, "mean": {"mAP": 0.824}, "parameters": 8.87e6}
    },
    means={},
    own_unimodals={},
    own_concat={},
    notes=(),
)


def run(row, column, seed, score, trainable):
    metrics = {"test/mAP": score, "test/ECE": 1 - score, "parameters/trainable": trainable}
    cell = Cell(row, column, seed, "finished", "", "", f"{row[0]}{seed}")
    return Run(cell, "", metrics, {}, NOTHING, math.nan, math.nan)


def results(scores, holes=()):
    """Return results from ``{(row, column): {seed: score}}``."""
    size = {"MMC|CLIP": 7e6, "Derm7pt": 9e6}
    return Results({k: [run(*k, seed, s, size[k[1]]) for seed, s in own.items()] for k, own in scores.items()}, holes)


FULL = {
    ("EI #1", "MMC|CLIP"): {0: 0.8, 1: 0.9, 2: 0.7},
    ("EI #1", "Derm7pt"): {0: 0.6, 1: 0.5, 2: 0.7},
    ("DynMM_soft", "MMC|CLIP"): {0: 0.7, 1: 0.7, 2: 0.7},
}
HOLES = tuple(Cell("DynMM_soft", "Derm7pt", seed, "skipped", "no data", "", "") for seed in (0, 1, 2))
SILENT = dict.fromkeys(TABLE.columns, ColumnVerdicts({}, None, (), "No verdict.", "No answer."))


@pytest.fixture(scope="module")
def scores():
    cells = tuple(r.cell for runs in results(FULL).runs.values() for r in runs)
    table = dataclasses.replace(TABLE, cells=cells + HOLES)
    found = results(FULL, HOLES)
    return table, found, long_form(table, found, SILENT)


def line(frame, row, column, metric="mAP"):
    return frame[(frame["row"] == row) & (frame["column"] == column) & (frame["metric"] == metric)].iloc[0]


def test_mean_over_columns_goes_seed_by_seed(scores):
    own = line(scores[2], "EI #1", MEAN)
    assert own["mean"] == pytest.approx(0.7)
    assert own["sd"] == pytest.approx(0, abs=1e-12)  # every seed's mean over columns is 0.7
    assert (own["trainable"], own["published"], own["published_parameters"]) == (8e6, 0.824, 8.87e6)
    assert line(scores[2], "EI #1", "MMC|CLIP")["published_parameters"] == 7.1e6
    assert line(scores[2], "EI #1", "MMC|CLIP")["sd"] == pytest.approx(0.1)


def test_a_published_range_shows_both_ends(scores):
    printed = {"DynMM_soft": {"MMC|CLIP": {"mAP": (0.37, 0.78)}}}
    table, found = dataclasses.replace(scores[0], published=printed), scores[1]
    frame = long_form(table, found, SILENT)
    own = line(frame, "DynMM_soft", "MMC|CLIP")
    assert (own["published"], own["published_high"]) == (0.37, 0.78)
    assert " 0.370 to 0.780 |" in report(table, found, SILENT, frame)
    assert "0.370 to 0.780" in latex(table, frame)
    assert draw(table, found, frame).startswith(b"\x89PNG")


def test_row_without_a_column_has_no_mean(scores):
    own = line(scores[2], "DynMM_soft", MEAN)
    assert math.isnan(own["mean"])
    assert own["trainable"] == 7e6


def test_wide_table_stands_before_the_details(scores):
    text = report(*scores[:2], SILENT, scores[2])
    assert re.findall(r"^##+ (.*)", text, re.M) == [
        *("mAP", "ECE ↓", "MMC|CLIP", "Derm7pt", "Run identities"),
        *("Verdicts", "MMC|CLIP", "Derm7pt", "Did fusion help?"),
    ]
    head, _, ours, other = text.split("## mAP\n\n")[1].splitlines()[:4]
    assert [cell.strip() for cell in re.split(r"(?<!\\)\|", head)[1:-1]] == [
        *("row", "trainable", "trainable, published", "MEAN", "MEAN, published"),
        *("MMC\\|CLIP", "MMC\\|CLIP, published", "Derm7pt"),
    ]
    assert "| 0.700 ± 0.000 |" in ours
    assert "**0.800 ± 0.100**" in ours
    assert "-[^1]" in other
    assert "**" not in other
    assert "[^1]: No mean without a result in Derm7pt." in text
    assert "[^2]: Skipped: no data." in text


def test_latex_is_escaped_and_balanced(scores):
    text = latex(scores[0], scores[2])
    asked = dataclasses.replace(scores[0], title="Does it help?")
    assert "Does it help? mAP" in latex(asked, scores[2])
    assert r"\caption{50 \% of \$x\_1\$ \& \{y\}. mAP: mean $\pm$ standard deviation over 3 seeds" in text
    assert r"DynMM\_soft & -- &" in text
    assert r"EI \#1 & 0.700 $\pm$ 0.000 & 0.824 & 0.800 $\pm$ 0.100 & 0.889" in text
    assert r"\multicolumn{2}{c}{MMC|CLIP}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert {len(re.findall(r"(?<!\\)&", row)) for row in body} == {text.split("{tabular}{l")[1].index("}")}
    assert not re.search(r"(?<!\\)[#_%]", text.split(r"\label")[0] + text.split(r"\begin{tabular}")[1])


def test_figure_is_png_even_where_a_column_is_empty(scores):
    found = results({k: v for k, v in FULL.items() if k[1] != "Derm7pt"})
    empty = long_form(scores[0], found, SILENT)
    assert draw(scores[0], found, empty).startswith(b"\x89PNG")
    assert draw(*scores) == draw(*scores)


def test_row_of_another_column_is_no_hole():
    cells = (Cell("EI #1", "MMC|CLIP", 0, "missing", "", "", ""),)
    table = dataclasses.replace(TABLE, cells=cells)
    assert table.rows_of("MMC|CLIP") == ("EI #1",)
    assert table.rows_of("Derm7pt") == ()
    assert table.rows_of(MEAN) == TABLE.rows


PAIR = Pair("x", "y", 0.1, 0.05, 0.2, 0.01, 0.02, "better", 0.07)


def test_turning_a_pair_round():
    turned = oriented(PAIR, "y")
    assert (turned.a, turned.b, turned.verdict) == ("y", "x", "worse")
    assert (turned.difference, turned.low, turned.high) == (-0.1, -0.2, -0.05)
    assert oriented(turned, "x") == PAIR
    assert oriented(PAIR, "x") is PAIR
    assert oriented(dataclasses.replace(PAIR, verdict="tied"), "y").verdict == "tied"


@pytest.mark.parametrize(("detectable", "shown"), [(1.077, "> 1"), (1.0, "1.000"), (0.0714, "0.071"), (math.nan, "-")])
def test_no_difference_above_one_is_promised(detectable, shown):
    pair = dataclasses.replace(PAIR, verdict="too few cases", detectable=detectable)
    assert pair.could_show == shown
    assert FusionHelp("x", "mAP", pair, None).sentence.endswith(f"could show {shown}).")
    comparison = Comparison("mAP", 0.02, 0.95, 9, 9, {}, (pair,), ())
    assert f"| {shown} " in to_markdown(comparison, "Two")


@pytest.mark.parametrize(("metric", "best"), [("mAP", "y"), ("ECE", "x")])
def test_best_row_knows_which_way_is_up(metric, best):
    known = {"x": (0.2, 0.1, 0.3), "y": (0.9, 0.8, 1.0), "z": (math.nan,) * 3}
    assert best_row(Comparison(metric, 0.02, 0.95, 9, 9, known, (), ())) == best
    assert best_row(Comparison(metric, 0.02, 0.95, 9, 9, {"z": known["z"]}, (), ())) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [(36.25, "36.2"), (0.0012345, "0.00123"), (12345.6, "12,300"), (0, "0"), (math.nan, "-"), (999.9, "1,000")],
)
def test_three_significant_digits(value, shown):
    assert figure(value) == shown


def test_score_formats():
    assert spread(0.8235, math.nan) == "0.824"
    assert spread(math.nan, 0.1) == "-"
    assert interval(0.1, math.nan) == ""


def test_footnotes_are_numbered_once():
    notes = Footnotes()
    assert [notes.mark(["a"]), notes.mark(["b", "a"]), notes.mark([])] == ["[^1]", "[^2][^1]", ""]
    assert notes.markdown() == "[^1]: a\n[^2]: b"


def test_markdown_escapes_bars_and_keeps_numbers_as_written():
    text = markdown(pd.DataFrame({"a|b": ["c\nd|e"], "n": ["0.10"]}))
    assert r"| a\|b" in text
    assert r"| c d\|e | 0.10 |" in text
