"""Open-I from its raw collection: the archives of pictures and reports and the files of the official split.

The layout is that of MONAI's TransCheX tutorial (``preprocess_openi.py``). Our choices: pictures are shrunk by area
average and stored grey; white space in reports is single spaces; a picture whose report is not in the collection is
kept, with an empty one.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fusionbench.data.leaks import listed
from fusionbench.data.openi import CLASSES, FILES, says_something, study_of
from fusionbench.data.prepare.openi_reports import read_reports
from fusionbench.data.prepare.openi_splits import read_splits
from fusionbench.data.prepare.pictures import convert_pictures
from fusionbench.errors import UserError
from fusionbench.files import write_bytes

SIZE = 512  # pixels
OFFICIAL = {"train": 3199, "val": 101, "test": 377}  # pictures of TransCheX's split


def prepare(images: Path, reports: Path, splits: Path, out: Path) -> pd.DataFrame:
    """Write ``images/*.png`` and, when all of them are there, ``{train,validation,test}.csv``.

    Small inputs are read first, so that a mistake is told before the long pass over the pictures. Stopped and called
    again, it goes on where it was.

    Args:
        images: ``NLMCXR_png.tgz``; only the frontal pictures, which are those that the splits name, are taken.
        reports: ``NLMCXR_reports.tgz``.
        splits: Folder that ``read_splits`` reads.
        out: Folder of the layout, the ``data.root`` of the dataset.

    Returns:
        One row a picture: ``picture``, ``split``, ``report`` and the findings.

    Raises:
        UserError: An input is missing, damaged, or does not go with the others, or ``out`` cannot be a folder.
    """
    _check_out(out)
    table = read_splits(splits)
    texts = read_reports(reports)
    table["report"] = [texts.get(name, "") for name in table["picture"]]
    missing = convert_pictures(images, set(table["picture"]), out / "images", SIZE)
    if missing:
        raise UserError(
            f"the splits name {len(missing)} of {len(table)} pictures that '{images}' does not hold, "
            f"{listed(sorted(missing))}: is it the whole NLMCXR_png.tgz?"
        )
    _write_tables(table, out)
    return table


def _check_out(out: Path) -> None:
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        what = "it is a file" if there == out else f"'{there}' is a file"
        raise UserError(f"--out '{out}' must be a folder, which is made if need be, but {what}")


def _write_tables(table: pd.DataFrame, out: Path) -> None:
    """Write the three csv files; old ones go first, so that no new file ever stands beside an old one."""
    for file in FILES.values():
        (out / file).unlink(missing_ok=True)
    rows = table.assign(id=table["picture"] + ".png")[["id", "report", *CLASSES]]
    for split, file in FILES.items():
        write_bytes(out / file, rows[table["split"] == split].to_csv(index=False).encode())


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return how many pictures, pictures with words in their report and studies each split has: one row a split."""
    told = table["report"].map(says_something)
    studies = table["picture"].map(study_of)
    counts = pd.DataFrame({"split": table["split"], "study": studies, "told": told}).groupby("split")
    pictures, with_report = counts.size(), counts["told"].sum()
    columns = {"pictures": pictures, "pictures with a report": with_report, "studies": counts["study"].nunique()}
    return pd.DataFrame(columns).reindex(list(FILES), fill_value=0)


def notes(table: pd.DataFrame) -> list[str]:
    """Return what is worth knowing and yet no mistake, one sentence each."""
    found = summary(table)["pictures"].to_dict()
    differing = [
        f"{found[split]} in {split} instead of {count}" for split, count in OFFICIAL.items() if found[split] != count
    ]
    told = [f"the split is not TransCheX's in size: {', '.join(differing)} pictures"] if differing else []
    silent = table.loc[~table["report"].map(says_something), "picture"].tolist()
    if silent:
        told.append(f"{len(silent)} pictures have no report or an empty one, {listed(silent)}: their text is missing")
    return told
