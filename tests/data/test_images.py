"""Pictures of every make are read right, and the cache holds them whole, once and for several processes.

Over 300 lines, since each make of picture is written anew.
"""

import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fusionbench.data import images
from fusionbench.data.base import Dataset
from fusionbench.data.images import DECODER, ImageCache, file_digest, read_image, resize
from fusionbench.errors import UserError


class Files(Dataset):
    """A dataset of paths that counts what it decodes."""

    def __init__(self):
        self.decoded = []

    def cases(self) -> pd.DataFrame:
        return pd.DataFrame()

    def read_image(self, item: str) -> np.ndarray:
        self.decoded.append(item)
        return super().read_image(item)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 65535, 32768], [0, 255, 128]),  # 16 bits
        ([0, 4095, 2048], [0, 255, 128]),  # 12 bits stored in 16
        ([0, 200, 7], [0, 200, 7]),  # 8 bits stored in 16
    ],
)
def test_deep_grey_is_scaled_by_its_real_range(tmp_path, name, values, expected):
    cv2.imwrite(str(tmp_path / name), np.array([values], np.uint16))
    assert read_image(tmp_path / name).tolist() == [[[value] for value in expected]]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_deep_colour_keeps_its_range_and_channel_order(tmp_path, name):
    rgb = np.array([[[4095, 0, 2048]]], np.uint16)
    cv2.imwrite(str(tmp_path / name), np.ascontiguousarray(rgb[..., ::-1]))
    assert read_image(tmp_path / name).tolist() == [[[255, 0, 128]]]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, [255]),
        ("L", 90, [90]),
        ("LA", (200, 128), [100]),
        ("RGB", (250, 20, 30), [250, 20, 30]),
        ("RGBA", (200, 100, 50, 0), [0, 0, 0]),
        ("RGBA", (200, 100, 50, 255), [200, 100, 50]),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("F", 0.5, [128]),
    ],
)
def test_colour_modes(tmp_path, mode, colour, expected):
    Image.new(mode, (3, 2), colour).save(tmp_path / "a.tif")
    pixels = read_image(tmp_path / "a.tif")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2, 3, len(expected))
    assert pixels[1, 2].tolist() == expected


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=1)
    assert read_image(tmp_path / "a.png").tolist() == [[[255, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_rotation_is_applied(tmp_path, dtype):
    pixels = np.zeros((2, 4), dtype)
    pixels[0, 0] = np.iinfo(dtype).max
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees: the first column is the first row, from the right
    image.save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    assert upright.shape == (4, 2, 1)
    assert np.argwhere(upright).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[[3, 250]]], np.uint8), [[[3, 250]]]),
        (np.array([[[0, 4095]]], np.uint16), [[[0, 255]]]),
        (np.array([[[-1000, 0, 1000]]], np.int16), [[[0, 128, 255]]]),
        (np.array([[[0.0, 0.2, 1.0]]], np.float32), [[[0, 51, 255]]]),
        (np.array([[[0, 100000]]], np.int32), [[[0, 255]]]),
        (np.array([[[True, False]]]), [[[255, 0]]]),
        (np.zeros((1, 1, 2), np.int16), [[[0, 0]]]),
    ],
)
def test_volumes(tmp_path, array, expected):
    np.save(tmp_path / "v.npy", array)
    volume = read_image(tmp_path / "v.npy")
    assert volume.dtype == np.uint8
    assert volume.tolist() == expected


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((0, 4, 4)), np.full((1, 2, 2), np.nan)])
def test_arrays_that_are_no_volume_are_refused(tmp_path, array):
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(UserError, match=r"v\.npy"):
        read_image(tmp_path / "v.npy")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.npy"])
@pytest.mark.parametrize("keep", [0, 0.6])
def test_a_damaged_file_is_named(tmp_path, name, keep):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    np.save(path, noise) if name == "a.npy" else Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match=name) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png.*not there"):
        read_image(tmp_path / "gone.png")


