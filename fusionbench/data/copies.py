"""The same content in two splits: a leak that ids and groups do not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from fusionbench.data.base import Dataset
from fusionbench.data.caches import ImageCaches
from fusionbench.data.leaks import Leak, listed
from fusionbench.data.splits import SPLITS
from fusionbench.data.validate import Finding, subject

Contents = list[dict[str, list[str]]]
EQUAL = 0.9  # share of the smaller split whose cases the other has too


def case_contents(dataset: Dataset, cells: Mapping[str, Sequence[Any]]) -> Contents:
    """Return what each case holds, by modality: digests of pictures, and the text of all else."""

    def content(name: str, cell: Any) -> list[str]:  # noqa: ANN401 - a cell of any kind
        if dataset.modalities[name].is_image:
            return [dataset.digest(item) for item in cell]
        return [str(v) for v in cell] if isinstance(cell, list | tuple) else [str(cell)]

    rows = zip(*cells.values(), strict=True)
    return [{name: content(name, cell) for name, cell in zip(cells, row, strict=True)} for row in rows]


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


def equal_splits(cases: pd.DataFrame, contents: Contents) -> Iterator[Leak]:
    """Find validation and test to hold the same cases under other ids.

    At least nine of ten cases of the smaller split have their like in the other. Where few different contents are
    possible, as with ratings, that may be so by chance: contents that training holds too are then no evidence, nor are
    contents so few that one stands for more than two cases.
    """
    keys = pd.Series([repr(sorted(content.items())) for content in contents], index=cases.index)
    counts = {split: Counter(keys[cases["split"] == split]) for split in SPLITS}
    both, smaller = counts["val"] & counts["test"], min(counts["val"].total(), counts["test"].total())
    own = [key for key in both if key not in counts["train"]]
    known = both.total() - sum(both[key] for key in own)
    if not own or known > (1 - EQUAL) * smaller or both.total() < EQUAL * smaller or 2 * len(own) < smaller:
        return
    named = {split: _named(keys, cases, split) for split in ("val", "test")}
    pairs = [f"'{named['val'][key]}' (val) is '{named['test'][key]}' (test)" for key in own]
    yield Leak(
        "val_is_test",
        f"validation equals test: {both.total()} of {counts['val'].total()} validation cases have the content of a "
        f"test case, {listed(pairs)}",
        "hold validation cases out of training instead",
    )


def _named(keys: pd.Series, cases: pd.DataFrame, split: str) -> dict[str, str]:
    """Return the case of each content of a split, the last of several."""
    here = cases["split"] == split
    return dict(zip(keys[here], cases["case_id"][here].astype(str), strict=True))


def split_copies(files: pd.DataFrame) -> Iterator[Leak]:
    """Find identical files in two splits; ``files`` is what ``image_files`` returns, with a column ``digest``."""
    leaks = files[files.groupby("digest")["split"].transform("nunique") > 1]
    if leaks.empty:
        return
    firsts = leaks.drop_duplicates(["digest", "split"]).groupby("digest", sort=False).head(2)
    pairs = [" and ".join(map(_where, pair.itertuples())) for _, pair in firsts.groupby("digest", sort=False)]
    what = "1 file is" if len(pairs) == 1 else f"{len(pairs)} files are"
    yield Leak("copies", f"{what} identical in two splits, {listed(pairs)}", "keep one of them")


def near_duplicates(files: pd.DataFrame, images: ImageCaches) -> tuple[list[Leak], list[Finding]]:
    """Find pictures that are the same in two splits though their files differ.

    Returns:
        The leak, if there is one, and a note on pictures too plain to be compared.
    """
    distinct = files.drop_duplicates(["digest", "split"], ignore_index=True)
    found, plain = images.near_copies(distinct)
    found = [(i, j) for i, j in found if distinct["digest"][i] != distinct["digest"][j]]
    rows = list(distinct.itertuples())
    pairs = [f"{_where(rows[i])} and {_where(rows[j])}" for i, j in found]
    what = "1 pair of pictures looks" if len(pairs) == 1 else f"{len(pairs)} pairs of pictures look"
    remedy = "keep one of each pair"
    leaks = [Leak("near_duplicates", f"{what} the same in two splits, {listed(pairs)}", remedy)] if pairs else []
    note = f"{plain} of {len(distinct)} pictures are too plain to be told apart by their looks"
    return leaks, [Finding("note", f"{note}: only their files were compared")] if plain else []


def modality_copies(files: pd.DataFrame) -> Iterator[Finding]:
    """Find cases with the same content in two modalities; ``files`` are as in ``split_copies``."""
    shared = files[files.groupby(["case_id", "digest"])["modality"].transform("nunique") > 1]["case_id"].unique()
    if len(shared):
        yield Finding("warning", f"{subject(shared.tolist())} the same file in two modalities; the case is kept")


def _where(file: Any) -> str:  # noqa: ANN401 - a row of image_files
    return f"'{file.item}' of case '{file.case_id}' ({file.split})"
