"""The reading of a whole dataset: what is in it, and what is wrong with it, before it costs a training run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from fusionbench.data.base import Dataset
from fusionbench.data.caches import ImageCaches
from fusionbench.data.copies import case_contents, image_files, modality_copies
from fusionbench.data.gate import check_allow, examine
from fusionbench.data.masks import read_masks
from fusionbench.data.splits import SPLITS
from fusionbench.data.texts import TextReader
from fusionbench.data.validate import (
    Finding,
    bare_findings,
    known_targets,
    lone_classes,
    members,
    presence,
    require_modalities,
    structure_findings,
    table_findings,
    validate_table,
)
from fusionbench.errors import UserError

__all__ = ["CheckReport", "Finding", "check", "print_report", "validate_table"]

_ANY_WIDTH = 10_000  # columns: more than any table takes
STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class CheckReport:
    """What ``check`` found.

    Attributes:
        findings: Errors first, then warnings and notes.
        splits: Cases and groups of each split, and its cases of each class: one row a split.
        presence: How many cases have each modality, and each mask: one row a modality, one column a split.
        lone: The modalities of which alone no class can be learned, and what their training cases all are.
    """

    findings: tuple[Finding, ...]
    splits: pd.DataFrame
    presence: pd.DataFrame
    lone: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.severity != "error" for finding in self.findings)


def check(
    dataset: Dataset,
    modalities: Sequence[str],
    allow: Sequence[str] | None = None,
    cache: Path | None = None,
    texts: TextReader | None = None,
    masks: Sequence[str] | None = None,
) -> CheckReport:
    """Read all files of the modalities, as a training run would, and return what is wrong.

    A dataset without any label is checked as one for prediction, in which nothing can leak.

    Args:
        dataset: The case table.
        modalities: The ones to be read.
        allow: The words of ``data.allow``.
        cache: Folder of decoded pictures, which a later run finds there; None: as ``FusionData`` has it.
        texts: Reads the texts; without their tokenizers no length is told. None reads them whole.
        masks: Which masks to look at; None: all that are drawn on the modalities.

    Raises:
        UserError: The dataset lacks a modality, a word is unknown, or the table cannot be built at all.
    """
    require_modalities(dataset, modalities)
    words = check_allow(allow)
    cases = dataset.cases()
    structure = list(structure_findings(dataset, cases, modalities))
    if structure:
        return CheckReport(tuple(structure), pd.DataFrame(), pd.DataFrame())
    texts = texts or TextReader()
    cases, notes = texts.read(dataset, cases, modalities)
    present = presence(dataset, cases, modalities)
    labelled = bool(known_targets(dataset, cases).ge(0).any(axis=None))
    findings = [*table_findings(dataset, cases, present, labelled), *bare_findings(cases, present)]
    if not labelled:
        findings.append(Finding("note", "no case has a label: these data can be predicted, not trained on"))
    images = ImageCaches(dataset, cache)
    cells, problems = _read_cells(images, cases, modalities)
    drawn, faults = _read_masks(dataset, cases, cells, masks, cache)
    findings += [*problems, *faults, *(Finding("note", note) for note in dataset.notes)]
    if labelled:
        refused = {finding.kind for finding in findings if finding.kind and finding.severity == "error"}
        leaks = examine(dataset, cases, case_contents(dataset, cells), images, cells, words)
        findings += [leak for leak in leaks if leak.kind not in refused]
    notes += [note for name in modalities if name in texts.tokenizers for note in texts.tokens(name, cells[name])[1]]
    findings += [Finding("note", note) for note in notes]
    findings.sort(key=lambda finding: list(STYLES).index(finding.severity))
    lone = lone_classes(dataset, cases, present) if labelled else {}
    present = present.join(drawn)
    by_split = present.groupby(cases["split"]).sum().reindex(list(SPLITS), fill_value=0).T
    return CheckReport(tuple(findings), _split_table(dataset, cases), by_split, lone)


def print_report(report: CheckReport, console: Console) -> None:
    """Print the tables, rows and columns exchanged where a table is too wide for the console, and the findings."""
    for title, frame in (("split", report.splits), ("cases with", report.presence)):
        if not frame.empty:
            table = _table(title, frame)
            needed = Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table).maximum
            console.print(table if needed <= console.width else _table(title, frame.T))
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


def _read_cells(
    images: ImageCaches, cases: pd.DataFrame, modalities: Sequence[str]
) -> tuple[dict[str, list[Any]], list[Finding]]:
    """Decode all pictures; return the cells, those of pictures with readable files alone, and what is wrong."""
    dataset, missing, broken = images.dataset, list[str](), list[str]()
    cells = {name: cases[name].tolist() for name in modalities}
    for name in (name for name in modalities if dataset.modalities[name].is_image):
        items = image_files(cases, {name: cells[name]})["item"].unique().tolist()
        there = [item for item in items if dataset.exists(item)]
        good = images.prepare(name, there, dataset.modalities[name].size, "missing")
        missing += [item for item in items if not dataset.exists(item)]
        broken += [item for item in there if item not in good]
        cells[name] = [tuple(item for item in cell or () if item in good) for cell in cells[name]]
    files = image_files(cases, {n: column for n, column in cells.items() if dataset.modalities[n].is_image})
    copies = modality_copies(files.assign(digest=files["item"].map(dataset.digest)))
    return cells, [*_absent(missing), *_broken(dataset, broken), *copies]


def _read_masks(
    dataset: Dataset,
    cases: pd.DataFrame,
    cells: Mapping[str, list[Any]],
    wanted: Sequence[str] | None,
    cache: Path | None,
) -> tuple[pd.DataFrame, list[Finding]]:
    """Decode all masks; return which cases have each (bool), and what is wrong."""
    every = [name for name, picture in dataset.masks.items() if picture in cells]
    try:
        columns, notes = read_masks(dataset, cases, cells, every if wanted is None else wanted, cache)
    except UserError as error:
        return pd.DataFrame(index=cases.index), [Finding("error", str(error))]
    drawn = {f"{name} (mask)": [bool(item) for item in column.items] for name, column in columns.items()}
    return pd.DataFrame(drawn, index=cases.index), [Finding("warning", note) for note in notes]


def _absent(items: Sequence[str]) -> Iterator[Finding]:
    if missing := list(dict.fromkeys(items)):
        message = f"{_count(missing, 'file')} missing, first '{missing[0]}': its modality counts as absent"
        yield Finding("warning", message)


def _broken(dataset: Dataset, items: Sequence[str]) -> Iterator[Finding]:
    if broken := list(dict.fromkeys(items)):
        yield Finding("error", f"{_count(broken, 'file')} unreadable, first: {_reason(dataset, broken[0])}")


def _reason(dataset: Dataset, item: str) -> str:
    try:
        dataset.digest(item)
        dataset.read_image(item)
    except UserError as error:
        return str(error)
    return f"'{item}'"


def _count(things: Collection[object] | pd.DataFrame, noun: str) -> str:
    count = len(things)
    return f"1 {noun} is" if count == 1 else f"{count} {noun}s are"
