"""The same picture in two splits though its bytes differ: saved anew, resized, brightened, cropped, turned or mirrored.

Perceptual hashes are the sieve. Of fundus photographs, OCTs or MRIs of different patients several in a hundred pass it,
because they share their layout; so what passes is confirmed on the pixels. The two thumbnails are aligned (ECC, affine)
and must correlate in nearly every small block, where different patients share nothing but the layout.

Measured on made-up fundus photographs, OCTs, dermoscopy and MRI: unrelated pictures reach .84 in the confirmation, and
copies .97 when saved anew, .91 when cropped by 3 %, .88 when by 5 %; of 1,000 fundus photographs no pair is flagged.
Every copy saved anew, resized, brightened, turned or mirrored is found, and of those cropped by 3 % off-centre seven
in ten fundus photographs and nine in ten of the others: the rest do not pass the sieve.

Silhouettes are not compared, as small round shapes of two patients may truly look the same: without that rule 105,964
of 273,759 pairs of LIDC's shapes are flagged, and at a share of .3 of blocks with detail none is.
"""

from __future__ import annotations

from itertools import combinations

import cv2
import numpy as np
import pandas as pd

from fusionbench.data.looks import SIDE, SYMMETRIES, VARIANTS, Looks, variant
from fusionbench.data.splits import SPLITS
from fusionbench.data.threads import in_threads

VERSION = "1"  # goes up with any change to what is found
BITS_APART = 12  # of 64: the sieve
WORTH_ALIGNING = 0.5  # mean correlation of blocks before alignment
SAME = 0.9  # mean correlation of blocks after it
FLAT = 4.0  # grey levels squared: a block of less variance is flat but for noise
LEAST_DETAIL = 0.35  # share of blocks that are not flat, below which a picture is too plain
_BLOCK = 8  # pixels of the thumbnail
_CHUNK = 1 << 22  # pairs compared at once
_BATCH = 2048  # candidates confirmed at once
# Which variant of one picture is compared with which of the other: whole or cut with turned, and whole with cut.
_CUTS = range(SYMMETRIES, VARIANTS)
_COLUMNS = [(i, j) for i in (0, *_CUTS) for j in range(SYMMETRIES)] + [(0, j) for j in _CUTS]
_ECC = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 40, 1e-4)


