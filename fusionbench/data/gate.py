"""The integrity gate: what lets a model see what it is scored on is refused in one sentence, before training.

A group in two splits is refused by ``validate``, and no option lets it through. Here are the leaks that only contents
show; each has a word, and ``data.allow`` with that word makes it a warning, which the run is tagged with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from fusionbench.data.base import Dataset
from fusionbench.data.caches import ImageCaches
from fusionbench.data.copies import Contents, equal_splits, image_files, near_duplicates, split_copies
from fusionbench.data.leaks import KINDS, Leak
from fusionbench.data.standardised import standardised_columns
from fusionbench.data.validate import Finding
from fusionbench.errors import UserError, nearest

_OFFICIAL = ("copies", "near_duplicates")  # what an official split that is known to leak may hold


def check_allow(allow: Sequence[str] | None) -> tuple[str, ...]:
    """Return ``data.allow`` as words.

    Raises:
        UserError: One of them is unknown; names the nearest.
    """
    for word in allow or ():
        if word in ("groups", "group"):
            raise UserError(f"data.allow cannot hold '{word}': a patient in two splits is never let through")
        if word not in KINDS:
            raise UserError(f"data.allow has the unknown word '{word}'{nearest(word, KINDS)}")
    return tuple(allow or ())


def examine(
    dataset: Dataset,
    cases: pd.DataFrame,
    contents: Contents,
    images: ImageCaches,
    cells: Mapping[str, Sequence[Any]],
    allow: Sequence[str],
) -> list[Finding]:
    """Search for leaks between the splits and judge them.

    Args:
        dataset: Whose cases they are.
        cases: The case table.
        contents: Of each case, as ``case_contents`` returns them.
        images: Where the pictures lie decoded.
        cells: The cells of each modality, aligned with the table; those of pictures hold readable items alone.
        allow: The words of what is let through.
    """
    files = image_files(cases, {n: cells[n] for n in cells if dataset.modalities[n].is_image})
    files["digest"] = files["item"].map(dataset.digest)
    equal = list(equal_splits(cases, contents))
    if equal:  # what is said of all validation cases need not be said of their pictures
        test = files.loc[files["split"] == "test", "digest"]
        files = files[(files["split"] != "val") | ~files["digest"].isin(test)]
    tables = {n: s.columns for n, s in dataset.modalities.items() if s.kind == "table" and n in cells}
    pictures, notes = near_duplicates(files, images)
    leaks: Iterator[Leak] = (
        leak
        for search in (
            equal,
            split_copies(files),
            pictures,
            standardised_columns(cases, {n: (columns, cells[n]) for n, columns in tables.items()}),
        )
        for leak in search
    )
    return [*(judge(leak, allow, dataset.known_leak) for leak in leaks), *notes]


def judge(leak: Leak, allow: Sequence[str], known_leak: str) -> Finding:
    """Return the leak as an error, or as a warning if it is allowed or known of an official split."""
    if leak.kind in allow:
        told = f"{leak.found}: let through by data.allow, so scores may be too good"
        return Finding("warning", told, leak.kind, leak.kind)
    if known_leak and leak.kind in _OFFICIAL:
        return Finding("warning", f"{leak.found}: {known_leak}, so scores will be too good", kind=leak.kind)
    told = f"{leak.found}: {leak.remedy}, or let it through with 'data.allow=[{leak.kind}]'"
    return Finding("error", told, kind=leak.kind)
