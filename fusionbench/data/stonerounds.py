"""StoneRounds: fundus photographs of inherited eye diseases, each with the words of its case."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import pandas as pd

from fusionbench.data.base import FIXED_COLUMNS, Dataset, find_root, require
from fusionbench.data.cells import read_table
from fusionbench.data.diseases import DISEASES, MODES, TYPES, type_of
from fusionbench.data.options import at_least_one, check_split_seed
from fusionbench.data.splits import split_cases
from fusionbench.errors import UserError, nearest
from fusionbench.registry import register
from fusionbench.types import ModalitySpec

COLUMNS = ("image", "text", "disease", "type")
NAME = re.compile(r"(?P<case>SR\d+)(?:_\d+)?", re.ASCII | re.IGNORECASE)


@register
class StoneRounds(Dataset):
    """StoneRounds Disease Atlas: photographs of inherited eye diseases with clinical text, in a csv of our layout.

    The atlas is a web site without an archive, so the layout is ours: ``stonerounds.csv`` beside ``images/``, one row a
    photograph, with the columns ``image`` (a file in ``images/``), ``text`` (may be empty), ``disease`` and ``type``
    (``acquired``, ``inherited``, or empty where ``fusionbench/data/diseases.py`` knows the disease). ``SR0006_2.jpg``
    is a second photograph of case ``SR0006``; photographs of a case are one group.

    Limits: the text of a case may name its disease, and so its label; with ``data.text={content: label_free}`` the
    words of the classes are taken out, with ``target: type`` also those of all diseases in the csv and in the project's
    table, and of modes of inheritance: word by word, so that "eye" or "age" goes too. Other words may still tell it.
    Cases are https://stonerounds.org/SR/SR0006 and the like. No licence text was found: ask the authors.

    Args:
        root: Folder with ``stonerounds.csv`` and ``images``.
        target: What the classes are: each ``disease``, or its ``type``.
        size: Height and width in pixels.
        fractions: Shares of train, val and test, by case and stratified by class.
        split_seed: Seed of the split.
    """

    folder = "stonerounds"
    holds = "stonerounds.csv (columns image, text, disease, type) and images/*"
    request = "https://stonerounds.org (one page a case; there is no archive to download)"

    def __init__(
        self,
        root: str | None,
        *,
        target: Literal["disease", "type"] = "disease",
        size: int = 512,
        fractions: Sequence[float] = (0.7, 0.1, 0.2),
        split_seed: int = 0,
    ) -> None:
        at_least_one(size=size)
        check_split_seed(split_seed)
        self.root = find_root(StoneRounds, root)
        self.fractions, self.split_seed, self.target = fractions, split_seed, target
        self.modalities = {"cfp": ModalitySpec("image", size=size), "text": ModalitySpec("text")}
        self._rows = _read(require(StoneRounds, self.root, "stonerounds.csv"))
        self.labelled_in = "its 'disease' in stonerounds.csv"
        if target == "type":
            self.labelled_in = "its 'disease' and 'type' in stonerounds.csv"
            self.telling = (*DISEASES, *MODES, *sorted(set(self._rows["disease"])))
            self.classes = TYPES
            self._values, self.notes = _types(self._rows, self.root / "stonerounds.csv")
        else:
            self._values = self._rows["disease"].map(lambda name: " ".join(name.lower().split()))
            self.classes = tuple(sorted(set(self._values) - {""}))

    def cases(self) -> pd.DataFrame:
        """Return the photographs; see ``Dataset``."""
        images = require(StoneRounds, self.root, "images")
        files = {path.name.lower(): path for path in sorted(images.iterdir())}
        cases = pd.DataFrame({"case_id": [Path(name).stem for name in self._rows["image"]]})
        cases["group_id"] = [_case_of(name) for name in self._rows["image"]]
        cases["label"] = [self.classes.index(value) if value else -1 for value in self._values]
        cases["split"] = split_cases(cases, cases["label"], self.fractions, self.split_seed)
        cases["cfp"] = [(str(files.get(name.lower(), images / name)),) for name in self._rows["image"]]
        cases["text"] = self._rows["text"]
        return cases[[*FIXED_COLUMNS, "label", "cfp", "text"]].sort_values("case_id", ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    table = read_table(path)
    for column in COLUMNS:
        if column not in table:
            raise UserError(f"'{path}' has no column '{column}'{nearest(column, map(str, table))}")
    if table.empty:
        raise UserError(f"'{path}' has no rows: give one for each photograph")
    return table


def _case_of(image: str) -> str:
    """Return the case that a photograph belongs to: ``SR0006`` of ``SR0006_2.jpg``."""
    if Path(image).name != image:
        raise UserError(f"'{image}' in stonerounds.csv has a folder: give the name of a file in images/ alone")
    name = NAME.fullmatch(Path(image).stem)
    if name is None:
        raise UserError(f"'{image}' in stonerounds.csv is not named after its case, such as SR0006.jpg or SR0006_2.jpg")
    return name["case"].upper()


def _types(rows: pd.DataFrame, path: Path) -> tuple[pd.Series, list[str]]:
    """Return each photograph's type, "" if it has neither type nor disease, and notes on the table's silence."""
    types, unknown, other = [], [], []
    for image, disease, given in rows[["image", "disease", "type"]].itertuples(index=False):
        known, stated = type_of(disease), given.lower()
        if stated and stated not in TYPES:
            raise UserError(f"'{path}' gives '{image}' the unknown type '{given}'{nearest(stated, TYPES)}")
        if disease and not stated and known is None:
            raise UserError(
                f"'{path}' gives '{image}' no type, and its disease '{disease}' is not in fusionbench's table"
                f"{_meant(disease)}: write {' or '.join(TYPES)} into the column type"
            )
        if disease and known is None:
            unknown.append(disease)
        elif known and stated and known != stated:
            other.append(image)
        types.append(stated or known or "")
    return pd.Series(types, rows.index, object), [*_unknown(unknown), *_other(other)]


def _meant(disease: str) -> str:
    """Return a hint at the disease of the table that was meant, if one is like it."""
    close = get_close_matches(" ".join(disease.lower().split()), DISEASES, n=1, cutoff=0.8)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _unknown(diseases: Sequence[str]) -> list[str]:
    if not diseases:
        return []
    names = list(dict.fromkeys(diseases))
    count = "1 disease" if len(names) == 1 else f"{len(names)} diseases"
    told = f"{count} of stonerounds.csv {'is' if len(names) == 1 else 'are'} not in fusionbench's table"
    return [f"{told}, first '{names[0]}'{_meant(names[0])}: the label is the type that the csv states"]


def _other(images: Sequence[str]) -> list[str]:
    if not images:
        return []
    rows = "1 row of stonerounds.csv states" if len(images) == 1 else f"{len(images)} rows of stonerounds.csv state"
    told = f"{rows} another type than fusionbench's table has for the disease, first '{images[0]}'"
    return [f"{told}: the label is the type that the csv states"]
