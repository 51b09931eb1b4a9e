"""Open-I: frontal chest X-rays with the radiologist's report, fourteen findings that may occur together."""

from __future__ import annotations

import re

import pandas as pd

from fusionbench.data.base import FIXED_COLUMNS, Dataset, find_root, require
from fusionbench.data.cells import read_table, whole_number
from fusionbench.data.options import at_least_one
from fusionbench.errors import UserError, nearest
from fusionbench.registry import register
from fusionbench.types import ModalitySpec

CLASSES = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged-Cardiomediastinum", "Fracture", "Lung-Lesion"),
    *("Lung-Opacity", "No-Finding", "Pleural-Effusion", "Pleural_Other", "Pneumonia", "Pneumothorax"),
    "Support-Devices",
)  # in the order and the spelling of the csv files
FILES = {"train": "train.csv", "val": "validation.csv", "test": "test.csv"}
NAME = re.compile(r"(?P<study>CXR\d+)_[\w.-]+", re.ASCII)
_HEADING = re.compile(r"(FINDINGS|IMPRESSION) ?:")


@register
class OpenI(Dataset):
    """Open-I (Indiana University): frontal chest X-rays and reports, 14 findings (multi-label), TransCheX's split.

    One case is one frontal picture with the report of its study; a study may have two, and all pictures of a study
    (``CXR123`` of ``CXR123_...``) are one group. A report of headings alone is a missing text. The official split has
    3,199, 101 and 377 cases. Its test part has a single pneumothorax, so scores of single classes say little.

    Limits: the labels were read off the reports, so a report spells out its labels.

    Args:
        root: Folder with ``images`` and the csv files, or the one that holds ``dataset_proc``.
        size: Height and width in pixels; the prepared pictures have 512, TransCheX takes 256.
    """

    folder = "openi"
    holds = "dataset_proc/images/*.png and dataset_proc/{train,validation,test}.csv, which 'fusionbench prepare' makes"
    request = "https://openi.nlm.nih.gov (no registration; 'fusionbench prepare --help' names the files)"
    classes = CLASSES
    multilabel = True
    known_leak = "the official split is by picture, and a study may have two"

    def __init__(self, root: str | None, *, size: int = 256) -> None:
        at_least_one(size=size)
        folder = find_root(OpenI, root)
        self.root = folder / "dataset_proc" if (folder / "dataset_proc").is_dir() else folder
        self.modalities = {"xray": ModalitySpec("image", size=size), "report": ModalitySpec("text")}

    def cases(self) -> pd.DataFrame:
        """Return the pictures; see ``Dataset``."""
        cases = pd.concat([self._part(split) for split in FILES])
        return cases[[*FIXED_COLUMNS, *CLASSES, *self.modalities]].sort_values("case_id", ignore_index=True)

    def _part(self, split: str) -> pd.DataFrame:
        """Return the cases of one csv file."""
        path = require(OpenI, self.root, FILES[split])
        images = require(OpenI, self.root, "images")
        table = read_table(path)
        for column in ("id", "report", *CLASSES):
            if column not in table:
                raise UserError(f"'{path}' has no column '{column}'{nearest(column, map(str, table))}")
        cases = table[list(CLASSES)].map(whole_number)
        if (wrong := ~cases.isin([0, 1]).all(axis=1)).any():
            raise UserError(f"the findings of '{table['id'][wrong].iloc[0]}' in '{path}' must each be 0 or 1")
        cases = cases.astype(int)
        cases["case_id"] = table["id"].str.removesuffix(".png")
        cases["group_id"] = [study_of(name) for name in cases["case_id"]]
        cases["split"] = split
        cases["xray"] = pd.Series([(str(images / f"{name}.png"),) for name in cases["case_id"]], cases.index, object)
        cases["report"] = table["report"].where(table["report"].map(says_something), "").astype(object)
        return cases


def study_of(picture: str) -> str:
    """Return the study that a picture belongs to: ``CXR123`` of ``CXR123_IM-0001-1001``.

    Raises:
        UserError: The name is none of the collection's.
    """
    name = NAME.fullmatch(picture)
    if name is None:
        raise UserError(f"'{picture}' is not named as Open-I's pictures are, such as CXR1_1_IM-0001-3001")
    return name["study"]


def says_something(report: str) -> bool:
    """Say whether a report has a word beside the headings FINDINGS and IMPRESSION."""
    return re.search(r"\w", _HEADING.sub("", report)) is not None
