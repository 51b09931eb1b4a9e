"""Makers of tiny data in each dataset's own layout, quirks included; the label shows in the pixels.

Each maker writes into ``folder`` and returns what the dataset's ``root`` (or, for a csv, its ``path``) must be.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ("train", "val", "test")


def picture(label: int, seed: int, *, size: int = 48, classes: int = 5) -> np.ndarray:
    """Return noise (size, size, 3) uint8 with a bright bar whose height tells the label; no two seeds are alike."""
    image = np.random.default_rng(seed).integers(0, 90, (size, size, 3), dtype=np.uint8)
    height = size // classes
    image[label * height : (label + 1) * height] += 150
    return image


def volume(labels: Sequence[int], seed: int, *, slices: int = 6, size: int = 48) -> np.ndarray:
    """Return noise (slices, size, size) uint8 with a bright bar for each label that is 1."""
    scan = np.random.default_rng(seed).integers(0, 90, (slices, size, size), dtype=np.uint8)
    for number, label in enumerate(labels):
        if label:
            scan[:, number * size // 3 : (number + 1) * size // 3] += 150
    return scan


def save(path: Path, image: np.ndarray) -> None:
    """Write a picture, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def write_rows(path: Path, rows: Iterable[Iterable[object]]) -> Path:
    """Write a csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


CSV_MODALITIES = {
    "photo": {"kind": "image", "column": "photo"},
    "scan": {"kind": "slices", "column": "scan", "instances": 2},
    "notes": {"kind": "text", "column": "notes"},
    "labs": {"kind": "table", "columns": ["age", "sex"]},
}


def make_csv(
    folder: Path, *, patients: int = 24, classes: Sequence[str] = ("healthy", "ill"), split: bool = True
) -> Path:
    """Write ``cases.csv`` with pictures, volumes, text and a table, and return its path.

    Every patient has two cases, every 4th case two photos, every 5th none. With ``split`` a half of the patients is
    train, a quarter each val and test.
    """
    columns = ["case_id", "group_id", *(["split"] if split else []), "label", "photo", "scan", "notes", "age", "sex"]
    rows: list[list[object]] = [columns]
    for case in range(2 * patients):
        patient, label = case // 2, case // 2 % len(classes)
        names = [f"images/{case}.png", *([f"images/{case}b.jpg"] if case % 4 == 0 else [])]
        for number, name in enumerate(names):
            save(folder / name, picture(label, 2 * case + number, classes=len(classes)))
        (folder / "scans").mkdir(exist_ok=True)
        np.save(folder / f"scans/{case}.npy", volume([label], 1000 + case))
        part = [SPLITS[(0, 0, 1, 2)[patient // len(classes) % 4]]] if split else []
        photo = "" if case % 5 == 4 else "|".join(names)
        text = f"the eye looks {classes[label]}, seen by reader {case}"
        table = [40 + 20 * label + case % 7, "female" if case % 3 else ""]
        rows.append(
            [f"c{case:03d}", f"p{patient:02d}", *part, classes[label], photo, f"scans/{case}.npy", text, *table]
        )
    return write_rows(folder / "cases.csv", rows)


def make_mmc_amd(folder: Path, *, layout: str = "release", split: str = "splitAP", eyes: int = 3) -> Path:
    """Write MMC-AMD with ``eyes`` patients for each class and split, and return the folder ``mmc-amd``.

    Of each class's patients the first has both eyes, the second three OCTs; besides, each split has one eye with a
    photograph alone and one with an OCT alone. The split folders lie beside ``mmc-amd`` and hold a link to ImageData.
    """
    root = folder / "mmc-amd"
    folders = ("cfp-clahe-448x448", "oct-median3x3-448x448") if layout == "release" else ("cfp-448x448", "oct")
    images = {"cfp": root / "ImageData" / folders[0], "oct": root / "ImageData" / folders[1]}
    for number, part in enumerate(SPLITS):
        listed: dict[str, list[tuple[str, int]]] = {"cfp": [], "oct": []}
        for label, letter in enumerate("hdpw"):
            for eye in range(eyes):
                patient = 100 * (number + 1) + 10 * label + eye
                for side in ("l", "r") if eye == 0 else ("l",):
                    name = f"{letter}-{patient}-{side}"
                    listed["cfp"].append((f"f-{name}", label))
                    octs = [f"o-{name}_{i}" for i in (2, 0, 1)] if eye == 1 else [f"o-{name}"]
                    listed["oct"] += [(oct_name, label) for oct_name in octs]
        listed["cfp"].append((f"f-h-{number}91", 0))
        listed["oct"].append((f"o-w-{number}92-r_1", 3))
        for modality, names in listed.items():
            for name, label in names:
                save(images[modality] / f"{name}.jpg", picture(label, zlib.crc32(name.encode())))
            _list(folder / f"mmc-amd-{split}-{part}", modality, names)
        link = folder / f"mmc-amd-{split}-{part}" / "ImageData"
        link.symlink_to(Path("..", "mmc-amd", "ImageData"), target_is_directory=True)
    return root


def _list(folder: Path, modality: str, names: Sequence[tuple[str, int]]) -> None:
    for kind, lines in (
        ("ImageSets", [name for name, _ in names]),
        ("EyeSets", sorted({name[2:].split("_")[0] for name, _ in names})),
        ("SubjectSets", sorted({name.split("-")[2].split("_")[0] for name, _ in names})),
        ("annotations", [f"{name} {label}" for name, label in names]),
    ):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{modality}.txt").write_text("\n".join(lines) + "\n")


DIAGNOSES = ("basal cell carcinoma", "clark nevus", "melanoma (in situ)", "seborrheic keratosis", "lentigo")
META = (
    *("case_num", "diagnosis", "seven_point_score", "pigment_network", "streaks", "pigmentation"),
    *("regression_structures", "dots_and_globules", "blue_whitish_veil", "vascular_structures"),
    *(
        "level_of_diagnostic_difficulty",
        "elevation",
        "location",
        "sex",
        "management",
        "clinic",
        "derm",
        "case_id",
        "notes",
    ),
)


def make_derm7pt(folder: Path, *, lesions: int = 4) -> Path:
    """Write ``release_v0`` with ``lesions`` for each diagnosis and split, and return it.

    meta.csv says ``FCL/Fcl001.JPG`` where the disk has ``FCl/Fcl001.jpg``; case 2 names one file for both modalities.
    """
    root = folder / "release_v0"
    meta: list[Sequence[object]] = [META]
    for case in range(3 * lesions * len(DIAGNOSES)):
        label = case % len(DIAGNOSES)
        save(root / "images" / "FCl" / f"Fcl{case:03d}.jpg", picture(label, 2 * case))
        save(root / "images" / "NEL" / f"NEL{case:03d}.JPG", picture(label, 2 * case + 1))
        clinic = f"NEL/NEL{case:03d}.JPG"
        derm = clinic if case == 1 else f"FCL/Fcl{case:03d}.JPG" if case % 2 else f"FCl/Fcl{case:03d}.jpg"
        row = dict.fromkeys(META, "absent") | {"case_num": case + 1, "diagnosis": DIAGNOSES[label], "notes": ""}
        meta.append([*(row | {"clinic": clinic, "derm": derm}).values()])
    write_rows(root / "meta" / "meta.csv", meta)
    size = lesions * len(DIAGNOSES)
    for number, name in enumerate(("train", "valid", "test")):
        rows = [["indexes"], *([i] for i in range(number * size, (number + 1) * size))]
        write_rows(root / "meta" / f"{name}_indexes.csv", rows)
    return root


FINDINGS = ((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1))


def make_mrnet(folder: Path, *, train: int = 30, valid: int = 10) -> Path:
    """Write ``MRNet-v1.0`` with header-less csvs and volumes of 5 to 8 slices, and return it; hold out about 10."""
    root = folder / "MRNet-v1.0"
    for part, exams in (("train", range(train)), ("valid", range(1130, 1130 + valid))):
        found = {exam: FINDINGS[exam % len(FINDINGS)] for exam in exams}
        for exam, (abnormal, meniscus, acl) in found.items():
            for number, plane in enumerate(("axial", "coronal", "sagittal")):
                path = root / part / plane / f"{exam:04d}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, volume((abnormal, meniscus, acl), 3 * exam + number, slices=5 + exam % 4))
        for column, name in enumerate(("abnormal", "meniscus", "acl")):
            write_rows(root / f"{part}-{name}.csv", [[f"{exam:04d}", labels[column]] for exam, labels in found.items()])
    return root


OPENI = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged-Cardiomediastinum", "Fracture", "Lung-Lesion"),
    *("Lung-Opacity", "No-Finding", "Pleural-Effusion", "Pleural_Other", "Pneumonia", "Pneumothorax"),
    "Support-Devices",
)
OPENI_FILES = {"train": "train", "val": "validation", "test": "test"}


TAKEN_OUT = "XXXX"  # what the collection writes for words that were taken out for privacy


def openi_case(part: int, study: int) -> tuple[list[str], str, str, list[int]]:
    """Return a study's frontal pictures, findings, impression and labels; one study is its finding's only one.

    Every 5th study has two frontal pictures, every 7th a report with empty parts.
    """
    number, label = 100 * (part + 1) + study, study % len(OPENI)
    views = ("1001", "2001") if study % 5 == 0 else ("1001",)
    findings = "" if study % 7 == 3 else f"There is {OPENI[label].lower()}, {TAKEN_OUT} seen by reader {number}."
    labels = [int(column in (label, (label + 3 * (study % 2)) % len(OPENI))) for column in range(len(OPENI))]
    impression = "" if study % 7 == 3 else "No acute disease."
    return [f"CXR{number}_IM-{study:04d}-{view}" for view in views], findings, impression, labels


def make_openi(folder: Path, *, studies: int = 14) -> Path:
    """Write ``dataset_proc`` with ``studies`` for each split, and return it; one picture of train is not there."""
    root = folder / "dataset_proc"
    for part, file in enumerate(OPENI_FILES.values()):
        rows: list[list[object]] = [["id", "report", *OPENI]]
        for study in range(studies):
            names, findings, impression, labels = openi_case(part, study)
            for view, name in enumerate(names):
                grey = picture(labels.index(1), 1000 * part + 2 * study + view, size=56, classes=len(OPENI))[..., 0]
                if (part, study) != (0, 1):
                    save(root / "images" / f"{name}.png", grey)
                rows.append([f"{name}.png", f"FINDINGS : {findings} IMPRESSION : {impression}", *labels])
        write_rows(root / f"{file}.csv", rows)
    return root


def vessels(seed: int, size: int = 48) -> np.ndarray:
    """Return a mask (size, size) uint8 of 0 and 255: two lines of 3 pixels, as vessels are."""
    mask = np.zeros((size, size), np.uint8)
    row, column = seed % (size // 2), 7 * seed % (size - 3)
    mask[row : row + 3] = mask[:, column : column + 3] = 255
    return mask


def make_fives(folder: Path, *, train: int = 5, test: int = 2, masks: str = "Groud truth") -> Path:
    """Write FIVES with so many pictures of each class, and return its folder.

    Stems repeat in train and test; the masks' folder is misspelt, as some copies have it, unless said otherwise.
    """
    root = folder / "FIVES A Fundus Image Dataset for AI-based Vessel Segmentation"
    for start, (part, count) in enumerate((("train", train), ("test", test))):
        for number in range(4 * count):
            name, seed = f"{number + 1}_{'ADGN'[number // count]}.png", 1000 * start + number
            save(root / part / "Original" / name, picture(number // count, 20_000 + seed))
            save(root / part / masks / name, np.repeat(vessels(seed)[..., None], 3, -1))
    (root / "Quality Assessment.xlsx").touch()
    return root


def make_hrf(folder: Path, *, people: int = 15) -> Path:
    """Write HRF with so many people of each class, and return its folder; endings are in upper and lower case."""
    root = folder / "hrf"
    for number in range(1, people + 1):
        for label, (word, ending) in enumerate((("dr", "JPG"), ("g", "jpg"), ("h", "jpg"))):
            stem, seed = f"{number:02d}_{word}", 30_000 + 3 * number + label
            save(root / "images" / f"{stem}.{ending}", picture(label, seed, size=60)[:40])
            save(root / "manual1" / f"{stem}.tif", vessels(seed, 60)[:40])
            save(root / "mask" / f"{stem}_mask.tif", np.full((40, 60), 255, np.uint8))
    return root


STONEROUNDS = ("Best Disease", "AR Retinitis Pigmentosa", "Choroideremia")


def make_stonerounds(folder: Path, *, cases: int = 24) -> Path:
    """Write StoneRounds in our layout, and return its folder; every 4th case has a second picture, every 5th no text.

    Every 2nd row leaves the type to the project's table.
    """
    root = folder / "stonerounds"
    rows: list[list[object]] = [["image", "text", "disease", "type"]]
    for case in range(cases):
        disease = case % len(STONEROUNDS)
        for number in range(2 if case % 4 == 0 else 1):
            name = f"SR{case + 1:04d}{'_2' if number else ''}.jpg"
            save(root / "images" / name, picture(4 - disease % 2, 40_000 + 2 * case + number))
            text = "" if case % 5 == 4 else f"A {20 + case} year old reader of letters, seen {case} times."
            rows.append([name, text, STONEROUNDS[disease], "inherited" if case % 2 else ""])
    write_rows(root / "stonerounds.csv", rows)
    return root


def make_fundus(folder: Path) -> Path:
    """Write FIVES, HRF and StoneRounds side by side, and return what holds them."""
    make_fives(folder)
    make_hrf(folder)
    make_stonerounds(folder)
    return folder
