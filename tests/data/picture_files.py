"""A dataset of bare picture files, for tests of what reads and caches them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fusionbench.data.base import Dataset


class Files(Dataset):
    """A dataset of paths that counts what it decodes."""

    def __init__(self) -> None:
        self.decoded: list[str] = []

    def cases(self) -> pd.DataFrame:
        """Return no case: pictures are asked for by their paths."""
        return pd.DataFrame()

    def read_image(self, item: str) -> np.ndarray:
        """Decode a file and note it."""
        self.decoded.append(item)
        return super().read_image(item)
