"""What a picture looks like, small enough to compare every picture with every other.

A look is a grey thumbnail and perceptual hashes of it: of its eight symmetries (quarter turns, mirrored or not), so
that a turned or mirrored copy is found, and of its middle at two scales, so that a cropped one is. A volume looks like
its middle slice.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import imagehash
import numpy as np
from PIL import Image

from fusionbench.files import write_bytes

VERSION = "1"  # goes up with any change to what a look holds
SIDE = 64  # of the thumbnail, in pixels
SYMMETRIES = 8
CUTS = (1, 2)  # pixels of the thumbnail that a cut takes from each edge: crops of 3 and 6 %
VARIANTS = SYMMETRIES + len(CUTS)
_PIXELS = SIDE * SIDE
# Row interpolation that stretches what a cut leaves to the whole side again: cut = M @ thumbnail @ M.T.
_STRETCH = {cut: cv2.resize(np.eye(SIDE, dtype=np.float32)[cut : SIDE - cut], (SIDE, SIDE)) for cut in CUTS}


class Looks(NamedTuple):
    """The looks of N pictures: thumbnails (N, 64, 64) uint8 and hashes (N, 10) uint64, in the order of ``variant``."""

    thumbnails: np.ndarray
    hashes: np.ndarray


def variant(thumbnails_NHW: np.ndarray, number: int) -> np.ndarray:
    """Return thumbnails (N, 64, 64) turned, mirrored or cut, float32: 0 to 7 are the symmetries, 8 and 9 the cuts."""
    if number >= SYMMETRIES:
        stretch = _STRETCH[CUTS[number - SYMMETRIES]]
        cut: np.ndarray = stretch @ thumbnails_NHW.astype(np.float32) @ stretch.T
        return cut
    turned = np.rot90(thumbnails_NHW, number % 4, axes=(1, 2))
    return (turned if number < 4 else turned[..., ::-1]).astype(np.float32)


def look(pictures_SHWC: np.ndarray) -> np.ndarray:
    """Return the look of decoded pictures (S, H, W, C) uint8, C being 1 or 3, as bytes (4176,)."""
    picture_HWC = np.asarray(pictures_SHWC[len(pictures_SHWC) // 2])
    grey = cv2.cvtColor(picture_HWC, cv2.COLOR_RGB2GRAY) if picture_HWC.shape[-1] == 3 else picture_HWC[..., 0]
    thumbnail = cv2.resize(np.ascontiguousarray(grey), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    hashes = [_hash(variant(thumbnail[None], number)[0]) for number in range(VARIANTS)]
    return np.concatenate([thumbnail.ravel(), *hashes])


def _hash(thumbnail_HW: np.ndarray) -> np.ndarray:
    """Return the 64 bits of the DCT hash as 8 bytes."""
    small = cv2.resize(
        np.ascontiguousarray(thumbnail_HW), (32, 32), interpolation=cv2.INTER_AREA
    )  # what phash works on
    picture = Image.fromarray(np.rint(small).astype(np.uint8))
    return np.packbits(imagehash.phash(picture).hash.ravel())


def stored_look(pictures: Path) -> np.ndarray:
    """Return the look of a cached ``.npy`` file of pictures, kept beside it once it was made."""
    path = pictures.with_suffix(f".look{VERSION}")
    if path.exists():
        kept = np.fromfile(path, np.uint8)
        if len(kept) == _PIXELS + 8 * VARIANTS:
            return kept
    made = look(np.load(pictures, mmap_mode="r"))
    write_bytes(path, made.tobytes())
    return made


def stack(looks: list[np.ndarray]) -> Looks:
    """Join looks as ``look`` returns them."""
    together = np.array(looks, np.uint8).reshape(len(looks), _PIXELS + 8 * VARIANTS)
    hashes = np.ascontiguousarray(together[:, _PIXELS:]).view(np.uint64)
    return Looks(together[:, :_PIXELS].reshape(-1, SIDE, SIDE), hashes)
