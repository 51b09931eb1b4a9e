"""Named means over columns, nested and with parts missing, and strategies that have unimodals of their own."""

import dataclasses
import math
import re

import numpy as np
import pytest
from ablation_runs import TABLE as ONE_COLUMN
from ablation_runs import predictions

from fusionbench.report.ablation_comparisons import ColumnVerdicts, judge_column
from fusionbench.report.ablation_figure import draw
from fusionbench.report.ablation_latex import latex
from fusionbench.report.ablation_markdown import report
from fusionbench.report.ablation_results import Results, Run
from fusionbench.report.ablation_scores import long_form, scores_by_seed, sized_columns
from fusionbench.report.ablation_table import MEAN, AblationTable, Cell
from fusionbench.report.ablation_verdicts import fusion_section

MEANS = {"EYE": ("cfp", "oct"), "ALL": ("EYE", "skin")}
SCORES = {"cfp": (0.9, 0.7, 0.8), "oct": (0.5, 0.5, 0.2), "skin": (0.1, 0.4, 0.6)}
TABLE = AblationTable(
    name="means",
    title="Means",
    rows=("MoR", "LoRA", "other"),
    columns=tuple(SCORES),
    seeds=(0, 1, 2),
    metric="mAP",
    metrics=("mAP",),
    margin=0.02,
    cells=(),
    published={"MoR": {"EYE": {"mAP": 0.61, "parameters": 1.5e6}, "ALL": {"mAP": 0.42}, "skin": {"mAP": 0.33}}},
    means=MEANS,
    own_unimodals={},
    own_concat={},
    notes=(),
)
SILENT = dict.fromkeys(TABLE.columns, ColumnVerdicts({}, None, (), "No verdict.", "No answer."))


def run(row, column, seed, score, size=1.0):
    cell = Cell(row, column, seed, "finished", "", "", f"{row}{seed}")
    metrics = {"test/mAP": score, "parameters/trainable": size}
    return Run(cell, "", metrics, {}, predictions(0, 0, cases=2), math.nan, math.nan)


@pytest.fixture(scope="module")
def shown():
    """MoR everywhere, LoRA without oct at seed 1 and without skin, the other planned for cfp alone."""
    runs = {("MoR", c): [run("MoR", c, s, v, 4e6) for s, v in enumerate(own)] for c, own in SCORES.items()}
    runs["MoR", "skin"] = [run("MoR", "skin", s, v, 1e6) for s, v in enumerate(SCORES["skin"])]
    runs["LoRA", "cfp"] = [run("LoRA", "cfp", s, 0.5) for s in TABLE.seeds]
    runs["LoRA", "oct"] = [run("LoRA", "oct", s, 0.3) for s in (0, 2)]
    runs["other", "cfp"] = [run("other", "cfp", s, 0.5) for s in TABLE.seeds]
    holes = [Cell("LoRA", "oct", 1, "failed", "out of memory", "", "")]
    holes += [Cell("LoRA", "skin", seed, "skipped", "no data", "", "") for seed in TABLE.seeds]
    cells = (*(r.cell for own in runs.values() for r in own), *holes)
    table, results = dataclasses.replace(TABLE, cells=cells), Results(runs, holes)
    return table, results, long_form(table, results, SILENT)


def line(frame, row, column):
    return frame[(frame["row"] == row) & (frame["column"] == column)].iloc[0]


def test_nested_means_are_means_of_means_seed_by_seed(shown):
    eye = [(a + b) / 2 for a, b in zip(SCORES["cfp"], SCORES["oct"], strict=True)]
    every = [(a + b) / 2 for a, b in zip(eye, SCORES["skin"], strict=True)]
    for name, expected in (("EYE", eye), ("ALL", every)):
        own = line(shown[2], "MoR", name)
        assert own["mean"] == pytest.approx(np.mean(expected))
        assert own["sd"] == pytest.approx(np.std(expected, ddof=1))
        assert own["seeds"] == 3
    assert line(shown[2], "MoR", "ALL")["trainable"] == 2.5e6, "of the two parts, not of the three columns"
    assert not (shown[2]["column"] == MEAN).any()


