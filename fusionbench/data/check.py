"""The reading of a whole dataset: what is in it, and what is wrong with it, before it costs a training run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fusionbench.data.base import Dataset
from fusionbench.data.copies import image_files, modality_copies, split_copies
from fusionbench.data.splits import SPLITS
from fusionbench.data.threads import in_threads
from fusionbench.data.validate import (
    Finding,
    bare_findings,
    known_targets,
    members,
    presence,
    require_modalities,
    structure_findings,
    table_findings,
    validate_table,
)

__all__ = ["CheckReport", "Finding", "check", "print_report", "validate_table"]

STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class CheckReport:
    """What ``check`` found.

    Attributes:
        findings: Errors first, then warnings and notes.
        splits: Cases and groups of each split, and its cases of each class: one row a split.
        presence: How many cases have each modality: one row a modality, one column a split.
    """

    findings: tuple[Finding, ...]
    splits: pd.DataFrame
    presence: pd.DataFrame

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.severity != "error" for finding in self.findings)


def check(dataset: Dataset, modalities: Sequence[str]) -> CheckReport:
    """Read all files of the modalities and return what is wrong.

    A dataset without any label is checked as one for prediction.

    Raises:
        UserError: The dataset lacks a modality, or its table cannot be built at all.
    """
    require_modalities(dataset, modalities)
    cases = dataset.cases()
    structure = list(structure_findings(dataset, cases, modalities))
    if structure:
        return CheckReport(tuple(structure), pd.DataFrame(), pd.DataFrame())
    present = presence(dataset, cases, modalities)
    labelled = bool(known_targets(dataset, cases).ge(0).any(axis=None))
    findings = [*table_findings(dataset, cases, present, labelled), *bare_findings(cases, present)]
    if not labelled:
        findings.append(Finding("note", "no case has a label: these data can be predicted, not trained on"))
    findings += _file_findings(dataset, cases, modalities)
    findings.sort(key=lambda finding: list(STYLES).index(finding.severity))
    by_split = present.groupby(cases["split"]).sum().reindex(list(SPLITS), fill_value=0).T
    return CheckReport(tuple(findings), _split_table(dataset, cases), by_split)


def print_report(report: CheckReport, console: Console) -> None:
    """Print the tables and the findings."""
    for title, frame in (("split", report.splits), ("cases with", report.presence)):
        if not frame.empty:
            console.print(_table(title, frame))
    for finding in report.findings:
        console.print(f"[{STYLES[finding.severity]}]{finding.severity}[/]: {escape(finding.message)}", soft_wrap=True)
    count = sum(finding.severity == "error" for finding in report.findings)
    console.print(f"{count} error{'' if count == 1 else 's'}" if count else "no errors")


def _table(title: str, frame: pd.DataFrame) -> Table:
    table = Table(title)
    for column in frame.columns:
        table.add_column(escape(str(column)), justify="right")
    for name, row in frame.iterrows():
        table.add_row(escape(str(name)), *(str(value) for value in row))
    return table


def _split_table(dataset: Dataset, cases: pd.DataFrame) -> pd.DataFrame:
    groups = cases.groupby("split")["group_id"]
    table = members(dataset, cases).groupby(cases["split"]).sum()
    table.insert(0, "cases", groups.size())
    table.insert(1, "groups", groups.nunique())
    return table.reindex(list(SPLITS), fill_value=0).astype(int)


def _file_findings(dataset: Dataset, cases: pd.DataFrame, modalities: Sequence[str]) -> Iterator[Finding]:
    files = image_files(cases, {n: cases[n].tolist() for n in modalities if dataset.modalities[n].is_image})
    read = pd.DataFrame(_read_all(dataset, files["item"].unique().tolist()), columns=["item", "digest", "problem"])
    files = files.merge(read, on="item")
    missing = files.loc[files["problem"] == "missing", "item"].unique().tolist()
    if len(missing):
        yield Finding(
            "warning", f"{_count(missing, 'file')} missing, first '{missing[0]}': its modality counts as absent"
        )
    broken = files[files["digest"].isna() & (files["problem"] != "missing")].drop_duplicates("item")
    if len(broken):
        yield Finding("error", f"{_count(broken, 'file')} unreadable, first: {broken['problem'].iloc[0]}")
    readable = files[files["digest"].notna()]
    yield from split_copies(readable, dataset.known_leak)
    yield from modality_copies(readable)


def _read_all(dataset: Dataset, items: Collection[str]) -> list[tuple[str, str | None, str]]:
    """Decode each item, in threads, and return it with its digest, or with None and the problem."""

    def read(item: str) -> tuple[str, str | None, str]:
        if not dataset.exists(item):
            return item, None, "missing"
        try:
            dataset.read_image(item)
            return item, dataset.digest(item), ""
        except (OSError, ValueError) as error:
            return item, None, str(error)

    return in_threads(read, items, "reading files")


def _count(things: Collection[object] | pd.DataFrame, noun: str) -> str:
    count = len(things)
    return f"1 {noun} is" if count == 1 else f"{count} {noun}s are"
