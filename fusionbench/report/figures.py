"""Pictures of one split's predictions: ROC, precision-recall, confusion, calibration and gate weights, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fusionbench.files import write_bytes
from fusionbench.report.curves import draw_calibration, draw_pr, draw_roc
from fusionbench.report.matrices import draw_answer_confusion, draw_confusion, draw_label_confusions
from fusionbench.report.predictions import gate_weights, given_answers, groups, probabilities, targets
from fusionbench.report.weighted import Floats
from fusionbench.report.weights import draw_gate_weights


def draw(predictions: pd.DataFrame, classes: Sequence[str], multilabel: bool, folder: Path) -> list[Path]:
    """Draw each figure that the table allows.

    Args:
        predictions: Rows of one split, as in ``fusionbench.report.predictions``.
        classes: K names in label order.
        multilabel: Whether a case can have several classes.
        folder: Where ``roc.png``, ``pr.png``, ``confusion.png``, ``calibration.png`` and, with a gate,
            ``gate_weights.png`` go; made if need be.

    Returns:
        The files written.

    Raises:
        UserError: The table lacks a column.
    """
    scores_NK = probabilities(predictions, classes)
    target = targets(predictions, classes)
    truth_NK = target if multilabel else np.eye(len(classes), dtype=np.int64)[target]
    note = _note(predictions)
    figures = {
        "roc": draw_roc(scores_NK, truth_NK, classes, note),
        "pr": draw_pr(scores_NK, truth_NK, classes, note),
        "confusion": draw_label_confusions(scores_NK, truth_NK, classes, note)
        if multilabel
        else _confusion(predictions, scores_NK, target, classes, note),
        "calibration": draw_calibration(scores_NK, truth_NK, classes, multilabel, note),
    }
    weights = gate_weights(predictions)
    if len(weights.columns):
        figures["gate_weights"] = draw_gate_weights(weights, truth_NK, classes, note)
    return [write_bytes(folder / f"{name}.png", _png(figure)) for name, figure in figures.items()]


def _confusion(
    predictions: pd.DataFrame, scores_NK: Floats, target: NDArray[np.int64], classes: Sequence[str], note: str
) -> Figure:
    """Draw the decisions: what the answers in words name where there are any, else the most probable class."""
    answers = given_answers(predictions, classes)
    if answers is None:
        return draw_confusion(scores_NK.argmax(axis=1), target, classes, note)
    return draw_answer_confusion(answers, target, classes, note)


def _note(predictions: pd.DataFrame) -> str:
    """Return the line below every title: how much the picture rests on."""
    split = ", ".join(predictions["split"].astype(str).unique()) if "split" in predictions.columns else "all"
    return f"{split} split, {len(predictions):,} cases of {len(set(groups(predictions))):,} groups"


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
