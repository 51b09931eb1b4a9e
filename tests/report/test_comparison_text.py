"""A comparison as table, page, file and sentence."""

import io
from dataclasses import replace

import pandas as pd
import pytest
from contestants import contestants
from matplotlib.image import imread
from rich.console import Console

from fusionbench.report.comparison import Comparison, Entry, Pair, compare, did_fusion_help
from fusionbench.report.comparison_text import conclusion, pair_table, score_table, to_csv, to_markdown
from fusionbench.report.crosscheck import CAVEAT, crosscheck
from fusionbench.report.forest import draw_forest

ABC = ["a", "b", "c"]


@pytest.fixture(scope="module")
def methods():
    return contestants({"early_intervention": 2.0, "concat|late": 1.0, "oct alone": 0.2}, cases=120, groups=60)


@pytest.fixture(scope="module")
def comparison(methods):
    return compare(methods, ABC, False)


def judged(*words):
    """Return a comparison of x, y and z with these verdicts on xy, xz and yz."""
    names = [("x", "y"), ("x", "z"), ("y", "z")]
    pairs = [Pair(a, b, 0.0, -0.1, 0.1, 1.0, 1.0, word, 0.2) for (a, b), word in zip(names, words, strict=False)]
    scores = dict.fromkeys("xyz"[: 3 if len(words) == 3 else 2], (0.8, 0.7, 0.9))
    return Comparison("mAP", 0.02, 0.95, 79, 60, scores, tuple(pairs), ())


def test_conclusions():
    few, tied = "too few cases", "tied"
    assert conclusion(judged("better", "better", few)) == "x is better in mAP than every other method."
    assert conclusion(judged("worse", few, "better")) == "y is better in mAP than every other method."
    assert conclusion(judged("better")) == "x is better in mAP than y."
    assert conclusion(judged(tied, tied, tied)) == "In mAP all are tied within 0.02."
    assert conclusion(judged(tied, few, few)) == (
        "In mAP no method is shown to be better than another: of 3 pairs, 1 tied within 0.02, "
        "2 with too few cases to tell."
    )
    assert conclusion(judged(tied, "better", few)).endswith("better than all others; not beaten by any: x, y.")
    assert "one method only" in conclusion(replace(judged(), scores={"x": (0.8, 0.7, 0.9)}))


def printed(table, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_a_line_for_each_pair_with_its_word(comparison):
    text = printed(pair_table(comparison), 110)
    assert text.count("better") == 3
    assert sum({"early_intervention", "concat|late"} <= set(line.split()) for line in text.splitlines()) == 1
    assert "120 cases of 60 groups" in text
    assert "…" not in printed(pair_table(comparison), 80)
    assert printed(score_table(comparison), 80).count("[0.") == 3


def test_the_page_holds_everything(methods, comparison):
    entries = [Entry("early_intervention", ("oct alone",), "concat|late"), Entry("concat|late", ("oct alone",), None)]
    answers = did_fusion_help(methods, entries, ABC, False)
    page = to_markdown(comparison, "Title", answers, crosscheck(methods, ABC, False), ["A run was random."])
    assert page.startswith("# Title\n\nearly_intervention is better in mAP than every other method.\n")
    assert r"concat\|late" in page
    assert "* A run was random." in page
    assert CAVEAT in page
    assert page.rstrip().splitlines()[-2:] == [f"* {answer.sentence}" for answer in answers]
    assert "## Cross-checks" not in to_markdown(comparison, "Title")


def test_csv_is_in_full_precision(comparison):
    frame = pd.read_csv(io.StringIO(to_csv(comparison)))
    assert frame["difference"].tolist() == [pair.difference for pair in comparison.pairs]
    assert frame["verdict"].tolist() == ["better"] * 3
    assert set(frame["metric"]) == {"mAP"}


def test_forest_plot(comparison, tmp_path):
    draw_forest(comparison).savefig(tmp_path / "forest.png")
    assert imread(tmp_path / "forest.png").std() > 0.05
    figure = draw_forest(judged("better", "tied", "too few cases"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["better", "tied", "too few cases"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["x - y", "x - z", "y - z"]