def near_copies(looks: Looks, splits: np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs of rows, of two splits, whose pictures are near-duplicates.

    Args:
        looks: Of N pictures, none of which is plain.
        splits: The split of each (N,).
    """
    found: list[tuple[int, int]] = []
    for one, other in combinations(SPLITS, 2):
        left, right = np.flatnonzero(splits == one), np.flatnonzero(splits == other)
        candidates = _candidates(looks.hashes[left], looks.hashes[right])
        candidates = candidates.assign(left=left[candidates["left"]], right=right[candidates["right"]])
        found += _confirmed(looks.thumbnails, candidates)
    return found


def plain(looks: Looks) -> np.ndarray:
    """Say of each picture (N,) whether it has too little detail to be told from others by its looks."""
    varied: np.ndarray = _blocks(looks.thumbnails, 0).var(axis=-1) > FLAT
    return np.asarray(varied.mean(axis=1) < LEAST_DETAIL)


def _candidates(left: np.ndarray, right: np.ndarray) -> pd.DataFrame:
    """Return pairs of hashes (N, 10) and (M, 10) that are at most ``BITS_APART`` apart, with the variants that are."""
    rows = max(1, _CHUNK // max(1, len(right)))
    parts = []
    for start in range(0, len(left), rows):
        for i, j in _COLUMNS:
            apart = np.bitwise_count(left[start : start + rows, None, i] ^ right[None, :, j])
            near = np.argwhere(apart <= BITS_APART)
            parts.append(np.column_stack([near + np.array([start, 0]), np.tile((i, j), (len(near), 1))]))
    table = np.concatenate(parts) if parts else np.empty((0, 4), int)
    return pd.DataFrame(table, columns=["left", "right", "variant_left", "variant_right"])


def _confirmed(thumbnails: np.ndarray, candidates: pd.DataFrame) -> list[tuple[int, int]]:
    """Return the candidates' pairs that are the same picture also by their pixels."""
    batches = [candidates[start : start + _BATCH] for start in range(0, len(candidates), _BATCH)]
    alike = [_alike(_drawn(thumbnails, b, "left"), _drawn(thumbnails, b, "right")) for b in batches]
    candidates = candidates.assign(alike=np.concatenate([*alike, np.empty(0)]))
    worth = candidates[candidates["alike"] >= WORTH_ALIGNING].sort_values("alike", ascending=False)
    worth = worth.drop_duplicates(["left", "right"]).sort_values(["left", "right"])
    one, other = _drawn(thumbnails, worth, "left"), _drawn(thumbnails, worth, "right")
    same = in_threads(lambda k: _same(one[k], other[k]), range(len(worth)), "comparing pictures")
    pairs = worth.loc[np.array(same, bool), ["left", "right"]]
    return [(int(left), int(right)) for left, right in pairs.itertuples(index=False)]


def _drawn(thumbnails: np.ndarray, candidates: pd.DataFrame, side: str) -> np.ndarray:
    """Return the variant (N, 64, 64) float32 of one side of each candidate."""
    drawn = np.empty((len(candidates), SIDE, SIDE), np.float32)
    rows, numbers = candidates[side].to_numpy(), candidates[f"variant_{side}"].to_numpy()
    for number in np.unique(numbers):
        chosen = numbers == number
        drawn[chosen] = variant(thumbnails[rows[chosen]], int(number))
    return drawn


def _same(one_HW: np.ndarray, other_HW: np.ndarray) -> bool:
    """Align a picture with another and say whether they are the same."""
    warp = np.eye(2, 3, dtype=np.float32)
    try:
        _, warp = cv2.findTransformECC(one_HW, other_HW, warp, cv2.MOTION_AFFINE, _ECC, None, 5)
    except cv2.error:  # it found no alignment
        return bool(_alike(one_HW[None], other_HW[None])[0] >= SAME)
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    aligned = cv2.warpAffine(other_HW, warp, (SIDE, SIDE), flags=how, borderMode=cv2.BORDER_REPLICATE)
    return bool(_alike(one_HW[None], aligned[None])[0] >= SAME)


def _alike(one_NHW: np.ndarray, other_NHW: np.ndarray) -> np.ndarray:
    """Return the mean correlation (N,) of blocks that are flat in neither but noise; the rim, which crops lose, is out.

    A block that is flat in one picture alone counts as it correlates, which is hardly; 0 where all are flat.
    """
    one, other = _blocks(one_NHW, _BLOCK), _blocks(other_NHW, _BLOCK)
    one, other = one - one.mean(axis=-1, keepdims=True), other - other.mean(axis=-1, keepdims=True)
    variances = (one**2).mean(axis=-1), (other**2).mean(axis=-1)
    correlations = (one * other).mean(axis=-1) / np.sqrt(variances[0] * variances[1] + 1e-6)
    varied = np.maximum(*variances) > FLAT
    mean: np.ndarray = (correlations * varied).sum(axis=1) / np.maximum(varied.sum(axis=1), 1)
    return mean


def _blocks(thumbnails_NHW: np.ndarray, rim: int) -> np.ndarray:
    """Return the blocks (N, blocks, pixels) float32 of thumbnails without their rim."""
    inner = thumbnails_NHW[:, rim : SIDE - rim, rim : SIDE - rim].astype(np.float32)
    count = (SIDE - 2 * rim) // _BLOCK
    grid = inner.reshape(-1, count, _BLOCK, count, _BLOCK).transpose(0, 1, 3, 2, 4)
    return grid.reshape(-1, count * count, _BLOCK * _BLOCK)
