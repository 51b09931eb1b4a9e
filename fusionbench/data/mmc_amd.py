"""MMC-AMD: colour fundus photographs and OCT B-scans of eyes, four classes of macular degeneration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pandas as pd

from fusionbench.data.base import FIXED_COLUMNS, Dataset, find_root, missing_message, require
from fusionbench.data.options import at_least_one
from fusionbench.data.splits import SPLITS
from fusionbench.errors import UserError
from fusionbench.registry import register
from fusionbench.types import ModalitySpec

FOLDERS = {
    "release": {"cfp": "cfp-clahe-448x448", "oct": "oct-median3x3-448x448"},
    "ei": {"cfp": "cfp-448x448", "oct": "oct"},
}
NAME = re.compile(r"[fo]-(?P<eye>[hdpw]-(?P<patient>.+?)(?:-[lr])?)(?:_\d+)?")
SUFFIXES = (".jpg", ".jpeg", ".png")


@register
class MmcAmd(Dataset):
    """MMC-AMD: fundus photographs (cfp) and OCT B-scans of an eye, 4 classes of macular degeneration.

    One case is one eye, with its one photograph or more and its one to five B-scans, sorted by name. Both eyes of a
    patient are one group, the patient being the name without class letter, side and index. Pictures are read from
    ``ImageData`` and the split folders' lists alone, so links to pictures within split folders are not read twice.

    Args:
        root: Folder with ``ImageData`` and, in it or beside it, the split folders.
        layout: ``release`` reads the enhanced pictures of the release, ``ei`` the folders of the EI authors.
        split: ``splitAP`` keeps a patient in one split; ``splitA`` is by eye, which ``check`` warns of.
        size: Height and width in pixels; the release has 448.
        unpaired: Whether eyes that have one modality alone are cases too, the other one missing.
    """

    folder = "mmc-amd"
    holds = "ImageData/<one folder each for CFP and OCT> and mmc-amd-splitAP-{train,val,test}/{ImageSets,annotations}"
    request = "https://forms.gle/jJT6H9N9CY34gFBWA (research only)"
    classes = ("no_amd", "dry_amd", "pcv", "wet_amd")

    def __init__(
        self,
        root: str | None,
        *,
        layout: Literal["release", "ei"] = "release",
        split: Literal["splitAP", "splitA"] = "splitAP",
        size: int = 448,
        unpaired: bool = False,
    ) -> None:
        at_least_one(size=size)
        self.root = find_root(MmcAmd, root)
        self.layout, self.split, self.unpaired = layout, split, unpaired
        self.known_leak = "the published splitA is by eye" if split == "splitA" else ""
        self.modalities = {name: ModalitySpec("image", size=size) for name in FOLDERS[layout]}

    def cases(self) -> pd.DataFrame:
        """Return the eyes; see ``Dataset``."""
        files = {name: self._files(name) for name in self.modalities}
        images = pd.concat(self._images(name, split, files[name]) for name in files for split in SPLITS)
        mixed = images.groupby("case_id")["label"].nunique()
        if (mixed > 1).any():
            raise UserError(f"the pictures of eye '{mixed.idxmax()}' in '{self.root}' have different labels")
        keys = [*FIXED_COLUMNS, "label"]
        items = images.sort_values("path").groupby([*keys, "modality"])["path"].agg(tuple).unstack()
        cases = items.reindex(columns=list(self.modalities))
        if not self.unpaired:
            cases = cases.dropna()
        cases = cases.map(lambda cell: cell if isinstance(cell, tuple) else ())
        return cases.rename_axis(columns=None).reset_index().sort_values("case_id", ignore_index=True)

    def _images(self, modality: str, split: str, files: dict[str, str]) -> pd.DataFrame:
        """Return the pictures of one modality that a split lists: case, group, split, label, modality and path."""
        folder = self._split_folder(split)
        labels = _annotations(require(MmcAmd, folder, "annotations", f"{modality}.txt"))
        rows = []
        for stem in _lines(require(MmcAmd, folder, "ImageSets", f"{modality}.txt")):
            name = NAME.fullmatch(stem)
            if name is None or stem not in labels:
                problem = "has no annotation" if name else "is not named as MMC-AMD's are, such as f-w-101-l_0"
                raise UserError(f"picture '{stem}' in '{folder / 'ImageSets'}' {problem}")
            path = files.get(stem.lower(), str(self._image_folder(modality) / f"{stem}.jpg"))
            rows.append((name["eye"], name["patient"], split, labels[stem], modality, path))
        return pd.DataFrame(rows, columns=[*FIXED_COLUMNS, "label", "modality", "path"])

    def _split_folder(self, split: str) -> Path:
        """Return a split's folder, which lies in the root, beside it, or beside ``ImageData``'s parent."""
        name = f"mmc-amd-{self.split}-{split}"
        places = [self.root / name, self.root.parent / name]
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            raise UserError(missing_message(MmcAmd, places[0]))
        return found

    def _image_folder(self, modality: str) -> Path:
        inner = self.root if (self.root / "ImageData").is_dir() else self.root / "mmc-amd"
        return require(MmcAmd, inner, "ImageData", FOLDERS[self.layout][modality])

    def _files(self, modality: str) -> dict[str, str]:
        """Return the paths of a modality's pictures by lower-case stem, from one listing of its folder."""
        files = sorted(self._image_folder(modality).iterdir())
        return {file.stem.lower(): str(file) for file in files if file.suffix.lower() in SUFFIXES}


def _lines(path: Path) -> list[str]:
    """Return the picture names that a list holds, without extension; one named twice is there once."""
    words = (line.split()[0].removesuffix(".jpg") for line in path.read_text("utf-8").splitlines() if line.strip())
    return list(dict.fromkeys(words))


def _annotations(path: Path) -> dict[str, int]:
    """Return the label of each picture: a line's first word is the picture, its last the label.

    Raises:
        UserError: A label is none of 0 to 3.
    """
    labels = {}
    for line in path.read_text("utf-8").splitlines():
        if words := line.split():
            if words[-1] not in ("0", "1", "2", "3"):
                raise UserError(f"'{path}' gives '{words[0]}' the label '{words[-1]}'; possible are 0, 1, 2 and 3")
            labels[words[0].removesuffix(".jpg")] = int(words[-1])
    return labels
