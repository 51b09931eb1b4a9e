"""MRNet: knee MRI exams in three planes, three findings that may occur together."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fusionbench.data.base import FIXED_COLUMNS, Dataset, find_root, require
from fusionbench.data.cells import read_table, whole_number
from fusionbench.data.options import at_least_one, check_split_seed
from fusionbench.data.splits import hold_out
from fusionbench.errors import UserError
from fusionbench.registry import register
from fusionbench.types import ModalitySpec

PLANES = ("axial", "coronal", "sagittal")
CLASSES = ("abnormal", "meniscus", "acl")


@register
class MRNet(Dataset):
    """MRNet: knee MRI in axial, coronal and sagittal planes, 3 findings (multi-label), official valid set as test.

    One exam is one patient, ids being all that the release tells of patients. The official test set is hidden, so the
    valid set is test, and validation is held out of train: seeded, and in proportion from each set of findings.
    Class and modality order are EI's.

    Args:
        root: The folder ``MRNet-v1.0``.
        size: Height and width in pixels; the volumes have 256.
        slices: How many slices of a volume a case shows at a time.
        holdout: How many training exams are held out for validation.
        split_seed: Seed of that choice.
    """

    folder = "MRNet-v1.0"
    holds = "{train,valid}/{axial,coronal,sagittal}/NNNN.npy and {train,valid}-{abnormal,acl,meniscus}.csv"
    request = "https://stanford.redivis.com/datasets/4a2c-4cpkzrn2c (registration and research use agreement)"
    classes = CLASSES
    multilabel = True

    def __init__(
        self, root: str | None, *, size: int = 256, slices: int = 4, holdout: int = 120, split_seed: int = 0
    ) -> None:
        at_least_one(size=size, slices=slices)
        check_split_seed(split_seed)
        self.root = find_root(MRNet, root)
        self.holdout, self.split_seed = holdout, split_seed
        self.modalities = {plane: ModalitySpec("slices", size=size, instances=slices) for plane in PLANES}

    def cases(self) -> pd.DataFrame:
        """Return the exams; see ``Dataset``."""
        train, test = self._part("train"), self._part("valid")
        findings = train[list(CLASSES)].astype(str).agg("".join, axis=1)
        held_out = hold_out(train["group_id"], findings, self.holdout, self.split_seed)
        train["split"] = held_out.map({True: "val", False: "train"})
        test["split"] = "test"
        cases = pd.concat([train, test])
        return cases[[*FIXED_COLUMNS, *CLASSES, *PLANES]].sort_values("case_id", ignore_index=True)

    def _part(self, part: str) -> pd.DataFrame:
        """Return the exams of ``train`` or ``valid``, without their split."""
        labels = {name: _labels(require(MRNet, self.root, f"{part}-{name}.csv")) for name in CLASSES}
        for name in CLASSES[1:]:
            if other := set(labels[name].index) ^ set(labels[CLASSES[0]].index):
                files = f"{part}-{CLASSES[0]}.csv and {part}-{name}.csv"
                raise UserError(f"exam '{min(other)}' is in only one of {files} in '{self.root}'")
        cases = pd.DataFrame(labels).rename_axis("case_id").reset_index()
        cases["group_id"] = cases["case_id"]
        for plane in PLANES:
            folder = require(MRNet, self.root, part, plane)
            cases[plane] = [(str(folder / f"{exam}.npy"),) for exam in cases["case_id"]]
        return cases


def _labels(path: Path) -> pd.Series:
    """Read a csv of ``exam,0 or 1`` that has no header; exams are numbers of four digits."""
    table = read_table(path, names=["exam", "label"])
    exams = table["exam"].str.zfill(4)
    labels = table["label"].map(whole_number)
    if not labels.isin([0, 1]).all() or exams.duplicated().any():
        raise UserError(f"'{path}' must have a line 'exam,0' or 'exam,1' for each exam, once, and no header")
    return labels.astype(int).set_axis(exams)
