"""The cache of decoded pictures: one entry a content, whoever fills it, and never half of one."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from picture_files import Files
from PIL import Image

from fusionbench.data import images
from fusionbench.data.images import DECODER, ImageCache, file_digest, read_image, resize
from fusionbench.errors import UserError


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
    assert (tmp_path / "cache" / f"{Files.__module__}.Files-{DECODER}" / "10" / digest[:2] / f"{digest}.npy").is_file()


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
