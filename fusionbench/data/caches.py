"""The image caches of a dataset's modalities, one for each size, and what is found by comparing their pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from fusionbench.data import looks, near_copies
from fusionbench.data.assets import home
from fusionbench.data.base import Dataset
from fusionbench.data.images import ImageCache
from fusionbench.data.threads import in_threads
from fusionbench.files import write_json


class ImageCaches:
    """Decodes each modality's pictures to its size, and opens them.

    Args:
        dataset: Whose pictures they are.
        folder: As in ``ImageCache``.
    """

    def __init__(self, dataset: Dataset, folder: Path | None) -> None:
        self.dataset, self.folder = dataset, folder
        self._caches: dict[int, ImageCache] = {}
        self._cache_of: dict[str, ImageCache] = {}

    def prepare(
        self, modality: str, items: Sequence[str], size: int, on_unreadable: Literal["stop", "missing"]
    ) -> set[str]:
        """Decode what is not cached yet; return the items that can be read."""
        cache = self._caches.setdefault(size, ImageCache(self.folder, size))
        self._cache_of[modality] = cache
        return set(items) - cache.prepare(self.dataset, items, on_unreadable)

    def open(self, modality: str, item: str) -> np.ndarray:
        """Return an item's decoded pictures (S, H, W, C)."""
        return self._cache_of[modality].open(item)

    def near_copies(self, files: pd.DataFrame) -> tuple[list[tuple[int, int]], int]:
        """Return the pairs of rows whose pictures look the same in two splits, and how many are too plain to tell.

        What was found is kept by content, so that the same pictures in the same splits are never compared again.

        Args:
            files: Prepared ones, with the columns ``modality``, ``item``, ``digest`` and ``split``.
        """
        sizes = [self._cache_of[name].size for name in files["modality"]]
        rows = list(zip(files["digest"], files["split"], sizes, strict=True))
        key = hashlib.sha256(repr((type(self.dataset), looks.VERSION, near_copies.VERSION, rows)).encode()).hexdigest()
        kept = (self.folder or home() / "images") / "near_copies" / f"{key}.json"
        found = _load(kept)
        if found is None:
            found = self._compare(files)
            write_json(kept, found)
        pairs, plain = found
        return [(int(i), int(j)) for i, j in pairs], int(plain)

    def _compare(self, files: pd.DataFrame) -> tuple[list[tuple[int, int]], int]:
        paths = [self._cache_of[name].path(item) for name, item in zip(files["modality"], files["item"], strict=True)]
        seen = looks.stack(in_threads(looks.stored_look, paths, "hashing looks"))
        rich = np.flatnonzero(~near_copies.plain(seen))
        chosen = looks.Looks(seen.thumbnails[rich], seen.hashes[rich])
        pairs = near_copies.near_copies(chosen, files["split"].to_numpy()[rich])
        return [(int(rich[i]), int(rich[j])) for i, j in pairs], len(files) - len(rich)


def _load(path: Path) -> tuple[list[tuple[int, int]], int] | None:
    """Return what was found before; a damaged file counts as none."""
    try:
        pairs, plain = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return pairs, plain
