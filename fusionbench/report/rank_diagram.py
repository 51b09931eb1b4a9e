"""The critical-difference diagram over several datasets (Demšar, 2006).

Methods stand at their mean ranks and are joined where Nemenyi's test cannot tell them apart.

Below five datasets the test has next to no power and the picture suggests what it does not show: it is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import pandas as pd
from scikit_posthocs import critical_difference_diagram, posthoc_nemenyi_friedman
from scipy.stats import friedmanchisquare

from fusionbench.errors import UserError
from fusionbench.files import write_bytes
from fusionbench.metrics import LOWER_IS_BETTER
from fusionbench.report.style import colour, head, new_figure

FEWEST_DATASETS = 5
FEWEST_METHODS = 3


def dataset_key(predictions: pd.DataFrame) -> str:
    """Return what tells datasets apart: the test cases and their labels, so that a second backbone is no dataset.

    Args:
        predictions: Any run's, as in ``fusionbench.report.predictions``.
    """
    labels = [c for c in predictions.columns if c == "target" or c.startswith("target.")]
    rows = predictions.loc[predictions["split"] == "test", ["case", *labels]].astype({"case": str})
    text = rows.sort_values("case").to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rank_diagram(scores: pd.DataFrame, metric: str, path: Path, level: float = 0.95) -> str:
    """Draw the diagram as PNG and return its sentence.

    Args:
        scores: One row a dataset, one column a method; a method that lacks a dataset is left out.
        metric: What the scores are, which decides which end is best.
        path: Where the PNG goes.
        level: 1 - level is the error of both tests.

    Raises:
        UserError: There are fewer than five datasets, or fewer than three methods on all of them.
    """
    whole = scores.dropna(axis="columns")
    _check(scores, whole)
    ranks = whole.rank(axis="columns", ascending=metric in LOWER_IS_BETTER).mean()
    p = float(friedmanchisquare(*(whole[name] for name in whole)).pvalue)
    pairs = posthoc_nemenyi_friedman(whole)
    figure = new_figure(8.5, 1.8 + 0.28 * len(ranks))
    axes = figure.subplots()
    palette = {name: colour(index) for index, name in enumerate(ranks.index)}
    short = {"label_fmt_left": "{label:.28} ({rank:.2g})", "label_fmt_right": "({rank:.2g}) {label:.28}"}
    critical_difference_diagram(
        ranks, pairs, alpha=1 - level, ax=axes, color_palette=palette, text_h_margin=0.1, **short
    )
    for text in axes.texts:
        text.set_parse_math(False)
    said = _sentence(p, level, whole, scores)
    head(figure, f"Mean rank by {metric} over {len(whole)} datasets (1 is best)", said)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return said


def pooled(columns: Mapping[str, tuple[str, Mapping[str, float]]]) -> pd.DataFrame:
    """Return scores by dataset and method, the mean over columns that are on the same dataset, nan where one has none.

    Args:
        columns: By title: the dataset's key and each method's score.
    """
    frame = pd.DataFrame({title: dict(scores) for title, (_, scores) in columns.items()}).T
    keys = pd.Series({title: key for title, (key, _) in columns.items()})
    return frame.groupby(keys).agg(pd.Series.mean, skipna=False)


def _check(scores: pd.DataFrame, whole: pd.DataFrame) -> None:
    if len(scores) < FEWEST_DATASETS:
        raise UserError(
            f"a critical-difference diagram needs at least {FEWEST_DATASETS} datasets, and these tables have "
            f"{len(scores)}; compare the methods on each dataset instead"
        )
    if len(whole.columns) < FEWEST_METHODS:
        raise UserError(
            f"a critical-difference diagram needs at least {FEWEST_METHODS} methods with a score on every dataset, and "
            f"there are {len(whole.columns)}; run the missing rows"
        )


def _sentence(p: float, level: float, whole: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Return what Friedman's test says, and what was left out."""
    found = "the methods' ranks differ" if p < 1 - level else "no difference between the ranks is shown"
    left = [str(name) for name in scores.columns if name not in whole.columns]
    return f"Friedman p = {p:.3g}: {found}" + (f"; without {', '.join(left)}, which lack a dataset" if left else "")
