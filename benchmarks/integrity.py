"""How long the integrity gate takes on 1,000 cases: with decoding, and once more from its cache.

The pictures are made up and share one layout, as photographs of one kind do, so that many pairs pass the hash's sieve.
"""

from __future__ import annotations

import tempfile
import time
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from fusionbench.data.check import check
from fusionbench.data.csv import Csv

CASES, SIDE = 1000, 448


def picture(seed: int) -> np.ndarray:
    """Return a bright disc (448, 448, 3) uint8 with a texture of its own."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    noise = np.random.default_rng(seed).normal(size=(24, 24, 3)).astype(np.float32)
    texture = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    disc = np.where(np.hypot(x, y) < 0.47, 150 - 200 * (x**2 + y**2), 0)[..., None]
    made: np.ndarray = (disc + 15 * texture * (disc > 0)).clip(0, 255).astype(np.uint8)
    return made


def first_check() -> tuple[float, float]:
    """Time a check of everything against decoding every picture once with OpenCV, in one process."""
    first, _, decoding = _seconds()
    return first, decoding


def second_check() -> tuple[float, float]:
    """Time a check from the cache against the check that wrote it."""
    first, second, _ = _seconds()
    return second, first


@cache
def _seconds() -> tuple[float, float, float]:
    """Write the data; return the seconds of two checks, the second from the first's cache, and of decoding alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in range(CASES):
            cv2.imwrite(str(folder / f"{case}.jpg"), picture(case))
        started = time.perf_counter()
        for case in range(CASES):
            cv2.imread(str(folder / f"{case}.jpg"))
        decoding = time.perf_counter() - started
        table = pd.DataFrame({"case_id": range(CASES), "group_id": range(CASES), "label": np.arange(CASES) % 2})
        splits = np.repeat(["train", "val", "test"], [600, 150, 250])
        table = table.assign(split=splits, photo=[f"{case}.jpg" for case in range(CASES)])
        table.to_csv(folder / "cases.csv", index=False)
        dataset = Csv(name, path="cases.csv", modalities={"photo": {"kind": "image", "column": "photo"}})
        checks = []
        for _ in range(2):
            started = time.perf_counter()
            check(dataset, ["photo"], cache=folder / "cache")
            checks.append(time.perf_counter() - started)
        return checks[0], checks[1], decoding


if __name__ == "__main__":
    print("decoding {2:.1f} s, first check {0:.1f} s, second {1:.1f} s".format(*_seconds()))
