"""Strategies' own scores in a table: the mean over the cases that have one, its interval, and rows without any."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from ablation_runs import TABLE, predictions, track
from program import THIRD_PARTY, new_store, store

from fusionbench.report import ablation
from fusionbench.report.ablation import Cell, write
from fusionbench.report.bootstrap import mean_interval
from fusionbench.report.case_scores import score_intervals
from fusionbench.report.methods import Method

pytestmark = THIRD_PARTY


def scored(draw: int, known: int = 20, level: float = 0.7) -> pd.DataFrame:
    """Return predictions of which the first cases have a Dice score around a level."""
    table = predictions(1.0, draw)
    dice = np.random.default_rng(draw).uniform(level - 0.2, level + 0.2, len(table))
    return table.assign(**{"score.dice": np.where(np.arange(len(table)) < known, dice, np.nan)})


def intervals(*runs: pd.DataFrame, score: str = "dice") -> dict[tuple[str, str], tuple[float, float]]:
    method = Method("MDF", runs, tuple(range(len(runs))))
    return score_intervals([method], [score], resamples=400, level=0.95)


def test_with_one_seed_it_is_the_interval_of_the_mean_over_the_groups_that_have_a_score() -> None:
    table, some = scored(0), scored(0).head(20)
    low, high = mean_interval(some["score.dice"], some["group"].tolist(), resamples=400)
    found_low, found_high = intervals(table)["MDF", "dice"]
    mean, least = some["score.dice"].mean(), 1.959964 / (some["group"].nunique() + 2)
    assert found_low == pytest.approx(min(low, mean - least))
    assert found_high == pytest.approx(min(max(high, mean + least), 1))


def test_seeds_that_differ_widen_it() -> None:
    (alike_low, alike_high), (low, high) = (
        intervals(*(scored(seed, 60, level) for seed, level in enumerate(levels)))["MDF", "dice"]
        for levels in ((0.5, 0.5, 0.5), (0.3, 0.5, 0.7))
    )
    assert high - low > 1.5 * (alike_high - alike_low)


@pytest.mark.parametrize("table", [predictions(1.0, 0), scored(0, known=0)])
def test_without_a_score_there_is_none(table: pd.DataFrame) -> None:
    assert intervals(scored(1), table) == {}


def test_rows_without_the_score_have_a_hole_in_its_column(tmp_path: Path) -> None:
    place = store(new_store(tmp_path / "runs"))
    made = {"concat": [predictions(1.0, 0), predictions(1.0, 1)], "EI": [scored(2), scored(3)]}
    cells = tuple(
        Cell(row, "MMC", seed, "finished", "", track(place, row, table), f"{row}{seed}")
        for row, tables in made.items()
        for seed, table in enumerate(tables)
    )
    table = dataclasses.replace(
        TABLE, rows=tuple(made), metrics=("mAP", "dice"), cells=cells, published={}, own_unimodals={}, own_concat={}
    )
    with mock.patch.object(ablation, "draw", return_value=b""):
        files = {path.name.partition(".")[2]: path for path in write(table, place, tmp_path, resamples=200)}
    text, frame = files["md"].read_text(), pd.read_csv(files["csv"])
    lines = {
        line.split(" ")[1]: line.split("|")
        for line in text.split("## Run identities")[0].splitlines()
        if re.match(r"\| (row|EI|concat) ", line)
    }
    assert lines["row"][3].strip() == "dice"
    assert lines["concat"][3].strip() == "-"
    own = frame[(frame["row"] == "EI") & (frame["metric"] == "dice")].iloc[0]
    means = [run["score.dice"].mean() for run in made["EI"]]
    assert own["mean"] == pytest.approx(np.mean(means))
    assert own["low"] < min(means) < max(means) < own["high"]
    assert lines["EI"][3].strip().startswith(f"{own['mean']:.3f} ± ")
    assert "Rows whose strategy has no dice show `-`; of the others it is the mean over the test cases" in text
    assert "dice" not in text.split("## Verdicts")[1]
