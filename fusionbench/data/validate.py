"""What a case table alone tells of its faults, without decoding any file: the check before every training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from fusionbench.data.base import FIXED_COLUMNS, Dataset
from fusionbench.data.leaks import listed
from fusionbench.data.splits import SPLITS
from fusionbench.errors import UserError, nearest


@dataclass(frozen=True)
class Finding:
    """One thing to know of the data; an error makes them unfit for training.

    Attributes:
        severity: How bad it is.
        message: One sentence.
        allowed: The word of ``data.allow`` that made a warning of what would be an error.
        kind: The leak that it tells of, so that one cause is told once; empty for all else.
    """

    severity: Literal["error", "warning", "note"]
    message: str
    allowed: str = ""
    kind: str = ""


def validate_table(
    dataset: Dataset, cases: pd.DataFrame, *, need_labels: bool, modalities: Sequence[str] | None = None
) -> list[Finding]:
    """Check the case table without decoding any file.

    Args:
        dataset: Whose table it is.
        cases: The table.
        need_labels: Whether it is for training, so that every case needs a label and every split cases.
        modalities: The ones that are used; by default all that the dataset offers.

    Returns:
        Warnings and notes: what does not stop a run but is to be told.

    Raises:
        UserError: The first problem that was found.
    """
    chosen = list(dataset.modalities) if modalities is None else modalities
    require_modalities(dataset, chosen)
    for finding in structure_findings(dataset, cases, chosen):
        raise UserError(finding.message)
    findings = list(table_findings(dataset, cases, presence(dataset, cases, chosen), need_labels))
    for finding in findings:
        if finding.severity == "error":
            raise UserError(finding.message)
    return findings


def presence(dataset: Dataset, cases: pd.DataFrame, modalities: Sequence[str]) -> pd.DataFrame:
    """Return whether each case has each modality (bool, cases x modalities): a picture needs one file that exists."""

    def has(name: str, cell: object) -> bool:
        if dataset.modalities[name].is_image:
            return isinstance(cell, tuple) and any(dataset.exists(item) for item in cell)
        return isinstance(cell, str | tuple) and len(cell) > 0

    return pd.DataFrame({name: [has(name, cell) for cell in cases[name]] for name in modalities}, index=cases.index)


def require_modalities(dataset: Dataset, modalities: Sequence[str]) -> None:
    """Raise a UserError that names the nearest modality if the dataset lacks one."""
    for name in modalities:
        if name not in dataset.modalities:
            raise UserError(f"{type(dataset).__name__} has no modality '{name}'{nearest(name, dataset.modalities)}")


def _target_columns(dataset: Dataset) -> list[str]:
    return list(dataset.classes) if dataset.multilabel else ["label"]


def known_targets(dataset: Dataset, cases: pd.DataFrame) -> pd.DataFrame:
    """Return the targets with -1 where unknown."""
    return cases[_target_columns(dataset)].fillna(-1)


def members(dataset: Dataset, cases: pd.DataFrame) -> pd.DataFrame:
    """Return which cases belong to each class (bool, cases x classes)."""
    targets = known_targets(dataset, cases)
    if dataset.multilabel:
        return targets == 1
    return pd.DataFrame(
        {name: targets["label"] == code for code, name in enumerate(dataset.classes)}, index=cases.index
    )


def lone_classes(dataset: Dataset, cases: pd.DataFrame, present: pd.DataFrame) -> dict[str, str]:
    """Return the modalities of which alone no class can be learned, and what their training cases all are.

    Args:
        dataset: Whose table it is.
        cases: The table, with labels.
        present: Whether each case has each modality (bool, cases x modalities).
    """
    belongs = members(dataset, cases)[cases["split"] == "train"]
    lone = {}
    for name in present:
        own = belongs[present[name].loc[belongs.index]]
        if not (own.any() & ~own.all()).any():
            alike = ", ".join(f"'{label}'" for label in own.columns[own.all()])
            lone[str(name)] = alike if alike and not dataset.multilabel else "the same in every class"
    return lone


def structure_findings(dataset: Dataset, cases: pd.DataFrame, modalities: Sequence[str]) -> Iterator[Finding]:
    """Find what makes the table unreadable for any further check."""
    masks = [name for name, picture in dataset.masks.items() if picture in modalities]
    for column in (*FIXED_COLUMNS, *_target_columns(dataset), *modalities, *masks):
        if column not in cases:
            yield Finding("error", f"the case table has no column '{column}'{nearest(column, cases.columns)}")
            return
    if cases.empty:
        yield Finding("error", "the case table is empty: check that data.root holds the dataset")
    for split in cases.loc[~cases["split"].isin(SPLITS), "split"].unique()[:1]:
        yield Finding("error", f"the case table has the unknown split '{split}'{nearest(str(split), SPLITS)}")


def table_findings(
    dataset: Dataset, cases: pd.DataFrame, present: pd.DataFrame, need_labels: bool
) -> Iterator[Finding]:
    """Find what is wrong with ids, groups, splits, labels and presence; ``present`` is what ``presence`` returns."""
    modalities = [str(name) for name in present]
    yield from _id_findings(dataset, cases)
    yield from _label_findings(dataset, cases, need_labels)
    if need_labels:
        for name in modalities:
            if not present[name][cases["split"] == "train"].any():
                yield Finding("error", f"no training case has the modality '{name}': check its files or leave it out")


def bare_findings(cases: pd.DataFrame, present: pd.DataFrame) -> Iterator[Finding]:
    """Find cases with none of the modalities: a fault of the data, but training and prediction can leave them out."""
    bare = cases.loc[~present.any(axis=1), "case_id"]
    if len(bare):
        yield Finding("error", f"{subject(bare)} no modality: none of {', '.join(map(str, present))} is there")


def _id_findings(dataset: Dataset, cases: pd.DataFrame) -> Iterator[Finding]:
    twice = cases.loc[cases["case_id"].duplicated(), "case_id"]
    if len(twice):
        yield Finding("error", f"case id '{twice.iloc[0]}' is there more than once: each case needs its own")
    spread = cases.groupby("group_id")["split"].unique()
    spread = spread[spread.map(len) > 1]
    if len(spread):
        where = [f"'{group}' in {', '.join(splits)}" for group, splits in spread.items()]
        who = "1 group (patient) is" if len(spread) == 1 else f"{len(spread)} groups (patients) are"
        same = _validation_is_test(cases)
        remedy = "hold other validation cases out of training" if same else "put all cases of a patient into one split"
        reason = dataset.known_leak
        yield Finding(
            "warning" if reason else "error",
            f"{who} in more than one split, {listed(where)}: "
            + (f"{reason}, so scores will be too good" if reason else remedy),
            kind="val_is_test" if same else "",
        )


def _validation_is_test(cases: pd.DataFrame) -> bool:
    """Say whether every group of validation is one of test and none of training."""
    train, val, test = (set(cases.loc[cases["split"] == split, "group_id"]) for split in SPLITS)
    return bool(val) and val <= test - train


def _label_findings(dataset: Dataset, cases: pd.DataFrame, need_labels: bool) -> Iterator[Finding]:
    targets = known_targets(dataset, cases)
    last = 1 if dataset.multilabel else len(dataset.classes) - 1
    wrong = ~targets.isin(range(-1, last + 1)).all(axis=1)
    if wrong.any():
        yield Finding("error", f"{subject(cases.loc[wrong, 'case_id'])} a label out of range: possible are 0 to {last}")
    if not need_labels:
        return
    unknown = (targets == -1).any(axis=1)
    if unknown.any():
        yield Finding("error", f"{subject(cases.loc[unknown, 'case_id'])} no label: check {dataset.labelled_in}")
    if len(dataset.classes) == 1 and not dataset.multilabel:
        yield Finding("error", f"all cases are of class '{dataset.classes[0]}': training needs two classes or more")
    for split in SPLITS:
        if not (cases["split"] == split).any():
            yield Finding("error", f"split '{split}' is empty: training needs cases in {', '.join(SPLITS)}")
    yield from _absent_classes(dataset, cases)


def _absent_classes(dataset: Dataset, cases: pd.DataFrame) -> Iterator[Finding]:
    counts = members(dataset, cases).groupby(cases["split"]).sum()
    for split in counts.index:
        absent = ", ".join(f"'{name}'" for name in counts.columns[counts.loc[split] == 0])
        if absent and split == "train":
            yield Finding("error", f"no training case is of class {absent}: add some, or drop it from the classes")
        elif absent:
            yield Finding("warning", f"no case in {split} is of class {absent}: its scores there are undefined")


def subject(ids: Sequence[str] | pd.Series) -> str:
    """Return ``3 cases have, first 'x',``: the subject of a finding."""
    first = next(iter(ids))
    return f"case '{first}' has" if len(ids) == 1 else f"{len(ids)} cases, first '{first}', have"
