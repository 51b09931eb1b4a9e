"""Masks: what is drawn on a picture, such as its vessels, decoded once and moved with the picture.

A mask travels in ``Batch.extras`` under its name, (B, 1, H, W) float32 in {0, 1}, beside ``<name>/present``, (B,) bool:
False where a case has no such mask, which is zeros then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd

from fusionbench.data.base import Dataset, text_digest
from fusionbench.data.cases import MaskColumn
from fusionbench.data.copies import Contents
from fusionbench.data.images import ImageCache
from fusionbench.errors import UserError, nearest

ASPECT = 0.01  # by how much height over width of a mask may differ from its picture's


class MaskSource:
    """Decodes a dataset's masks; the pictures that they are drawn on say which shapes are possible.

    Args:
        dataset: Whose masks they are.
        picture_of: The picture that each mask is drawn on.
    """

    def __init__(self, dataset: Dataset, picture_of: Mapping[str, str]) -> None:
        self.dataset, self.picture_of = dataset, picture_of

    def read_image(self, item: str) -> np.ndarray:
        """Return the foreground, uint8 (H, W, 1) in {0, 1}: what is brighter than half of the brightest value.

        Raises:
            UserError: It is no picture, or of another shape than the picture that it is drawn on.
        """
        mask_HWC, picture = self.dataset.read_image(item), self.picture_of[item]
        if mask_HWC.ndim != 3 or mask_HWC.shape[2] not in (1, 3):
            raise UserError(
                f"the mask '{item}' is no picture but has the shape {mask_HWC.shape}; draw one of one slice"
            )
        height, width = mask_HWC.shape[:2]
        high, wide = self.dataset.picture_shape(picture)
        if abs((height / width) / (high / wide) - 1) > ASPECT:
            raise UserError(
                f"the mask '{item}' has {width} x {height} pixels and its picture '{picture}' {wide} x {high}: give a "
                f"mask whose height over width differs by 1 % at most, or remove it"
            )
        values_HW = mask_HWC.max(axis=2)
        foreground: np.ndarray = (values_HW > values_HW.max() / 2)[..., None].astype(np.uint8)
        return foreground

    def digest(self, item: str) -> str:
        """Return a digest of dataset, mask and picture: another picture may refuse the same mask."""
        own = f"{type(self.dataset).__module__} {self.dataset.digest(item)}"
        return text_digest(f"{own} {self.dataset.digest(self.picture_of[item])}")


def nearest_neighbours(mask_HWC: np.ndarray, size: int) -> np.ndarray:
    """Resize a mask to (size, size, C) without any value that it has not."""
    resized = cv2.resize(mask_HWC, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    shaped: np.ndarray = resized.reshape(size, size, mask_HWC.shape[2])
    return shaped


def choose_masks(dataset: Dataset, modalities: Sequence[str], wanted: Sequence[str] | None) -> dict[str, str]:
    """Return the masks that are read, and the pictures that each is drawn on.

    Args:
        dataset: Whose masks they are.
        modalities: Those that are used.
        wanted: Names; None is none.

    Raises:
        UserError: There is no such mask, its pictures are not used, or they are no single pictures.
    """
    names = list(wanted or ())
    for name in names:
        if name in dataset.lacking:
            raise UserError(f"data.masks names '{name}', but {dataset.lacking[name]}")
        if name not in dataset.masks:
            known = nearest(name, dataset.masks) if dataset.masks else "; it has none: leave data.masks out"
            raise UserError(f"{type(dataset).__name__} has no mask '{name}'{known}")
        picture = dataset.masks[name]
        if picture not in modalities:
            raise UserError(f"the mask '{name}' is drawn on '{picture}', which data.modalities leaves out: add it")
        if dataset.modalities[picture].kind != "image":
            raise UserError(f"the mask '{name}' is drawn on '{picture}', which has to be of kind image")
    return {name: dataset.masks[name] for name in names}


def read_masks(
    dataset: Dataset,
    cases: pd.DataFrame,
    cells: Mapping[str, Sequence[Any]],
    wanted: Sequence[str] | None,
    folder: Path | None,
    on_unreadable: Literal["stop", "missing"] = "stop",
) -> tuple[dict[str, MaskColumn], list[str]]:
    """Decode the masks of the modalities in ``cells`` into the cache.

    A case whose picture is missing has no mask.

    Args:
        dataset: Whose masks they are.
        cases: The case table.
        cells: The cells of each modality, aligned with it; those of pictures hold readable items alone.
        wanted: As in ``choose_masks``.
        folder: As in ``ImageCache``.
        on_unreadable: ``stop`` refuses a mask that cannot be used, ``missing`` treats it as no mask.

    Returns:
        The masks by name, and notes on those that are missing.

    Raises:
        UserError: As ``choose_masks``; a case has two masks, or a mask and two pictures; a mask cannot be used.
    """
    columns, notes = dict[str, MaskColumn](), list[str]()
    for name, modality in choose_masks(dataset, list(cells), wanted).items():
        given = [_item(name, modality, row) for row in cases[["case_id", name, modality]].itertuples(index=False)]
        drawn = {m: cell[0] for m, cell in zip(given, cells[modality], strict=True) if m and cell}
        there = [item for item in drawn if dataset.exists(item)]
        cache = ImageCache(folder, dataset.modalities[modality].size, nearest_neighbours, f"masks '{name}'")
        try:
            bad = cache.prepare(MaskSource(dataset, drawn), there, on_unreadable)
        except UserError as error:
            raise UserError(f"{error} (data.masks=null where no mask is needed, as in a prediction)") from None
        good = set(there) - bad
        if lost := len(drawn) - len(good):
            notes.append(f"{lost} of {len(drawn)} masks '{name}' are missing or unusable")
        columns[name] = MaskColumn(modality, [item if item in good else "" for item in given], cache.open)
    return columns, notes


def _item(name: str, modality: str, row: Any) -> str:  # noqa: ANN401 - a row of the case table
    """Return a case's mask, "" if it has none."""
    case, masks, pictures = row[0], row[1] or (), row[2] or ()
    if len(masks) > 1:
        raise UserError(f"case '{case}' has {len(masks)} masks '{name}': join them to one, or set data.masks=null")
    if masks and len(pictures) > 1:
        raise UserError(
            f"case '{case}' has {len(pictures)} pictures '{modality}' and a mask '{name}', which belongs to one: make "
            f"each picture a case, or leave the mask out with data.masks"
        )
    return str(masks[0]) if masks else ""


def mask_contents(dataset: Dataset, contents: Contents, masks: Mapping[str, MaskColumn]) -> Contents:
    """Return what each case holds, its masks added by the digests of their files."""
    return [
        own
        | {f"masks/{name}": [dataset.digest(column.items[row])] for name, column in masks.items() if column.items[row]}
        for row, own in enumerate(contents)
    ]