def test_what_is_no_picture_is_told_in_plain_words(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png' \(it is no picture\);"):
        read_image(tmp_path / "a.png")


def test_a_folder_is_unreadable_and_a_name_too_long_is_not_there(tmp_path):
    assert Files().exists(str(tmp_path))
    with pytest.raises(UserError, match=r"1 of 1 images are unreadable.*directory"):
        ImageCache(tmp_path / "cache", 8).prepare(Files(), [str(tmp_path)])
    assert not Files().exists("x" * 300)


def test_shrinking_averages_areas():
    checks = np.indices((8, 8)).sum(0) % 2 * 254
    assert (resize(checks.astype(np.uint8)[..., None], 4) == 127).all()


@pytest.mark.parametrize("shape", [(4, 4, 1), (12, 4, 3), (4, 12, 3), (8, 8, 1)])
def test_resize_gives_a_square_whatever_the_aspect(shape):
    assert resize(np.full(shape, 77, np.uint8), 8).tolist() == np.full((8, 8, shape[2]), 77).tolist()


def test_a_changed_file_gets_a_new_digest(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"abcd")
    assert file_digest(path) != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_open_maps_the_decoded_picture(tmp_path, picture):
    cache = ImageCache(tmp_path / "cache", 10)
    assert cache.prepare(Files(), [str(picture)]) == set()
    mapped = cache.open(str(picture))
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    assert np.array_equal(mapped, resize(read_image(picture), 10)[None])
    digest = file_digest(picture)
    assert (tmp_path / "cache" / f"{__name__}.Files-{DECODER}" / "10" / digest[:2] / f"{digest}.npy").is_file()


class Negatives(Files):
    """Other pixels of the same files."""

    def read_image(self, item: str) -> np.ndarray:
        return 255 - super().read_image(item)


class Others(Files):
    """The same pixels by another name."""


def test_other_pixels_of_the_same_content_are_another_entry(tmp_path, picture, monkeypatch):
    def opened(dataset):
        cache = ImageCache(tmp_path / "cache", 30)
        cache.prepare(dataset, [str(picture)])
        return cache.open(str(picture))

    assert not np.array_equal(opened(Negatives()), opened(Files()))
    opened(Others())
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2
    monkeypatch.setattr(images, "DECODER", "next")
    opened(Files())
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 3


def test_a_volume_keeps_its_slices(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (5, 6, 6), np.uint8)
    np.save(tmp_path / "v.npy", volume)
    cache = ImageCache(tmp_path / "cache", 6)
    cache.prepare(Files(), [str(tmp_path / "v.npy")])
    assert np.array_equal(cache.open(str(tmp_path / "v.npy")), volume[..., None])


def test_each_content_is_decoded_once(tmp_path, picture):
    copy = tmp_path / "copy.png"
    copy.write_bytes(picture.read_bytes())
    files = Files()
    ImageCache(tmp_path / "cache", 8).prepare(files, [str(picture), str(copy), str(picture)])
    later = ImageCache(tmp_path / "cache", 8)
    later.prepare(files, [str(copy)])
    assert files.decoded == [str(copy)]
    assert later.open(str(copy)).shape == (1, 8, 8, 3)


def test_a_second_process_need_not_hash_again(tmp_path, picture, monkeypatch):
    ImageCache(tmp_path / "cache", 8).prepare(Files(), [str(picture)])
    monkeypatch.setattr(images, "_digests", {})  # a new process
    monkeypatch.setattr(images.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    ImageCache(tmp_path / "cache", 8).prepare(Files(), [str(picture)])


def test_a_damaged_digest_table_is_ignored(tmp_path, picture):
    cache = ImageCache(tmp_path / "cache", 8)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "digests.json").write_text('[["half')
    assert cache.prepare(Files(), [str(picture)]) == set()


def test_unreadable_pictures_stop_or_are_missing(tmp_path, picture):
    broken, gone = tmp_path / "a_broken.png", tmp_path / "gone.png"
    broken.write_bytes(b"no picture")
    items = [str(picture), str(broken), str(gone)]
    with pytest.raises(UserError, match=r"2 of 3 images.*a_broken\.png"):
        ImageCache(tmp_path / "cache", 8).prepare(Files(), items, "stop")
    cache = ImageCache(tmp_path / "cache", 8)
    assert cache.prepare(Files(), items, "missing") == {str(broken), str(gone)}
    assert cache.open(str(picture)).shape == (1, 8, 8, 3)
    with pytest.raises(UserError, match=r"a_broken\.png"):
        cache.open(str(broken))


def test_a_killed_write_leaves_nothing_that_is_read(tmp_path, picture, monkeypatch):
    replace = os.replace

    def die(source, target):
        if target.suffix == ".npy":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            ImageCache(tmp_path / "cache", 8).prepare(Files(), [str(picture)])
    assert not list((tmp_path / "cache").rglob("*.npy"))
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    assert ImageCache(tmp_path / "cache", 8).prepare(Files(), [str(picture)]) == set()


def _fill(folder: Path, items: list[str]) -> None:
    cache = ImageCache(folder, 8)
    cache.prepare(Files(), items)
    for item in items:
        assert cache.open(item).shape == (1, 8, 8, 3)


def test_two_processes_fill_one_folder(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for value, path in enumerate(paths):
        Image.new("RGB", (9, 9), (value, 0, 0)).save(path)
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_fill, args=(tmp_path / "cache", [str(path) for path in paths])) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 40
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_the_default_folder_is_below_home(tmp_path, picture, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_HOME", str(tmp_path / "home"))
    ImageCache(None, 8).prepare(Files(), [str(picture)])
    assert len(list((tmp_path / "home" / "images").glob("*/8/*/*.npy"))) == 1
