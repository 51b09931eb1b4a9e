"""The official split of Open-I: which frontal pictures are in which part, and their findings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fusionbench.data.cells import read_table, whole_number
from fusionbench.data.leaks import listed
from fusionbench.data.openi import CLASSES, FILES, study_of
from fusionbench.data.prepare.plain_pickle import read_plain_npy
from fusionbench.errors import UserError, nearest

_STEMS = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}


def read_splits(folder: Path) -> pd.DataFrame:
    """Return a row for each picture, sorted by name: ``picture`` (no extension), ``split`` and the findings (int).

    Args:
        folder: Holds ``{train,validation,test}.npy``, dicts of ``id_GT`` (names) and ``label_GT`` (N x 14 of 0 and 1),
            or ``.csv`` files with a column ``id`` and one for each finding.

    Raises:
        UserError: A file is missing or holds something else, or a picture is there twice.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}': --splits needs the one that holds train.npy or train.csv")
    table = pd.concat([_read(_file(folder, split)).assign(split=split) for split in FILES], ignore_index=True)
    for name in table["picture"]:
        study_of(name)
    twice = table.loc[table["picture"].duplicated(), "picture"]
    if len(twice):
        raise UserError(f"the files in '{folder}' name {_pictures(twice.unique())} more than once")
    return table.sort_values("picture", ignore_index=True)


def _pictures(names: np.ndarray) -> str:
    return f"'{names[0]}'" if len(names) == 1 else f"{len(names)} pictures ({listed(names.tolist())})"


def _file(folder: Path, split: str) -> Path:
    """Return the file of a split, ``.npy`` before ``.csv``."""
    places = [folder / f"{stem}{suffix}" for suffix in (".npy", ".csv") for stem in _STEMS[split]]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"'{folder}' has no file {' or '.join(place.name for place in places)}")
    return found


def _read(path: Path) -> pd.DataFrame:
    names, labels = _from_npy(path) if path.suffix == ".npy" else _from_csv(path)
    table = pd.DataFrame(labels, columns=list(CLASSES))
    wrong = ~table.isin([0, 1]).all(axis=1)
    if wrong.any():
        raise UserError(f"the labels of '{names[int(wrong.to_numpy().argmax())]}' in '{path}' must each be 0 or 1")
    pictures = [name.removesuffix(".png") for name in names]
    return table.astype(int).assign(picture=pd.Series(pictures, table.index, object))


def _from_npy(path: Path) -> tuple[list[str], np.ndarray]:
    content = read_plain_npy(path)
    if not isinstance(content, dict) or not {"id_GT", "label_GT"} <= content.keys():
        raise UserError(f"'{path}' must hold a dict of 'id_GT', the names of pictures, and 'label_GT', their findings")
    names = [str(name) for name in np.ravel(content["id_GT"])]
    try:
        labels = np.asarray(content["label_GT"], dtype=float)
    except (TypeError, ValueError):
        raise UserError(f"'label_GT' in '{path}' must be a matrix of 0 and 1") from None
    if labels.shape != (len(names), len(CLASSES)):
        shape, wanted = " x ".join(map(str, labels.shape)), f"{len(names)} x {len(CLASSES)}"
        raise UserError(
            f"'label_GT' in '{path}' is {shape}, but {len(names)} pictures with the findings {', '.join(CLASSES)} "
            f"make {wanted}"
        )
    return names, labels


def _from_csv(path: Path) -> tuple[list[str], np.ndarray]:
    table = read_table(path)
    for column in ("id", *CLASSES):
        if column not in table:
            raise UserError(f"'{path}' has no column '{column}'{nearest(column, map(str, table))}")
    return table["id"].tolist(), table[list(CLASSES)].map(whole_number).to_numpy(dtype=float)
