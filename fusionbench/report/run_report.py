"""A run's own report: scores of the test split, their intervals, those of branches and texts alone, and the figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fusionbench.files import write_bytes
from fusionbench.metrics import HEADLINE, evaluate
from fusionbench.report import predictions as table
from fusionbench.report.bootstrap import group_intervals, mean_interval
from fusionbench.report.figures import draw
from fusionbench.report.overlays import draw_sheets
from fusionbench.report.tables import ResultRow, markdown
from fusionbench.results import Method, Result

Intervals = dict[str, tuple[float, float]]
_NOTHING: Mapping[str, Result] = {}
_UNNAMED = Method()


@dataclass(frozen=True)
class RunSummary:
    """What a run came to.

    Attributes:
        scores: As ``metrics.evaluate`` returns, and ``branch/<name>/<headline metric>`` and ``branch/<name>/cases``;
            of a text alone ``text_only/<headline metric>``, of several ``text_only/<modality>/<headline metric>``; of
            further scores such as ``dice`` the mean and ``<name>/cases``, how many cases have one.
        intervals: 95 % interval of each headline metric, also of branches and texts alone, and of further scores, by
            the same names.
        figures: The PNG files.
    """

    scores: dict[str, float]
    intervals: Intervals
    figures: list[Path]


def summarise(
    predictions: pd.DataFrame,
    classes: Sequence[str],
    multilabel: bool,
    folder: Path,
    seed: int = 0,
    text_only: Mapping[str, Result] = _NOTHING,
    maps: Path | None = None,
    method: Method = _UNNAMED,
) -> RunSummary:
    """Score the test split, draw it, and write ``metrics.json`` into ``folder``, beside texts alone ``text_only.md``.

    A branch is scored over the cases in which it saw its modality; its score is comparable with the run's own only
    where that is all of them, which ``branch/<name>/cases`` tells.

    Args:
        predictions: As in ``fusionbench.report.predictions``, any splits.
        classes: K names in label order.
        multilabel: Whether a case can have several classes.
        folder: Where figures and ``metrics.json`` go; made if need be.
        seed: Of the bootstrap.
        text_only: The results of runs on a text alone, by modality.
        maps: What ``fusionbench.maps.write`` left of a few cases, drawn into ``maps``; None: there are none.
        method: What the run is called beside texts alone.

    Raises:
        UserError: There is no test case, or the table lacks a column.
    """
    test = table.select_split(predictions, "test")
    scores, intervals = _score(test, classes, multilabel, seed)
    for branch in table.branches(test):
        cases = table.branch_cases(test, classes, branch)
        scores[f"branch/{branch}/cases"] = float(len(cases))
        if len(cases):
            branch_scores, branch_intervals = _score(cases, classes, multilabel, seed, branch)
            scores |= {f"branch/{branch}/{name}": branch_scores[name] for name in HEADLINE}
            intervals |= {f"branch/{branch}/{name}": bounds for name, bounds in branch_intervals.items()}
    for name, values in table.case_scores(test, classes).items():
        known = values[~np.isnan(values)]
        scores |= {name: float(known.mean()) if known.size else math.nan, f"{name}/cases": float(known.size)}
        intervals[name] = mean_interval(values, table.groups(test), seed=seed)
    groups = len(set(table.groups(test)))
    if text_only:
        rows = [ResultRow(method.name, scores, intervals, method.trainable, method.run_id)]
        for own in text_only.values():
            rows.append(ResultRow(own.label(len(test)), own.scores, own.intervals, own.trainable, own.run_id))
        shown = markdown(rows, cases=len(test), groups=groups)
        told = f"{shown}\nContent of the texts (data.text.content): {method.text}.\n"
        write_bytes(folder / "text_only.md", told.encode())
    for name, result in text_only.items():
        prefix = "text_only" if len(text_only) == 1 else f"text_only/{name}"
        scores |= {f"{prefix}/{metric}": result.scores.get(metric, math.nan) for metric in HEADLINE}
        intervals |= {f"{prefix}/{n}": bounds for n, bounds in result.intervals.items() if n in HEADLINE}
    figures = draw(test, classes, multilabel, folder)
    figures += draw_sheets(maps, folder / "maps") if maps is not None else []
    content = _json(scores, intervals, cases=len(test), groups=groups, seed=seed)
    write_bytes(folder / "metrics.json", content)
    return RunSummary(scores, intervals, figures)


def _score(
    cases: pd.DataFrame, classes: Sequence[str], multilabel: bool, seed: int, branch: str | None = None
) -> tuple[dict[str, float], Intervals]:
    """Return metrics and intervals of the scored output, or of a branch."""
    import torch

    probabilities, target = table.probabilities(cases, classes, branch), table.targets(cases, classes)
    scores = evaluate(torch.tensor(probabilities), torch.tensor(target), classes, multilabel)
    return scores, group_intervals(probabilities, target, table.groups(cases), classes, multilabel, seed=seed)


def _json(scores: dict[str, float], intervals: Intervals, *, cases: int, groups: int, seed: int) -> bytes:
    """Return strict JSON, in which nan is null."""
    content = {
        "split": "test",
        "cases": cases,
        "groups": groups,
        "seed": seed,
        "level": 0.95,
        "scores": {name: _null(value) for name, value in scores.items()},
        "intervals": {name: [_null(bound) for bound in bounds] for name, bounds in intervals.items()},
    }
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
