"""The table of per-case predictions, the only thing that reports read.

One row a case: ``case``, ``group`` (hashed), ``split``; ``target`` (class index), or ``target.<class>`` (0/1) when
multi-label; ``prob.<class>``; for each branch ``branch.<name>.<class>``; ``weight.<modality>``, ``present.<modality>``;
``score.<name>``, further scores such as Dice, nan where a case has none; ``answer``, the index of the class that an
answer in words names, -1 for none or several; ``answer_named``, the names of all classes that it names, `` | `` between
them; ``answer_text``, the answer as it was written, of ``fusion.max_new_tokens`` tokens at most.
A branch's probabilities are nan, or its modality's ``present`` is false, where it had nothing to look at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fusionbench.errors import UserError, nearest
from fusionbench.metrics import answer_values


def probabilities(table: pd.DataFrame, classes: Sequence[str], branch: str | None = None) -> NDArray[np.float64]:
    """Return the probabilities (N, K) of the scored output, or of a branch.

    Raises:
        UserError: The table lacks the branch or a class.
    """
    if branch is not None and branch not in branches(table):
        raise UserError(f"the predictions have no branch '{branch}'{nearest(branch, branches(table))}")
    prefix = "prob" if branch is None else f"branch.{branch}"
    return _columns(table, [f"{prefix}.{label}" for label in classes]).to_numpy(np.float64)


def targets(table: pd.DataFrame, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return class indices (N,), or 0/1 (N, K) where the table has ``target.<class>`` columns.

    Raises:
        UserError: The table has neither, or lacks a class, or a label is unknown or no class.
    """
    multilabel = "target" not in table.columns and any(name.startswith("target.") for name in table.columns)
    names = [f"target.{label}" for label in classes] if multilabel else ["target"]
    values = _columns(table, names).fillna(-1).to_numpy(np.int64)
    if not np.isin(values, range(2 if multilabel else len(classes))).all():
        possible = "0 or 1" if multilabel else f"0 to {len(classes) - 1}"
        raise UserError(f"the predictions hold a label other than {possible}; leave out cases whose label is unknown")
    return values if multilabel else values[:, 0]


def groups(table: pd.DataFrame) -> list[str]:
    """Return each case's group, the unit that intervals resample."""
    return _columns(table, ["group"])["group"].astype(str).tolist()


def branches(table: pd.DataFrame) -> list[str]:
    """Return the names of the branches, in the table's order."""
    labels = [name.removeprefix("prob.") for name in table.columns if name.startswith("prob.")]
    ending = f".{labels[0]}" if labels else "."
    named = [
        column.removeprefix("branch.").removesuffix(ending)
        for column in table.columns
        if column.startswith("branch.") and column.endswith(ending)
    ]
    return [name for name in named if all(f"branch.{name}.{label}" in table.columns for label in labels)]


def branch_cases(table: pd.DataFrame, classes: Sequence[str], branch: str) -> pd.DataFrame:
    """Return the cases in which a branch saw its modality, which its name ends with after a slash."""
    seen = np.asarray(np.isfinite(probabilities(table, classes, branch)).all(axis=1), dtype=bool)
    column = f"present.{branch.rpartition('/')[2]}"
    if column in table.columns:
        seen &= table[column].to_numpy(bool)
    return table.loc[seen]


def gate_weights(table: pd.DataFrame) -> pd.DataFrame:
    """Return (N, M), a column for each modality that has a weight; nan where the modality is absent."""
    names = [name.removeprefix("weight.") for name in table.columns if name.startswith("weight.")]
    weights = pd.DataFrame({name: table[f"weight.{name}"].astype(float) for name in names}, index=table.index)
    for name in names:
        if f"present.{name}" in table.columns:
            weights[name] = weights[name].where(table[f"present.{name}"].astype(bool))
    return weights


def case_scores(table: pd.DataFrame, classes: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return what is scored case by case, (N,) each, nan where a case has no such score: the strategy's, and answers.

    Raises:
        UserError: An answer is no class and not -1.
    """
    columns = [name for name in table.columns if name.startswith("score.")]
    scores = {name.removeprefix("score."): table[name].to_numpy(np.float64) for name in columns}
    answers = given_answers(table, classes)
    if answers is None:
        return scores
    return scores | {k: v.astype(np.float64) for k, v in answer_values(answers, targets(table, classes)).items()}


def given_answers(table: pd.DataFrame, classes: Sequence[str]) -> NDArray[np.int64] | None:
    """Return the class that each answer in words names, (N,), -1 for none or several; None where nothing was answered.

    Raises:
        UserError: An answer is no class and not -1.
    """
    if "answer" not in table.columns:
        return None
    answers = table["answer"].to_numpy(np.int64)
    if not np.isin(answers, range(-1, len(classes))).all():
        raise UserError(f"the predictions hold an answer other than -1 (none) to {len(classes) - 1}")
    return answers


def select_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return one split's rows.

    Raises:
        UserError: The table has no such split, or no case in it.
    """
    column = _columns(table, ["split"])["split"].astype(str)
    if not (column == split).any():
        raise UserError(f"the predictions have no case of split '{split}'{nearest(split, column.unique())}")
    return table.loc[(column == split).to_numpy()]


def _columns(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    for name in names:
        if name not in table.columns:
            raise UserError(f"the predictions lack the column '{name}'{nearest(name, map(str, table.columns))}")
    return table[names]
