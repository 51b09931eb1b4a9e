"""Pictures of every make are read right, and the cache holds them whole, once and for several processes."""

import cv2
import numpy as np
import pytest
from picture_files import Files
from PIL import Image

from fusionbench.data.images import ImageCache, read_image, resize
from fusionbench.errors import UserError


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
