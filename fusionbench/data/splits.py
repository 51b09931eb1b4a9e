"""Seeded splits that keep a patient in one split and each class in all of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import get_args

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from fusionbench.errors import UserError
from fusionbench.types import Split

SPLITS: tuple[str, ...] = get_args(Split)
MAX_FOLDS = 20


def split_cases(cases: pd.DataFrame, strata: pd.Series, fractions: Sequence[float], seed: int) -> pd.Series:
    """Divide cases into train, val and test, by group and stratified; the order of the rows does not matter.

    Groups of a stratum that has fewer groups than there are splits stay in train, where a model can learn of them.

    Args:
        cases: Has the columns ``case_id`` and ``group_id``.
        strata: What each case is stratified by, such as its label; aligned with ``cases``.
        fractions: Shares of train, val and test, which add up to 1; a share of 0 makes no such split.
        seed: Chooses among the many possible splits.

    Returns:
        ``train``, ``val`` or ``test`` for each case, aligned with ``cases``.

    Raises:
        UserError: The fractions are no shares of 1, or there are too few groups.
    """
    shares = _shares(fractions)
    table = pd.DataFrame(
        {"case": cases["case_id"].to_numpy(), "group": cases["group_id"].to_numpy(), "stratum": strata.to_numpy(str)}
    ).sort_values(["group", "case"])
    splits = pd.Series(next(iter(shares)), index=table.index)
    rest = table[~table["group"].isin(_rare_groups(table, len(shares)))]
    left = 1.0
    for name in reversed(list(shares)[1:]):
        chosen = _carve(rest, shares[name] / left, seed)
        if len(chosen) == 0:
            raise UserError(
                f"{table['group'].nunique()} groups (patients) in {table['stratum'].nunique()} classes are too few to "
                f"be split into {', '.join(shares)}: name each case's split in the data, or set other fractions"
            )
        splits[chosen] = name
        rest, left = rest.drop(chosen), left - shares[name]
    return pd.Series(splits.sort_index().to_numpy(), index=cases.index, name="split")


def hold_out(groups: pd.Series, strata: pd.Series, n: int, seed: int) -> pd.Series:
    """Choose exactly ``n`` groups at random, in proportion from each stratum, and mark their cases.

    A group's stratum is that of its first case. The order of the rows does not matter as long as a group has one case.

    Returns:
        True for the cases that are held out, aligned with ``groups``.

    Raises:
        UserError: There are not more than ``n`` groups, or ``n`` is negative.
    """
    table = pd.DataFrame({"group": groups.to_numpy(), "stratum": strata.to_numpy(str)}).drop_duplicates("group")
    if not 0 <= n < len(table):
        raise UserError(
            f"{n} groups cannot be held out of {len(table)}: hold out at least 0 and at most {len(table) - 1}"
        )
    rng = np.random.default_rng(seed)
    table = table.sort_values("group")
    table = table.assign(order=rng.random(len(table))).sort_values(["stratum", "order"])
    # Systematic sampling: evenly spaced positions along the strata take each one's share and n in all.
    positions = ((np.arange(n) + rng.random()) * len(table) / max(n, 1)).astype(int)
    return pd.Series(groups.isin(table["group"].iloc[positions]).to_numpy(), index=groups.index)


def rarest_class(targets: pd.DataFrame) -> pd.Series:
    """Return each case's rarest positive class, or ``none``: the stratum of a multi-label case.

    Label sets are too many to stratify by, and it is the rare class that a split may lose.
    """
    order = (targets == 1).sum().sort_values(kind="stable").index
    positive = targets[order] == 1
    return positive.idxmax(axis=1).astype(object).where(positive.any(axis=1), "none")


def _shares(fractions: Sequence[float]) -> dict[str, float]:
    """Return the share of each split that is wanted."""
    if len(fractions) != 3 or min(fractions) < 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        raise UserError(
            f"fractions {list(fractions)} must be three shares of {', '.join(SPLITS)} that are not negative and add up "
            f"to 1, such as [0.7, 0.1, 0.2]"
        )
    return {name: float(share) for name, share in zip(SPLITS, fractions, strict=True) if share > 0}


def _rare_groups(table: pd.DataFrame, least: int) -> pd.Series:
    """Return the groups that hold a stratum of fewer than ``least`` groups."""
    groups = table.groupby("stratum")["group"].transform("nunique")
    return table.loc[groups < least, "group"]


def _carve(table: pd.DataFrame, share: float, seed: int) -> pd.Index:
    """Return the index of about ``share`` of the rows, in whole groups; empty if there are too few of them."""
    if table.empty:
        return table.index
    folds = min(MAX_FOLDS, table["group"].nunique(), int(table["stratum"].value_counts().max()))
    if folds < 2:
        return table.index[:0]
    step = Fraction(1, folds)
    part = min(max(Fraction(share).limit_denominator(folds), step), 1 - step)
    splitter = StratifiedGroupKFold(part.denominator, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        parts = [rows for _, rows in splitter.split(table, table["stratum"], table["group"])]
    # A class with fewer groups than folds is in some folds only: those go first, so that the held-out part has it.
    parts.sort(key=lambda rows: -table["stratum"].iloc[rows].nunique())
    return table.index[np.concatenate(parts[: part.numerator])]
