"""Open-I as it is published: archives of pictures and reports, and the files of the official split."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from layouts import OPENI, OPENI_FILES, openi_case, picture
from PIL import Image


def make_openi_raw(folder: Path, *, studies: int = 14, size: tuple[int, int] = (56, 42)) -> dict[str, Path]:
    """Write Open-I as it is published and return the paths that ``fusionbench prepare openi`` takes.

    Each study has a lateral picture too, which no split names.
    """
    pictures: dict[str, bytes] = {}
    reports: dict[str, bytes] = {}
    for part, file in enumerate(OPENI_FILES.values()):
        ids, targets = [], []
        for study in range(studies):
            names, findings, impression, labels = openi_case(part, study)
            for view, name in enumerate([*names, names[0][:-4] + "3001"]):
                image = picture(labels.index(1), 1000 * part + 3 * study + view, size=max(size), classes=len(OPENI))
                pictures[f"./{name}.png"] = png(image[: size[0], : size[1]])
            reports[f"ecgen-radiology/{100 * part + study + 1}.xml"] = openi_xml(names, findings, impression)
            ids += [f"{name}.png" for name in names]
            targets += [labels] * len(names)
        (folder / "splits").mkdir(parents=True, exist_ok=True)
        content: Any = {"id_GT": np.array(ids), "label_GT": np.array(targets, float)}
        np.save(folder / "splits" / f"{file}.npy", content, allow_pickle=True)
    return {
        "images": tgz(folder / "NLMCXR_png.tgz", pictures),
        "reports": tgz(folder / "NLMCXR_reports.tgz", reports),
        "splits": folder / "splits",
    }


def openi_xml(names: Sequence[str], findings: str, impression: str) -> bytes:
    """Return a report of Open-I."""
    parts = {"COMPARISON": "None.", "INDICATION": "Cough &amp; fever", "FINDINGS": findings, "IMPRESSION": impression}
    texts = "".join(f'<AbstractText Label="{label}">{text}</AbstractText>' for label, text in parts.items())
    images = "".join(f'<parentImage id="{name}"><caption>Chest</caption></parentImage>' for name in names)
    body = f"<MedlineCitation><Article><Abstract>{texts}</Abstract></Article></MedlineCitation>{images}"
    return f'<?xml version="1.0" encoding="utf-8"?><eCitation>{body}</eCitation>'.encode()


def png(image: np.ndarray) -> bytes:
    """Return a picture as a PNG file's content."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def tgz(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a gzipped tar archive of files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path
