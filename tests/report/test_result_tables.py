import io

import pandas as pd
import pytest
from rich.console import Console

from fusionbench.metrics import HEADLINE
from fusionbench.report.tables import ResultRow, compact_count, csv, markdown, result_table

INTERVALS = dict.fromkeys(HEADLINE, (0.9, 1.0))
FUSED = ResultRow("EI (fusion)", dict.fromkeys(HEADLINE, 0.931), INTERVALS, 7_099_026, "abcdef0123456789")
SHAPE = ResultRow("shape alone", dict.fromkeys(HEADLINE, 0.84), INTERVALS, 1_477_732, "bb")
FAILED = ResultRow("ratings alone", {"mAP": float("nan")})
ROWS = [FUSED, SHAPE, FAILED]


def printed(width, rows=ROWS):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(result_table(rows, cases=79, groups=60, width=width))
    return console.file.getvalue()


def test_eighty_columns_hold_every_cell():
    text = printed(80)
    assert "…" not in text
    assert text.count(".90-1.0") == 12
    assert "7.10M" in text
    assert "ratings alone" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "79 cases of 60 groups" in text


def test_wide_terminal_holds_a_row_on_a_line():
    line = next(line for line in printed(160).splitlines() if "EI" in line)
    assert line.count("0.93 [0.90, 1.00]") == 6


def test_best_is_bold_and_low_calibration_error_wins():
    text = markdown(ROWS, cases=79, groups=60)
    fused, shape, failed = text.splitlines()[2:5]
    assert fused.count("**0.93 [0.90, 1.00]**") == 5
    assert "| 0.93 [0.90, 1.00] |" in fused
    assert shape.count("**") == 2
    assert "`abcdef01`" in fused
    assert "**" not in failed
    assert failed.count("| - ") == 8
    assert "Overlapping intervals are no verdict" in text


def test_terminal_marks_the_best():
    cells = list(result_table(ROWS, cases=1, groups=1).columns[1].cells)
    assert [cell.style for cell in cells] == ["bold", "", ""]


def test_equal_as_shown_is_equally_bold():
    close = ResultRow("close", dict.fromkeys(HEADLINE, 0.9299))
    text = markdown([FUSED, close], cases=1, groups=1)
    assert all(line.count("**") == 12 for line in text.splitlines()[2:4])


def test_one_row_is_not_best():
    assert "**" not in markdown([FUSED], cases=1, groups=1)


def test_csv_round_trip():
    frame = pd.read_csv(io.StringIO(csv(ROWS)))
    assert frame["mAP"][0] == 0.931
    assert frame["ECE_high"][1] == 1.0
    assert frame["trainable"][0] == 7_099_026
    assert frame.loc[2, ["mAP", "mAP_low", "trainable"]].isna().all()
    assert frame["run_id"][0] == "abcdef0123456789"


@pytest.mark.parametrize(
    ("count", "shown"),
    [(None, "-"), (0, "0"), (999, "999"), (3_076, "3.1K"), (999_999, "1.00M"), (1_477_732, "1.48M"), (2**33, "8.59B")],
)
def test_counts(count, shown):
    assert compact_count(count) == shown


def test_further_scores_with_an_interval_get_a_column():
    scores = FUSED.scores | {"dice": 0.712, "dice/cases": 9.0, "cases": 79.0, "answer_none": 0.1}
    segmented = ResultRow("MDF", scores, INTERVALS | {"dice": (0.61, 0.8), "AP/ill": (0.1, 0.2)}, 1)
    rows = [FUSED, segmented]
    lines = markdown(rows, cases=79, groups=60).splitlines()
    assert lines[0].split(" | ")[7] == "dice"
    assert [line.split(" | ")[7] for line in lines[2:4]] == ["-", "0.71 [0.61, 0.80]"]
    assert "0.71 [0.61, 0.80]" in next(line for line in printed(180, rows).splitlines() if " MDF " in line)
    between = printed(90, rows)
    assert ".61-.80" in between
    assert "…" not in between
    assert "dice" in between.splitlines()[1]
    assert "MDF: dice 0.71 [0.61, 0.80]\n" in "\n".join(line.rstrip() for line in printed(80, rows).splitlines())
    assert "…" not in printed(80, rows)
    assert "dice_low" in csv(rows).splitlines()[0]
    assert "dice" not in markdown(ROWS, cases=79, groups=60)


def test_a_mean_over_classes_without_a_range_is_explained():
    bounds = {"accuracy": (0.5, 0.9), "mAP": (float("nan"), float("nan"))}
    row = ResultRow("rare", {"mAP": 0.14, "accuracy": 0.7}, bounds)
    shown = markdown([row], cases=17, groups=17)
    assert "| 0.14 |" in shown
    assert "without a range: too few resamples have every class" in shown
    assert "without a range" not in markdown([ResultRow("one", {"mAP": 0.14})], cases=1, groups=1)
    assert "without a range" not in markdown([ResultRow("a", {"mAP": 0.1}, {"mAP": (0, 1)})], cases=9, groups=9)
