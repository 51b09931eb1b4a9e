"""The same picture in two splits: a leak that ids and groups do not show, found by content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from fusionbench.data.base import Dataset
from fusionbench.data.validate import Finding, subject
from fusionbench.errors import UserError


def refuse_copies(dataset: Dataset, cases: pd.DataFrame, cells: Mapping[str, Sequence[object]]) -> list[str]:
    """Return notes on the same content in two splits; ``cells`` hold readable files alone, as in ``image_files``.

    Raises:
        UserError: There is such content, and the dataset has no known leak.
    """
    files = image_files(cases, cells)
    files["digest"] = files["item"].map(dataset.digest)
    findings = list(split_copies(files, dataset.known_leak))
    for finding in findings:
        if finding.severity == "error":
            raise UserError(finding.message)
    return [finding.message for finding in findings]


def image_files(cases: pd.DataFrame, cells: Mapping[str, Sequence[object]]) -> pd.DataFrame:
    """Return one row for each file of each case, with the columns ``case_id``, ``split``, ``modality`` and ``item``.

    Args:
        cases: The case table.
        cells: The cells of each modality of pictures, aligned with it.
    """
    rows = [
        (case, split, name, item)
        for name, column in cells.items()
        for case, split, cell in zip(cases["case_id"], cases["split"], column, strict=True)
        for item in (cell if isinstance(cell, tuple) else ())
    ]
    return pd.DataFrame(rows, columns=["case_id", "split", "modality", "item"])


def split_copies(files: pd.DataFrame, known_leak: str) -> Iterator[Finding]:
    """Find the same content in two splits: an error, or a warning where the official split is known to leak.

    Args:
        files: What ``image_files`` returns, with a column ``digest``.
        known_leak: The dataset's reason, if it has one.
    """
    leaks = files[files.groupby("digest")["split"].transform("nunique") > 1]
    if leaks.empty:
        return
    one, other = leaks[leaks["digest"] == leaks["digest"].iloc[0]].drop_duplicates("split").iloc[:2].itertuples()
    count = leaks["digest"].nunique()
    yield Finding(
        "warning" if known_leak else "error",
        f"{count} file{' is' if count == 1 else 's are'} identical in two splits, first {_where(one)} and "
        f"{_where(other)}: " + (f"{known_leak}, so scores will be too good" if known_leak else "keep one of them"),
    )


def modality_copies(files: pd.DataFrame) -> Iterator[Finding]:
    """Find cases with the same content in two modalities; ``files`` are as in ``split_copies``."""
    shared = files[files.groupby(["case_id", "digest"])["modality"].transform("nunique") > 1]["case_id"].unique()
    if len(shared):
        yield Finding("warning", f"{subject(shared.tolist())} the same file in two modalities; the case is kept")


def _where(file: Any) -> str:  # noqa: ANN401 - a row of image_files
    return f"'{file.item}' of case '{file.case_id}' ({file.split})"
