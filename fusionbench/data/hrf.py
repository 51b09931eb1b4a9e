"""HRF: high-resolution fundus photographs of two diseases and of healthy eyes, with the vessels drawn by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from fusionbench.data.base import Dataset, find_root, require
from fusionbench.data.fives import folder_called, pictures_of
from fusionbench.data.options import at_least_one, check_split_seed
from fusionbench.data.splits import split_cases
from fusionbench.errors import UserError
from fusionbench.registry import register
from fusionbench.types import ModalitySpec

CLASSES = {"dr": "diabetic retinopathy", "g": "glaucoma", "h": "normal"}
NAME = re.compile(r"\d+_(?P<word>dr|g|h)", re.ASCII | re.IGNORECASE)


@register
class HRF(Dataset):
    """HRF: 45 fundus photographs, 2 diseases and normal, seeded split, vessel masks.

    One case is one photograph of one person: ``01_dr``, ``01_g`` and ``01_h`` are three. There is no official split.
    The mask ``vessels`` is drawn on ``cfp``; the masks of the field of view are not read.

    Data: Pattern Recognition Lab, FAU Erlangen. Licence: CC BY 4.0 as far as we know; read it there.

    Args:
        root: Folder with ``images`` and ``manual1``.
        size: Height and width in pixels; the pictures have 3,504 x 2,336, so they are squeezed.
        fractions: Shares of train, val and test, stratified by class.
        split_seed: Seed of the split.
    """

    folder = "hrf"
    holds = "images/{01_dr.JPG,01_g.jpg,01_h.jpg,...} and manual1/*.tif"
    request = "https://www5.cs.fau.de/research/data/fundus-images (no registration)"
    classes = tuple(CLASSES.values())
    masks: Mapping[str, str] = {"vessels": "cfp"}

    def __init__(
        self, root: str | None, *, size: int = 512, fractions: Sequence[float] = (0.7, 0.1, 0.2), split_seed: int = 0
    ) -> None:
        at_least_one(size=size)
        check_split_seed(split_seed)
        self.root = find_root(HRF, root)
        self.fractions, self.split_seed = fractions, split_seed
        self.modalities = {"cfp": ModalitySpec("image", size=size)}

    def cases(self) -> pd.DataFrame:
        """Return the photographs; see ``Dataset``."""
        pictures = pictures_of(require(HRF, self.root, "images"), (".jpg", ".jpeg"))
        if not pictures:
            raise UserError(f"'{self.root / 'images'}' holds no .jpg pictures: is the archive unpacked whole?")
        drawn = folder_called(self.root, ("manual1",))
        masks = {stem.lower(): p for stem, p in (pictures_of(drawn, (".tif", ".tiff")) if drawn else {}).items()}
        cases = pd.DataFrame({"case_id": [stem.lower() for stem in pictures]})
        cases["group_id"] = cases["case_id"]
        cases["label"] = [self._label(stem) for stem in pictures]
        cases.insert(2, "split", split_cases(cases, cases["label"], self.fractions, self.split_seed))
        cases["cfp"] = [(str(path),) for path in pictures.values()]
        cases["vessels"] = [(str(masks[stem]),) if stem in masks else () for stem in cases["case_id"]]
        without = int((~cases["vessels"].map(bool)).sum())
        self.notes = [f"{without} of {len(cases)} pictures of HRF have no vessel mask"] if without else []
        return cases.sort_values("case_id", ignore_index=True)

    def _label(self, stem: str) -> int:
        name = NAME.fullmatch(stem)
        if name is None:
            raise UserError(
                f"'{stem}' in '{self.root / 'images'}' is not named as HRF's pictures are, such as 01_dr; endings are "
                f"{', '.join(CLASSES)}"
            )
        return list(CLASSES).index(name["word"].lower())
