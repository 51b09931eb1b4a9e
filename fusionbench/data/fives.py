"""FIVES: fundus photographs of three diseases and of healthy eyes, with the vessels drawn by hand."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from fusionbench.data.base import FIXED_COLUMNS, Dataset, find_root, require
from fusionbench.data.options import at_least_one, check_split_seed
from fusionbench.data.splits import hold_out
from fusionbench.errors import UserError, check_number
from fusionbench.registry import register
from fusionbench.types import ModalitySpec

CLASSES = {"A": "age-related macular degeneration", "D": "diabetic retinopathy", "G": "glaucoma", "N": "normal"}
MASKS = ("ground truth", "groud truth")  # the second is how some copies spell it
NAME = re.compile(r"\d+_(?P<letter>[ADGN])", re.ASCII)


@register
class Fives(Dataset):
    """FIVES: 800 fundus photographs, 3 diseases and normal, official test set, vessel masks.

    One case is one photograph; the release does not tell which eyes are one patient's, so each is a group. File names
    repeat in the folders train and test, so a case id begins with its folder. Validation is held out of train: seeded,
    and in proportion from each class. The mask ``vessels`` is drawn on ``cfp``.

    Data: figshare, doi 10.6084/m9.figshare.19688169.v1. Licence: CC BY 4.0 as far as we know; read it there.

    Args:
        root: The dataset's folder with ``train`` and ``test``, or the one that holds it.
        size: Height and width in pixels; the pictures have 2,048.
        holdout: Share of the training pictures that is held out for validation.
        split_seed: Seed of that choice.
    """

    folder = "FIVES A Fundus Image Dataset for AI-based Vessel Segmentation"
    holds = "{train,test}/Original/*.png and {train,test}/Ground truth/*.png"
    request = "https://doi.org/10.6084/m9.figshare.19688169.v1 (no registration)"
    classes = tuple(CLASSES.values())
    masks: Mapping[str, str] = {"vessels": "cfp"}

    def __init__(self, root: str | None, *, size: int = 512, holdout: float = 0.1, split_seed: int = 0) -> None:
        at_least_one(size=size)
        check_number("data.holdout", holdout, least=0, below=1)
        check_split_seed(split_seed)
        folder = find_root(Fives, root)
        self.root = folder / self.folder if (folder / self.folder).is_dir() else folder
        self.holdout, self.split_seed = holdout, split_seed
        self.modalities = {"cfp": ModalitySpec("image", size=size)}

    def cases(self) -> pd.DataFrame:
        """Return the photographs; see ``Dataset``."""
        train, test = self._part("train"), self._part("test")
        held_out = hold_out(train["group_id"], train["label"], round(self.holdout * len(train)), self.split_seed)
        train["split"], test["split"] = held_out.map({True: "val", False: "train"}), "test"
        cases = pd.concat([train, test])
        without = int((~cases["vessels"].map(bool)).sum())
        self.notes = [f"{without} of {len(cases)} pictures of FIVES have no vessel mask"] if without else []
        return cases[[*FIXED_COLUMNS, "label", "cfp", "vessels"]].sort_values("case_id", ignore_index=True)

    def _part(self, part: str) -> pd.DataFrame:
        """Return the cases of the folder ``train`` or ``test``, without their split."""
        pictures = pictures_of(require(Fives, self.root, part, "Original"))
        drawn = folder_called(self.root / part, MASKS)
        masks = pictures_of(drawn) if drawn else {}
        if not pictures:
            raise UserError(f"'{self.root / part / 'Original'}' holds no .png pictures: is the archive unpacked whole?")
        rows = [(f"{part}_{stem}", self._label(path), (str(path),)) for stem, path in pictures.items()]
        cases = pd.DataFrame(rows, columns=["case_id", "label", "cfp"])
        cases["vessels"] = [(str(masks[stem]),) if stem in masks else () for stem in pictures]
        return cases.assign(group_id=cases["case_id"])

    def _label(self, path: Path) -> int:
        name = NAME.fullmatch(path.stem)
        if name is None:
            letters = ", ".join(f"{letter} ({disease})" for letter, disease in CLASSES.items())
            raise UserError(f"'{path}' is not named as FIVES's pictures are, such as 1_A.png; letters are {letters}")
        return list(CLASSES).index(name["letter"])


def folder_called(parent: Path, names: Collection[str]) -> Path | None:
    """Return the first folder whose name in lower case is one of these, None if there is none."""
    inside = sorted(parent.iterdir()) if parent.is_dir() else []
    return next((path for path in inside if path.name.lower() in names and path.is_dir()), None)


def pictures_of(folder: Path, suffixes: tuple[str, ...] = (".png",)) -> dict[str, Path]:
    """Return the pictures in a folder by their names without suffix, in order; suffixes may be in upper case."""
    files = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return {path.stem: path for path in files if path.suffix.lower() in suffixes}
