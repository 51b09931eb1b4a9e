"""Augmentation does what its options say, is fully determined by its seed, and is off when it is switched off."""

import numpy as np
import pytest
import torch

from fusionbench.data.transforms import NORMALIZE, ImageTransform
from fusionbench.errors import UserError

OFF = {"rotate": 0, "crop": 0, "flip_p": 0, "contrast": None, "brightness": None, "saturation": None}


@pytest.fixture
def noise() -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    image.flags.writeable = False  # as the cache gives it
    return image


def plain(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(0, 3, 1, 2) / 255).float()


def only(size: int = 32, **options) -> ImageTransform:
    return ImageTransform(size, True, normalize="none", **{**OFF, **options})


@pytest.mark.parametrize("name", sorted(NORMALIZE))
@pytest.mark.parametrize("train", [False, True])
def test_all_off_is_normalisation_alone(noise, name, train):
    mean, std = (np.array(row)[None, :, None, None] for row in NORMALIZE[name])
    expected = (noise.transpose(0, 3, 1, 2) / 255 - mean) / std
    result = ImageTransform(32, train, normalize=name, **OFF)(noise, 0)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    torch.testing.assert_close(result, torch.from_numpy(expected).float())


def test_normalize_takes_numbers(noise):
    result = ImageTransform(32, False, normalize=[[0.5] * 3, [0.25] * 3])(noise, 0)
    torch.testing.assert_close(result, (plain(noise) - 0.5) / 0.25)


def test_evaluation_ignores_seed_and_augmentation(noise):
    transform = ImageTransform(32, False, normalize="none")
    assert torch.equal(transform(noise, 1), transform(noise, 2))
    torch.testing.assert_close(transform(noise, 1), plain(noise))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_seed_determines_everything(noise, channels):
    first = ImageTransform(32, True)(noise[..., :channels], 5)
    transform = ImageTransform(32, True)
    transform(noise, 9)  # what was drawn before must not matter
    assert first.shape == (2, 3, 32, 32)
    assert torch.equal(transform(noise[..., :channels], 5), first)
    assert not torch.equal(transform(noise[..., :channels], 6), first)


def test_slices_are_augmented_independently(noise):
    same = np.stack([noise[0], noise[0]])
    first, second = ImageTransform(32, True)(same, 0)
    assert not torch.equal(first, second)


def test_pictures_are_resized(noise):
    assert ImageTransform(20, True)(noise, 0).shape == (2, 3, 20, 20)
    assert ImageTransform(40, False)(noise, 0).shape == (2, 3, 40, 40)


def test_one_channel_becomes_three_equal_ones(noise):
    for train in (False, True):
        red, green, blue = ImageTransform(32, train, normalize="none")(noise[..., :1], 0).unbind(1)
        assert torch.equal(red, green)
        assert torch.equal(red, blue)


def test_grey_in_three_channels_stays_grey(noise):
    grey = np.repeat(noise[..., :1], 3, -1)
    red, green, blue = ImageTransform(32, True, normalize="none")(grey, 0).unbind(1)
    torch.testing.assert_close(red, green, atol=1.01 / 255, rtol=0)
    torch.testing.assert_close(red, blue, atol=1.01 / 255, rtol=0)


def test_values_stay_in_range(noise):
    transform = ImageTransform(32, True, normalize="none", contrast=(3, 3), brightness=(2, 2))
    result = transform(noise, 0)
    assert result.min() == 0
    assert result.max() == 1


def test_rotation_fills_with_black_and_turns_about_the_centre():
    white = np.full((1, 31, 31, 3), 255, np.uint8)
    corners, centres = [], []
    for seed in range(20):
        turned = only(31, rotate=180)(white, seed)[0]
        corners.append(min(turned[0, y, x].item() for y in (0, -1) for x in (0, -1)))
        centres.append(turned[0, 15, 15].item())
    assert min(centres) == 1
    assert sum(corner == 0 for corner in corners) >= 18  # black unless the angle is near a quarter turn


