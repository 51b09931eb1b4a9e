"""Near-duplicates: which copies are found, and which pictures that merely look alike are not."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from fusionbench.data import near_copies as near
from fusionbench.data.looks import SIDE, look, stack, stored_look, variant


def fundus(seed, size=160):
    """A disc with a bright spot at the same place in every picture, and vessels and lesions of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    picture = (
        np.full((size, size, 3), (170.0, 80.0, 40.0)) + (90 * np.exp(-((x - 0.28) ** 2 + y**2) / 0.004))[..., None]
    )
    picture = np.ascontiguousarray(picture.clip(0, 255).astype(np.uint8))
    for _ in range(12):
        steps = np.cumsum(rng.normal(0, 0.12, 40)) + rng.uniform(0, 2 * np.pi)
        path = np.array([0.78, 0.5]) + np.cumsum(0.02 * np.stack([np.cos(steps), np.sin(steps)], 1), 0)
        cv2.polylines(picture, [np.rint(path * size).astype(np.int32)], False, (100, 30, 20), 2, cv2.LINE_AA)
    for place in rng.integers(30, size - 30, (25, 2)):
        cv2.circle(picture, place.tolist(), int(rng.integers(1, 5)), (210, 190, 90), -1, cv2.LINE_AA)
    picture[np.hypot(x, y) > 0.47] = 0
    return picture


def silhouette(seed):
    """A round white shape on black, as of a small nodule."""
    radius = np.random.default_rng(seed).uniform(3, 12)
    y, x = np.mgrid[:96, :96] - 47.5
    return (255 * (np.hypot(x, y) < radius)).astype(np.uint8)[..., None]


def saved_anew(picture, quality):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


COPIES = {
    "jpeg": lambda p: saved_anew(p, 40),
    "resized": lambda p: cv2.resize(p, (90, 120), interpolation=cv2.INTER_AREA),
    "brightened": lambda p: (p * 1.15 + 10.0).clip(0, 255).astype(np.uint8),
    "cropped": lambda p: p[2:-3, 3:-2],
    "grey": lambda p: cv2.cvtColor(p, cv2.COLOR_RGB2GRAY)[..., None],
    "turned": lambda p: np.rot90(p),
    "mirrored": lambda p: p[:, ::-1],
    "turned and mirrored": lambda p: np.rot90(p, 3)[::-1],
    "everything": lambda p: saved_anew(np.ascontiguousarray(np.rot90(p, 2)[:, 2:]), 70),
}


@pytest.fixture(scope="module")
def originals():
    return [fundus(seed) for seed in range(12)]


def looks(pictures):
    return stack([look(np.ascontiguousarray(picture)[None]) for picture in pictures])


@pytest.mark.parametrize("change", COPIES)
def test_changed_copies_are_found_and_nothing_else(originals, change):
    copies = [COPIES[change](picture) for picture in originals]
    splits = np.array(["train"] * 12 + ["test"] * 12)
    assert near.near_copies(looks(originals + copies), splits) == [(i, i + 12) for i in range(12)]


def test_pictures_of_one_kind_pass_the_sieve_and_not_the_confirmation(originals):
    seen = looks(originals)
    assert len(near._candidates(seen.hashes[:6], seen.hashes[6:])) > 0
    assert near.near_copies(seen, np.array(["train"] * 6 + ["val"] * 3 + ["test"] * 3)) == []


def test_copies_within_a_split_are_sound_and_every_pair_of_splits_is_compared(originals):
    pair = looks([originals[0], saved_anew(originals[0], 50)])
    for one, other in (("train", "val"), ("test", "train"), ("val", "test")):
        assert len(near.near_copies(pair, np.array([one, other]))) == 1
    assert near.near_copies(pair, np.array(["train", "train"])) == []


def test_silhouettes_and_empty_pictures_are_too_plain(originals):
    blank = np.zeros((50, 50, 1), np.uint8)
    pictures = [silhouette(seed) for seed in range(9)] + [blank, blank + 200, originals[0]]
    assert near.plain(looks(pictures)).tolist() == [True] * 11 + [False]


def test_the_sieve_equals_a_plain_loop_over_bits(originals, monkeypatch):
    hashes = looks(originals).hashes
    bits = np.unpackbits(hashes.view(np.uint8).reshape(12, 10, 8), axis=-1)
    plain = {
        (a, b, i, j)
        for a in range(7)
        for b in range(5)
        for i, j in near._COLUMNS
        if (bits[a, i] != bits[7 + b, j]).sum() <= near.BITS_APART
    }
    for chunk in (1 << 22, 10):
        monkeypatch.setattr(near, "_CHUNK", chunk)
        found = near._candidates(hashes[:7], hashes[7:])
        assert set(found.itertuples(index=False, name=None)) == plain
        assert len(found) == len(plain) > 0


def test_blocks_correlate_as_in_a_plain_loop():
    rng = np.random.default_rng(0)
    one, other = rng.normal(100, 9, (2, SIDE, SIDE)).astype(np.float32)
    other[:32] = one[:32] * 1.2 + 5
    one[40:, 40:] = other[40:, 40:] = 7
    values = []
    for y in range(8, 56, 8):
        for x in range(8, 56, 8):
            a, b = one[y : y + 8, x : x + 8].ravel(), other[y : y + 8, x : x + 8].ravel()
            if max(a.var(), b.var()) > near.FLAT:
                values.append(np.corrcoef(a, b)[0, 1])
    assert len(values) == 32
    assert near._alike(one[None], other[None]) == pytest.approx([np.mean(values)], abs=1e-4)


def test_variants_are_the_eight_symmetries_and_the_cuts():
    thumbnail = np.random.default_rng(0).integers(0, 255, (1, SIDE, SIDE), dtype=np.uint8)
    drawn = [variant(thumbnail, number)[0] for number in range(8)]
    assert len({picture.tobytes() for picture in drawn}) == 8
    np.testing.assert_array_equal(drawn[5], np.rot90(thumbnail[0])[:, ::-1])
    for number, cut in ((8, 1), (9, 2)):
        inner = thumbnail[0, cut:-cut, cut:-cut].astype(np.float32)
        np.testing.assert_allclose(variant(thumbnail, number)[0], cv2.resize(inner, (SIDE, SIDE)), atol=1e-2)


def test_a_volume_looks_like_its_middle_slice(originals):
    volume = np.stack([originals[1], originals[0], originals[2]])
    np.testing.assert_array_equal(look(volume), look(originals[0][None]))


def test_a_look_is_kept_beside_its_picture_and_made_anew_when_damaged(originals, tmp_path):
    np.save(tmp_path / "a.npy", originals[0][None])
    made = stored_look(tmp_path / "a.npy")
    kept = next(path for path in tmp_path.iterdir() if path.suffix != ".npy")
    np.save(tmp_path / "a.npy", originals[1][None])
    np.testing.assert_array_equal(stored_look(tmp_path / "a.npy"), made)
    kept.write_bytes(b"cut off")
    np.testing.assert_array_equal(stored_look(tmp_path / "a.npy"), look(originals[1][None]))
