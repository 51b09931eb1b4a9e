"""What is read of texts: the content that ``data.text`` asks for, and where they are cut.

Everything is deterministic and the same in every process and for every run seed, so that all runs of a comparison read
the same texts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fusionbench.data.base import Dataset
from fusionbench.types import ModalitySpec, Tokenizer

SEED = 0  # of the order in which texts change hands
UNCUT = 10**7  # tokens: more than any text has
_AT_ONCE = 256  # texts that are tokenised whole
_FINDINGS, _IMPRESSION = (re.compile(rf"\b{heading}\s*:", re.IGNORECASE) for heading in ("findings", "impression"))


@dataclass(frozen=True)
class TextReader:
    """Reads the texts of a case table.

    Args:
        content: As in ``sections.TextOptions``.
        tokenizers: The tokenizer of each text modality's encoder.
        length: Longest text in tokens.
    """

    content: str = "full"
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    length: int = 256

    def read(self, dataset: Dataset, cases: pd.DataFrame, modalities: Iterable[str]) -> tuple[pd.DataFrame, list[str]]:
        """Return the table with the content that is asked for, "" where nothing is left, and notes on what is missing.

        Args:
            dataset: Whose cases they are.
            cases: The case table, whole, so that a text does not depend on what else a run reads.
            modalities: Those that are used; the texts among them are read.
        """
        read, notes = dict[str, list[str]](), list[str]()
        for name in (name for name in modalities if dataset.modalities[name].kind == "text"):
            given = [text.strip() if isinstance(text, str) else "" for text in cases[name]]
            read[name] = self._content(given, dataset, cases)
            notes += self._missing(name, given, read[name])
            if self.content not in ("full", "shuffled") and any(given) and _plain(given) == _plain(read[name]):
                notes.append(f"data.text.content={self.content} changes no text of '{name}'")
            if self.content == "shuffled" and (kept := _own(given, cases["split"], cases["group_id"])):
                notes.append(f"{kept} texts of '{name}' could not be given to another patient of their split")
        return cases.assign(**read), notes

    def _content(self, texts: Sequence[str], dataset: Dataset, cases: pd.DataFrame) -> list[str]:
        if self.content == "findings":
            return [findings(text) for text in texts]
        if self.content == "label_free":
            return label_free(texts, [*dataset.classes, *dataset.telling])
        if self.content == "shuffled_words":
            return [shuffle_words(text) for text in texts]
        if self.content == "shuffled":
            return [texts[row] for row in _other_patients(texts, cases["split"], cases["group_id"])]
        return list(texts)

    def _missing(self, name: str, given: Sequence[str], read: Sequence[str]) -> list[str]:
        """Return a note on the cases whose text is missing, if there are any."""
        count, before = read.count(""), given.count("")
        if not count:
            return []
        emptied = f" ({count - before} of them have nothing left by data.text.content={self.content})"
        return [f"{count} of {len(read)} texts of '{name}' are missing{emptied if count > before else ''}"]

    def tokens(self, name: str, texts: Sequence[str]) -> tuple[list[list[int]], list[str]]:
        """Return a modality's token ids, cut to ``length``, and a note if any text is longer."""
        tokenizer = self.tokenizers[name]
        ids = tokenizer(list(texts), self.length)
        full = [text for text, own in zip(texts, ids, strict=True) if len(own) >= self.length]
        longer = [length for length in _lengths(tokenizer, full) if length > self.length]
        if not longer:
            return ids, []
        told = f"{len(longer):,} of {len(texts):,} texts of '{name}' have more than {self.length:,} tokens and are cut"
        return ids, [f"{told} (longest: {max(longer):,}): set data.text_length"]


def unread(content: str, modalities: Mapping[str, ModalitySpec]) -> list[str]:
    """Return a note if a content of texts is asked for and no modality is a text."""
    if content == "full" or any(spec.kind == "text" for spec in modalities.values()):
        return []
    return [f"data.text.content={content} changes nothing, since {', '.join(modalities)} are read, and no text"]


def _plain(texts: Sequence[str]) -> list[str]:
    """Return texts without what ``label_free`` changes in passing: capitals and white space."""
    return [" ".join(text.lower().split()) for text in texts]


def _lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[int]:
    """Yield how many tokens each text has, with the tokens of a few texts at a time in memory."""
    for start in range(0, len(texts), _AT_ONCE):
        yield from [len(own) for own in tokenizer(list(texts[start : start + _AT_ONCE]), UNCUT)]


def findings(text: str) -> str:
    """Return what stands between the headings ``FINDINGS:`` and ``IMPRESSION:``.

    Without the first it begins with the text, without the second it ends with it, so that a text without headings stays
    whole and no impression is ever part of it.
    """
    start = _FINDINGS.search(text)
    begin = start.end() if start else 0
    end = _IMPRESSION.search(text, begin)
    return text[begin : end.start() if end else len(text)].strip()


def label_words(classes: Iterable[str]) -> set[str]:
    """Return the words of class names in lower case; "no", as in "No-Finding", is no name of anything."""
    return {word for name in classes for word in re.findall(r"[^\W_]+(?:'[^\W_]+)*", name.lower())} - {"no"}


def label_free(texts: Sequence[str], classes: Iterable[str]) -> list[str]:
    """Return texts in lower case without the words of class names, as MC_MMD's code does for chest X-ray reports.

    Whole words alone are removed, also parts of hyphenated ones and beside punctuation: of the class ``Lung-Opacity``
    "lung" and "opacity" go, "opacities" stays. A text of which no letter or digit is left is empty.
    """
    words = sorted(label_words(classes), key=lambda word: (-len(word), word))
    named = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, words))})(?![^\W_])[-_]*")
    bare = [" ".join(named.sub("", text.lower()).split()) if words else text.lower() for text in texts]
    return [text if any(map(str.isalnum, text)) else "" for text in bare]


def shuffle_words(text: str) -> str:
    """Return the words of a text in an order that is random and the same for the same text."""
    words = text.split()
    random.Random(text).shuffle(words)
    return " ".join(words)


def _other_patients(texts: Sequence[str], splits: pd.Series, groups: pd.Series) -> np.ndarray:
    """Return for each case (N,) the row whose text it gets: of its split, and of another group where possible.

    In random order of groups, each with its cases side by side, every case takes the text that lies as far on as the
    largest group is long: nobody's own as long as no group has more than half of the split's texts. Cases without a
    text stay without, and each text is used once. Cases without a split are a split of their own.
    """
    splits = splits.astype(object).where(splits.notna(), "")
    rows, rng = np.arange(len(texts)), np.random.default_rng(SEED)
    there = np.array([bool(text) for text in texts], bool)
    for split in sorted(splits.unique()):
        mine = np.flatnonzero(there & (splits == split).to_numpy())
        if not len(mine):
            continue
        codes, _ = pd.factorize(groups.iloc[mine].astype(str), sort=True)
        rank = rng.permutation(codes.max() + 1)[codes]
        order = mine[np.lexsort((rng.permutation(len(mine)), rank))]
        rows[order] = np.roll(order, -int(np.bincount(codes).max()))
    return rows


def _own(texts: Sequence[str], splits: pd.Series, groups: pd.Series) -> int:
    """Return how many texts stay with their group when they are shuffled."""
    rows, names = _other_patients(texts, splits, groups), groups.astype(str).to_numpy()
    return int(sum(names[row] == names[i] for i, row in enumerate(rows) if texts[i]))