def test_rotation_reaches_all_around():
    dot = np.zeros((1, 31, 31, 1), np.uint8)
    dot[0, 14:17, 26:29] = 255
    far, near = set(), set()
    for seed in range(60):
        y, x = divmod(int(only(31, rotate=180)(dot, seed)[0, 0].argmax()), 31)
        far.add((y > 15, x > 15))
        near.add(int(only(31, rotate=10)(dot, seed)[0, 0].argmax() % 31))
    assert len(far) == 4
    assert min(near) >= 24


def test_flip_is_horizontal_and_as_often_as_asked(noise):
    image, mirror = only()(noise[:1], 0), only()(noise[:1], 0).flip(-1)
    drawn = [only(flip_p=0.5)(noise[:1], seed) for seed in range(200)]
    flipped, kept = ([torch.equal(result, wanted) for result in drawn] for wanted in (mirror, image))
    assert 70 <= sum(flipped) <= 130
    assert sum(flipped) + sum(kept) == 200
    assert torch.equal(only(flip_p=1)(noise, 0), only()(noise, 0).flip(-1))


def test_crop_cuts_at_most_its_share_from_each_side():
    ramp = np.tile(np.arange(100, dtype=np.uint8)[:, None, None], (1, 1, 100, 1)).reshape(1, 100, 100, 1)
    first = torch.stack([only(100, crop=0.1, crop_p=1)(ramp, seed)[0, 0, 0, 50] * 255 for seed in range(60)])
    last = torch.stack([only(100, crop=0.1, crop_p=1)(ramp, seed)[0, 0, -1, 50] * 255 for seed in range(60)])
    assert first.min() <= 1
    assert 8 <= first.max() <= 10.5
    assert last.max() >= 98
    assert 88.5 <= last.min() <= 91


def test_crop_and_flip_are_tossed_apart():
    marked = np.zeros((1, 40, 40, 1), np.uint8)
    marked[0, :, 30:] = 255
    seen = set()
    for seed in range(40):
        picture = only(40, crop=0.4, crop_p=0.5, flip_p=0.5)(marked, seed)[0, 0]
        flipped = bool(picture[20, :8].mean() > picture[20, -8:].mean())
        seen.add((flipped, abs(picture.sum().item() - 400) > 1))
    assert len(seen) == 4


def test_brightness_contrast_and_saturation_by_hand(noise):
    image = noise[:1]
    expected = plain(image)
    grey = (image * np.array([0.299, 0.587, 0.114])).sum(-1, keepdims=True) / 255
    close = {"atol": 1.5 / 255, "rtol": 0}
    torch.testing.assert_close(only(brightness=(0.5, 0.5))(image, 0), expected * 0.5, **close)
    mean = float(grey.mean())
    torch.testing.assert_close(only(contrast=(0.5, 0.5))(image, 0), (expected - mean) * 0.5 + mean, **close)
    faded = torch.from_numpy(grey.transpose(0, 3, 1, 2)).float()
    torch.testing.assert_close(only(saturation=(0.5, 0.5))(image, 0), (expected + faded) / 2, **close)


def test_brightness_covers_its_range():
    grey = np.full((1, 4, 4, 3), 100, np.uint8)
    values = [only(4, brightness=(0.7, 1.3))(grey, seed)[0, 0, 0, 0].item() * 255 for seed in range(100)]
    assert 69.5 <= min(values) < 75
    assert 125 < max(values) <= 130.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "clib"}, "did you mean 'clip'"),
        ({"normalize": [[0.5], [0.5]]}, "three means"),
        ({"normalize": [[0.5] * 3, [0.0] * 3]}, "positive"),
        ({"rotate": 200}, "rotate=200"),
        ({"crop": 0.5}, "crop=0.5"),
        ({"flip_p": -1}, "flip_p=-1"),
        ({"contrast": (1.3, 0.7)}, "contrast"),
        ({"brightness": (1.0,)}, "brightness"),
    ],
)
def test_mistakes_are_told(options, message):
    with pytest.raises(UserError, match=message):
        ImageTransform(8, True, **options)
