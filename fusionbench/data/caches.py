"""The image caches of a dataset's modalities, one for each size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fusionbench.data.base import Dataset
from fusionbench.data.images import ImageCache


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