def test_published_numbers_stand_beside_the_mean_that_they_name(shown):
    eye, every = line(shown[2], "MoR", "EYE"), line(shown[2], "MoR", "ALL")
    assert (eye["published"], eye["published_parameters"], every["published"]) == (0.61, 1.5e6, 0.42)
    assert math.isnan(every["published_parameters"])
    assert sized_columns(shown[0], shown[2]) == ["EYE"]


def test_a_mean_without_a_part_is_a_hole_that_says_so(shown):
    text = report(*shown[:2], SILENT, shown[2])
    rows = {c[0]: c for c in table_cells(text.split("## mAP\n\n")[1].split("\n\n")[0])}
    assert rows["row"] == [
        *("row", "trainable", "trainable, published", "EYE", "EYE, published", "ALL", "ALL, published"),
        *("cfp", "oct", "skin", "skin, published"),
    ]
    assert rows["LoRA"][3] == "0.400 ± 0.000[^1]"
    assert rows["LoRA"][5] == "-[^2]"
    assert rows["other"][3] == "-", "it was never meant for oct"
    assert "[^1]: The mean of seeds 0, 2, as oct has no more." in text
    assert "[^2]: No mean without a result in skin." in text
    assert "EYE of cfp, oct; ALL of EYE, skin." in text


def table_cells(text):
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()]


def test_seeds_of_a_mean_are_those_that_every_part_has(shown):
    assert scores_by_seed(*shown[:2], "LoRA", "EYE", "mAP") == pytest.approx({0: 0.4, 2: 0.4})
    assert scores_by_seed(*shown[:2], "LoRA", "ALL", "mAP") == {}


def test_every_file_shows_named_means(shown):
    assert re.search(r"\\multicolumn\{2\}\{c\}\{EYE\}", latex(shown[0], shown[2]))
    assert MEAN not in latex(shown[0], shown[2])
    assert draw(*shown).startswith(b"\x89PNG")


def test_one_column_has_no_mean_and_several_have_one():
    assert dataclasses.replace(TABLE, columns=("cfp",)).averages == {}
    assert dataclasses.replace(TABLE, means={}).averages == {MEAN: TABLE.columns}
    assert TABLE.columns_in("ALL") == TABLE.columns


STRENGTH = {
    "cfp alone": 0.0,
    "cfp alone with lora": 6.0,
    "concat": 3.0,
    "concat with lora": 6.0,
    "LoRA": 6.0,
    "MoR": 6.0,
}
OWN = {row: ("cfp alone with lora",) if "lora" in row.lower() else ("cfp alone",) for row in list(STRENGTH)[2:]}


def judged(rows=tuple(STRENGTH)):
    cells = [Cell(row, "MMC", 0, "finished", "", "", "") for row in rows]
    found = {row: predictions(STRENGTH[row], 1, cases=240) for row in rows}
    runs = {(c.row, "MMC"): [Run(c, "", {}, {}, found[c.row], math.nan, math.nan)] for c in cells}
    table = dataclasses.replace(
        ONE_COLUMN,
        rows=tuple(STRENGTH),
        seeds=(0,),
        cells=tuple(cells),
        own_unimodals={(row, "MMC"): alone for row, alone in OWN.items()},
        own_concat={("LoRA", "MMC"): "concat with lora", ("MoR", "MMC"): "concat"},
    )
    return table, judge_column(table, Results(runs, ()), "MMC", resamples=200)


def test_each_strategy_is_held_against_its_own_unimodals_and_concat():
    table, found = judged()
    against = {answer.strategy: (answer.unimodal.b, answer.unimodal.verdict) for answer in found.help}
    assert against == {
        "concat": ("cfp alone", "better"),
        "concat with lora": ("cfp alone with lora", "tied"),
        "LoRA": ("cfp alone with lora", "tied"),
        "MoR": ("cfp alone", "better"),
    }
    assert {a.strategy: a.concat.b for a in found.help if a.concat} == {"LoRA": "concat with lora", "MoR": "concat"}
    assert fusion_section(table, {"MMC": found}).count("\n- ") == 3


def test_a_lost_unimodal_leaves_only_its_own_strategies_open():
    table, found = judged(tuple(row for row in STRENGTH if row != "cfp alone with lora"))
    assert [answer.strategy for answer in found.help] == ["concat", "MoR"]
    told = "Not answered for concat with lora and LoRA: cfp alone with lora has no result."
    assert fusion_section(table, {"MMC": found}).endswith(f"\n\n{told}")
