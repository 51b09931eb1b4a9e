"""Derm7pt: a clinical and a dermoscopic photograph of each skin lesion, five diagnoses."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from fusionbench.data.base import FIXED_COLUMNS, Dataset, find_root, require
from fusionbench.data.cells import read_table, whole_number
from fusionbench.data.options import at_least_one
from fusionbench.data.splits import SPLITS
from fusionbench.errors import UserError, nearest
from fusionbench.registry import register
from fusionbench.types import ModalitySpec

DIAGNOSES = {
    "BCC": ("basal cell carcinoma",),
    "NEV": (
        "blue nevus", "clark nevus", "combined nevus", "congenital nevus", "dermal nevus", "recurrent nevus",
        "reed or spitz nevus", "nevus",
    ),
    "MEL": (
        "melanoma", "melanoma (in situ)", "melanoma (less than 0.76 mm)", "melanoma (0.76 to 1.5 mm)",
        "melanoma (more than 1.5 mm)", "melanoma metastasis",
    ),
    "SK": ("seborrheic keratosis",),
    "MISC": ("dermatofibroma", "lentigo", "melanosis", "miscellaneous", "vascular lesion"),
}  # fmt: skip
LABELS = {name: label for label, names in enumerate(DIAGNOSES.values()) for name in names}
COLUMNS = {"clinical": "clinic", "dermoscopic": "derm"}
INDEXES = {"train": "train_indexes.csv", "val": "valid_indexes.csv", "test": "test_indexes.csv"}


@register
class Derm7pt(Dataset):
    """Derm7pt: clinical and dermoscopic photographs of skin lesions, 5 diagnoses, official split.

    Class and modality order are EI's. Two train cases or more name one file for both modalities, which ``check``
    reports and the dataset keeps.

    Args:
        root: Folder with ``images`` and ``meta``, or the one that holds ``release_v0``.
        size: Height and width in pixels; EI takes 512.
    """

    folder = "derm7pt"
    holds = "release_v0/images/<folders> and release_v0/meta/{meta,train_indexes,valid_indexes,test_indexes}.csv"
    request = "https://derm.cs.sfu.ca (registration)"
    classes = tuple(DIAGNOSES)

    def __init__(self, root: str | None, *, size: int = 512) -> None:
        at_least_one(size=size)
        folder = find_root(Derm7pt, root)
        self.root = folder / "release_v0" if (folder / "release_v0").is_dir() else folder
        self.modalities = {name: ModalitySpec("image", size=size) for name in COLUMNS}

    def cases(self) -> pd.DataFrame:
        """Return the lesions; see ``Dataset``."""
        meta_file = require(Derm7pt, self.root, "meta", "meta.csv")
        meta = read_table(meta_file)
        for column in ("case_num", "diagnosis", *COLUMNS.values()):
            if column not in meta:
                raise UserError(f"'{meta_file}' has no column '{column}'{nearest(column, map(str, meta))}")
        for name in meta["diagnosis"]:
            if name not in LABELS:
                raise UserError(f"'{meta_file}' holds the unknown diagnosis '{name}'{nearest(name, LABELS)}")
        files = _files(require(Derm7pt, self.root, "images"))
        cases = meta[["case_num"]].rename(columns={"case_num": "case_id"})
        cases = cases.assign(group_id=cases["case_id"], split=self._splits(len(meta)))
        cases["label"] = meta["diagnosis"].map(LABELS).astype(int)
        for name, column in COLUMNS.items():
            cases[name] = meta[column].map(lambda path: self._items(path, files)).astype(object)
        return cases[[*FIXED_COLUMNS, "label", *COLUMNS]].sort_values("case_id", ignore_index=True)

    def _splits(self, rows: int) -> list[str]:
        """Return the split of each row of meta.csv."""
        splits = [""] * rows
        for split in SPLITS:
            path = require(Derm7pt, self.root, "meta", INDEXES[split])
            for text in read_table(path).get("indexes", []):
                index = whole_number(text)
                if index is None or not 0 <= index < rows or splits[index]:
                    problem = f"'{text}', which is no row of meta.csv or is in another split too"
                    raise UserError(f"'{path}' lists {problem}; rows are 0 to {rows - 1}")
                splits[index] = split
        if "" in splits:
            raise UserError(f"row {splits.index('')} of meta.csv is in none of {', '.join(INDEXES.values())}")
        return splits

    def _items(self, path: str, files: dict[str, str]) -> tuple[str, ...]:
        """Return the picture that meta.csv names, whatever the case of its letters on disk."""
        if not path:
            return ()
        exact = str(self.root / "images" / path)
        return (files.get(path, files.get(path.lower(), exact)),)


def _files(folder: Path) -> dict[str, str]:
    """Return the path of each file by its name relative to ``folder``, as it is and in lower case.

    Each folder is listed once, where probing for each spelling would touch the disk for every picture.
    """
    files: dict[str, str] = {}
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            files.setdefault(relative.lower(), str(path))
            files[relative] = str(path)
    return files
