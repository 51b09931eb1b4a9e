"""The files of an ablation table, from runs in a real store whose predictions are made up."""

import dataclasses
import gc
import re
from unittest import mock

import pandas as pd
import pytest
from ablation_runs import TABLE, filled, first_seed, hole, predictions, track
from program import THIRD_PARTY, new_store, store

from fusionbench.report import ablation
from fusionbench.report.ablation import Cell, write

pytestmark = THIRD_PARTY


def written(table, place, folder):
    """Write a table with 200 resamples; how well intervals cover is tested where they are made."""
    gc.freeze()  # statsmodels collects garbage at each adjustment of p-values: half a second with torch in it
    try:
        return {path.name.partition(".")[2]: path for path in write(table, place, folder, resamples=200)}
    finally:
        gc.unfreeze()


def page(table, place, folder):
    """Return a table's markdown, with no picture drawn."""
    with mock.patch.object(ablation, "draw", return_value=b""):
        return written(table, place, folder)["md"].read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return store(new_store(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def table(place):
    return filled(place)


@pytest.fixture(scope="module")
def files(table, place, tmp_path_factory):
    """The files of the whole table."""
    return written(table, place, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def single(table, place, tmp_path_factory):
    """The files of its first seed."""
    return written(first_seed(table), place, tmp_path_factory.mktemp("single"))


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(text, title):
    """Return what stands between a heading and the next of its level."""
    return re.split(r"\n## ", text.split(f"## {title}\n", 1)[1])[0]


def test_scores_are_means_over_seeds_beside_published_ones(table, place, files):
    frame = pd.read_csv(files["csv"])
    line = frame[(frame["row"] == "EI") & (frame["metric"] == "mAP")].iloc[0]
    own = [cell.run_id for cell in table.cells if cell.row == "EI"]
    scores = [place.open(run_id).metrics()["test/mAP"] for run_id in own]
    assert line["mean"] == sum(scores) / 2
    assert line["sd"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert 0 < line["low"] < line["mean"] <= line["high"] <= 1
    assert (line["published"], line["published_parameters"], line["trainable"]) == (0.889, 8.87e6, 7_099_026)
    assert line["fingerprints"].split() == [cell.fingerprint for cell in table.cells if cell.row == "EI"]
    shown = next(line for line in files["md"].read_text().splitlines() if line.startswith("| EI "))
    assert cells(shown)[1].startswith(f"**{line['mean']:.3f} ± {line['sd']:.3f}** [")
    assert cells(shown)[2] == "0.889"
    assert cells(shown)[-3:] == ["8.87M", "93.00M", "36.2"]


def test_report_ends_with_whether_fusion_helped(files):
    text = files["md"].read_text()
    assert re.findall(r"^## (.*)", text, re.M) == ["MMC", "Run identities", "Verdicts", "Did fusion help?"]
    helped = section(text, "Did fusion help?").strip().splitlines()
    assert [line.split(":")[0] for line in helped] == ["- concat", "- EI"]
    assert "60 test cases of 30 groups; data `dddddddddddd`" in text
    assert "A note of the table's own." in text


def test_a_clear_winner_is_better_and_itself_is_tied(place, tmp_path):
    strong, weak = predictions(9, 0, cases=240), predictions(0, 1, cases=240)
    made = {"oct alone": weak, "concat": strong, "twin": strong}
    records = tuple(Cell(row, "MMC", 0, "finished", "", track(place, row, made[row]), row) for row in made)
    alone = {(row, "MMC"): ("oct alone",) for row in ("concat", "twin")}
    plain = {("twin", "MMC"): "concat"}
    table = dataclasses.replace(
        TABLE, rows=tuple(made), seeds=(0,), cells=records, own_unimodals=alone, own_concat=plain
    )
    text = page(table, place, tmp_path)
    verdicts = section(text, "Verdicts").splitlines()
    assert [cells(line)[-2] for line in verdicts if line.startswith("| twin")] == ["**tied**"]
    assert [cells(line)[-2] for line in verdicts if line.startswith("| oct alone")] == ["**worse**"]
    triangle = [cells(line)[1:] for line in verdicts if re.match(r"\| \d ", line)]
    assert triangle == [["worse", "worse"], ["", "tied"], ["", ""]]
    helped = section(text, "Did fusion help?")
    assert helped.count("better than its best unimodal") == 2
    assert "tied with concat" in helped


def test_equal_results_in_two_stores_give_equal_files(place, single, tmp_path):
    other = store(new_store(tmp_path / "other"))
    again = filled(other, dataclasses.replace(TABLE, seeds=(0,)))
    shuffled = dataclasses.replace(again, cells=again.cells[::-1])
    second = written(shuffled, other, tmp_path)
    assert place.anonymous("c0") != other.anonymous("c0")
    for ending in ("md", "csv", "tex", "png"):
        assert single[ending].read_bytes() == second[ending].read_bytes(), ending
    assert single["costs.csv"].read_bytes() != second["costs.csv"].read_bytes()


def test_only_the_costs_name_runs(table, files):
    for cell in table.cells:
        for ending in ("md", "csv", "tex"):
            assert cell.run_id[:8] not in files[ending].read_text()
        assert cell.run_id[:8] in files["costs.md"].read_text()
    frame = pd.read_csv(files["costs.csv"])
    assert list(frame["run_id"]) == [cell.run_id for cell in table.cells]
    assert set(frame["epoch_seconds"]) == {3.0}
    assert (frame["minutes"] >= 0).all()


def test_holes_keep_their_place_and_say_why(table, place, tmp_path):
    partial = hole(hole(table, "EI", 1, "out of memory"), "concat", 0, "no such option")
    partial = hole(partial, "concat", 1, "no such option")
    text = page(partial, place, tmp_path)
    shown = {cells(line)[0]: cells(line) for line in section(text, "MMC").splitlines() if line.startswith("| ")}
    assert shown["concat"][1] == "-[^1]"
    assert re.fullmatch(r"\*\*0\.\d{3}\*\* \[.*\]\[\^2\]", shown["EI"][1])
    assert "[^1]: Failed: no such option." in text
    assert "[^2]: Seed 1 failed: out of memory." in text
    assert "| concat" not in section(text, "Verdicts")


def test_a_run_that_left_the_store_is_a_hole(table, place, tmp_path):
    lost = tuple(dataclasses.replace(c, run_id="0" * 32) if c.row == "EI" else c for c in table.cells)
    text = page(dataclasses.replace(table, cells=lost), place, tmp_path)
    assert "Missing: its predictions are no longer in the tracking store." in text


def test_a_lost_unimodal_row_leaves_the_question_open(table, place, tmp_path):
    text = page(hole(hole(table, "oct alone", 0, "x"), "oct alone", 1, "x"), place, tmp_path)
    assert section(text, "Did fusion help?").strip() == "Not answered: oct alone has no result."


def test_table_without_unimodal_rows_says_so(table, place, tmp_path):
    bare = dataclasses.replace(table, own_unimodals={}, own_concat={})
    text = page(bare, place, tmp_path)
    assert section(text, "Did fusion help?").strip() == "Not answered: this table has no row of one modality alone."


def test_nothing_finished(table, place, tmp_path):
    skipped = tuple(dataclasses.replace(c, status="skipped", reason="no data", run_id="") for c in table.cells)
    files = written(dataclasses.replace(table, cells=skipped), place, tmp_path)
    assert "No run of this column has a result." in section(files["md"].read_text(), "Did fusion help?")
    assert pd.read_csv(files["csv"])["mean"].isna().all()
    assert len(pd.read_csv(files["costs.csv"])) == 0


def test_rows_on_other_cases_get_intervals_but_no_verdict(table, place, tmp_path):
    other = predictions(1, 5)
    other["target"] = other["target"].to_numpy()[::-1]
    changed = track(place, "fewer", other)
    changed = tuple(dataclasses.replace(c, run_id=changed) if (c.row, c.seed) == ("EI", 0) else c for c in table.cells)
    changed = tuple(c for c in changed if (c.row, c.seed) != ("EI", 1))
    files = written(dataclasses.replace(table, cells=changed), place, tmp_path)
    assert "disagree on the label" in section(files["md"].read_text(), "Verdicts")
    assert pd.read_csv(files["csv"])["low"].notna().all()


def test_a_row_that_saw_fewer_cases_costs_the_others_no_verdict(table, place, tmp_path):
    few = {seed: track(place, f"few{seed}", predictions(9, seed, cases=30)) for seed in table.seeds}
    cells = tuple(dataclasses.replace(c, run_id=few[c.seed]) if c.row == "oct alone" else c for c in table.cells)
    files = written(dataclasses.replace(table, cells=cells), place, tmp_path)
    text = files["md"].read_text()
    assert re.search(r"\| oct alone\[\^1\] +\| +\d", text), "marked, and not bold though it scores best"
    assert "[^1]: Tested on 30 of the 60 cases only, so never the best here." in text
    verdicts = section(text, "Verdicts")
    assert "The best row is EI" in verdicts
    assert "saw 30 of the 60 cases: it stands in no pair" in verdicts
    assert "compared with oct alone on 30 of 60 cases." in section(text, "Did fusion help?")
    frame = pd.read_csv(files["csv"])
    assert frame["low"].notna().all()
    assert (frame["cases"] < frame["all_cases"]).tolist() == (frame["row"] == "oct alone").tolist()
    assert re.search(r"oct alone & .*\$\^\\dagger\$", files["tex"].read_text())
    assert r"$^\dagger$ tested on fewer cases than the other rows." in files["tex"].read_text()


def test_marks_of_random_weights_and_of_what_was_let_through(place, tmp_path):
    tags = {"fusionbench.random_weights": "oct, cfp", "fusionbench.allow": "near_duplicates"}
    marked = filled(place, dataclasses.replace(TABLE, seeds=(0,), rows=("concat",)), tags=tags)
    text = page(marked, place, tmp_path)
    assert "| concat[^1][^2] |" in text
    assert "[^1]: The integrity gate was told to let through: near_duplicates." in text
    assert "[^2]: Started from random weights: the encoder of oct, cfp." in text


def test_one_seed_has_an_interval_and_no_spread(single):
    text = single["md"].read_text()
    assert re.search(r"\| EI +\| +\*\*0\.\d{3}\*\* \[0\.\d\d, \d\.\d\d\] \|", text)
    assert "One seed, 0, so" in text
    assert pd.read_csv(single["csv"])["sd"].isna().all()


def test_undefined_metric_is_a_hole(place, tmp_path):
    files = written(
        filled(place, dataclasses.replace(TABLE, seeds=(0,), rows=("EI",)), drop=("mAUC",)), place, tmp_path
    )
    frame = pd.read_csv(files["csv"])
    assert frame.loc[frame["metric"] == "mAUC", "mean"].isna().all()
    assert frame.loc[frame["metric"] == "mAP", "mean"].notna().all()


def test_multilabel(place, tmp_path):
    text = page(filled(place, dataclasses.replace(TABLE, seeds=(0,)), multilabel=True), place, tmp_path)
    assert section(text, "Did fusion help?").count("its best unimodal") == 2


def test_light_copy_shows_the_original(table, place, single, tmp_path):
    table = first_seed(table)
    original = table.cells[0].run_id
    copy = place.start("copy", "", {"fusionbench.copy_of": original}).run_id
    copied = (dataclasses.replace(table.cells[0], run_id=copy), *table.cells[1:])
    second = written(dataclasses.replace(table, cells=copied), place, tmp_path)
    for ending in ("md", "costs.csv"):
        assert single[ending].read_bytes() == second[ending].read_bytes()
