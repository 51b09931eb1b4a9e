"""fundus: FIVES, HRF and StoneRounds joined, acquired disease against inherited, as MDF-MLLM has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from fusionbench.data.base import FIXED_COLUMNS, Dataset
from fusionbench.data.diseases import ACQUIRED, NORMAL, TYPES, type_of
from fusionbench.data.fives import Fives
from fusionbench.data.hrf import HRF
from fusionbench.data.options import at_least_one, check_split_seed
from fusionbench.data.stonerounds import StoneRounds
from fusionbench.errors import UserError, nearest
from fusionbench.registry import register
from fusionbench.types import ModalitySpec

SOURCES: dict[str, type[Fives | HRF | StoneRounds]] = {"fives": Fives, "hrf": HRF, "stonerounds": StoneRounds}

_NO_TEXT = (
    "texts come from StoneRounds alone, as do all inherited cases, so without it every label would be acquired or "
    "normal; add stonerounds to data.sources"
)


@register
class Fundus(Dataset):
    """FIVES, HRF and StoneRounds joined: acquired or inherited disease from a fundus photograph and clinical text.

    The data of MDF-MLLM (arXiv 2509.21358), 1,305 pairs in the paper. One case is one photograph, ``cfp``, with
    ``text`` where there is any (StoneRounds) and the mask ``vessels`` where there is one (FIVES, HRF). FIVES keeps its
    official test set; the others are split by a seed; photographs of one StoneRounds case are one group. The paper's
    split is not published.

    Ours: which diseases are acquired and which inherited (``fusionbench/data/diseases.py``), and what is done with the
    215 healthy eyes. The paper's 1,305 pairs count them and it has two categories, so by default they are acquired:
    not inherited.

    Limits: the source is confounded with the label. Every inherited case is a StoneRounds photograph, and only those
    have a text, so a model can tell the classes by camera, framing, or the presence of a text, without looking for
    disease: scores here, the paper's too, are no evidence of diagnosis. Each run and ``check`` say how many cases the
    source alone tells. The text of a case may name its disease: with ``data.text={content: label_free}`` the words of
    types, diseases and modes of inheritance are taken out, and other words may still tell it. Without StoneRounds there
    is neither a text nor an inherited case. Licences are those of the three datasets.

    Args:
        root: Folder that holds the sources' own: the one of FIVES under its full name, ``hrf`` and ``stonerounds``;
            None looks for each where that dataset alone is looked for.
        sources: Which of ``fives``, ``hrf`` and ``stonerounds`` are joined; each has to be there.
        normals: Healthy eyes are ``acquired``, left out (``drop``), or a third ``class``, ``normal``.
        size: Height and width in pixels; MDF takes 512.
        holdout: Share of FIVES's training pictures that is held out for validation.
        fractions: Shares of train, val and test of HRF and StoneRounds.
        split_seed: Seed of all splits.
    """

    def __init__(
        self,
        root: str | None,
        *,
        sources: Sequence[str] = ("fives", "hrf", "stonerounds"),
        normals: Literal["acquired", "drop", "class"] = "acquired",
        size: int = 512,
        holdout: float = 0.1,
        fractions: Sequence[float] = (0.7, 0.1, 0.2),
        split_seed: int = 0,
    ) -> None:
        at_least_one(size=size)
        check_split_seed(split_seed)
        names = _check(sources)
        options: dict[str, dict[str, Any]] = {
            "fives": {"holdout": holdout},
            "hrf": {"fractions": fractions},
            "stonerounds": {"fractions": fractions, "target": "type"},
        }
        self.parts = {n: _open(n, root, {"size": size, "split_seed": split_seed, **options[n]}) for n in names}
        self.normals = normals
        self.classes = (*TYPES, NORMAL) if normals == "class" else TYPES
        self.modalities = {"cfp": ModalitySpec("image", size=size)}
        if "stonerounds" in names:
            self.modalities |= {"text": ModalitySpec("text")}
        else:
            self.lacking = {"text": _NO_TEXT}
        self.telling = tuple(name for part in self.parts.values() for name in part.telling)
        self.labelled_in = "its 'disease' and 'type' in stonerounds.csv"
        self.masks = {"vessels": "cfp"} if {"fives", "hrf"} & set(names) else {}

    def cases(self) -> pd.DataFrame:
        """Return the photographs, with a further column ``source``; see ``Dataset``."""
        cases = pd.concat([self._part(name) for name in self.parts], ignore_index=True)
        if self.normals == "drop":
            cases = cases[cases["disease"] != NORMAL]
        cases["label"] = [self._label(name) for name in cases["disease"]]
        cases = cases[[*FIXED_COLUMNS, "label", *self.modalities, *self.masks, "source"]]
        notes = [note for part in self.parts.values() for note in part.notes]
        self.notes = [*notes, *_told_by("the source", cases["source"], cases["label"])]
        if "text" in cases:
            self.notes += _told_by("whether there is a text", cases["text"] != "", cases["label"])
        return cases.sort_values("case_id", ignore_index=True)

    def _part(self, name: str) -> pd.DataFrame:
        """Return a source's cases, with the columns ``disease`` (or type) and ``source``."""
        part = self.parts[name]
        cases = part.cases()
        cases["disease"] = [part.classes[label] if label >= 0 else "" for label in cases["label"]]
        cases["case_id"], cases["group_id"] = f"{name}-" + cases["case_id"], f"{name}-" + cases["group_id"]
        for column, empty in (("text", ""), ("vessels", ())):
            if column not in cases:
                cases[column] = pd.Series([empty] * len(cases), cases.index, object)
        return cases.assign(source=name)

    def _label(self, disease: str) -> int:
        if disease == NORMAL:
            return self.classes.index(NORMAL if self.normals == "class" else ACQUIRED)
        kind = disease if disease in TYPES else type_of(disease)
        return -1 if kind is None else self.classes.index(kind)


def _check(sources: Sequence[str]) -> tuple[str, ...]:
    """Return the sources in their own order."""
    for name in sources:
        if name not in SOURCES:
            raise UserError(f"data.sources has the unknown dataset '{name}'{nearest(name, SOURCES)}")
    if not sources:
        raise UserError(f"data.sources is empty: name at least one of {', '.join(SOURCES)}")
    return tuple(name for name in SOURCES if name in sources)


def _open(name: str, root: str | None, options: Mapping[str, Any]) -> Fives | HRF | StoneRounds:
    """Build one source; where it is missing, say that it can be left out."""
    source = SOURCES[name]
    try:
        made: Fives | HRF | StoneRounds = source(str(Path(root) / source.folder) if root else None, **options)
    except UserError as error:
        raise UserError(f"fundus joins {name}: {error}; or leave it out of data.sources") from error
    return made


def _told_by(what: str, values: pd.Series, labels: pd.Series) -> list[str]:
    """Return a note on how many labels something tells that is no part of the eye, if more than guessing does."""
    guessed = labels.value_counts(normalize=True).max()
    told = labels.groupby(values).agg(lambda own: own.value_counts().max()).sum() / len(labels)
    if told <= guessed:
        return []
    return [
        f"{what} alone tells the class of {told:.0%} of the cases, a constant guess {guessed:.0%}: scores say little"
    ]
