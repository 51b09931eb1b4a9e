"""Pictures from the cache to what an encoder reads: augmentation in training, then normalisation."""

from __future__ import annotations

import random
from collections.abc import Sequence

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor

from fusionbench.data.images import resize
from fusionbench.errors import UserError, nearest

NORMALIZE: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # Mean and standard deviation of the training pictures of CLIP, of ImageNet, and the ranges -1..1 and 0..1.
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class ImageTransform:
    """Early intervention's recipe, each step an option; it works on pictures that are resized already.

    In training, for each picture or slice on its own and in this order: rotation, crop, flip, and back to ``size``;
    then contrast, brightness and saturation, in random order. Otherwise resizing alone. The authors rotate and crop
    before they resize, and jitter contrast first; ours resizes first, so that pictures can be cached. A mask moves with
    its picture, by nearest neighbours, and keeps its values.

    Args:
        size: Height and width of the result in pixels.
        train: Whether to augment.
        normalize: ``clip``, ``imagenet``, ``half`` (-1..1), ``none`` (0..1), or means and standard deviations of the
            three channels, for values in 0..1.
        rotate: Greatest angle in degrees; each picture turns about its centre by U(-rotate, rotate), corners that come
            from outside are black. 0 is off.
        crop: Greatest share of height or width that is cut off at each side, on its own; whole pixels. 0 is off.
        crop_p: Probability of the crop.
        flip_p: Probability of a horizontal flip; 0 is off.
        contrast: Range of the factor on the distance from the picture's mean grey. None is off.
        brightness: Range of the factor on all values. None is off.
        saturation: Range of the factor on the distance from each pixel's grey. None is off.

    Raises:
        UserError: An option is out of its range, or ``normalize`` is unknown.
    """

    def __init__(
        self,
        size: int,
        train: bool,
        *,
        normalize: str | Sequence[Sequence[float]] = "clip",
        rotate: float = 180.0,
        crop: float = 0.1,
        crop_p: float = 0.5,
        flip_p: float = 0.5,
        contrast: Sequence[float] | None = (0.7, 1.3),
        brightness: Sequence[float] | None = (0.7, 1.3),
        saturation: Sequence[float] | None = (0.7, 1.3),
    ) -> None:
        mean, std = _normalization(normalize)
        for name, value, most in (
            ("rotate", rotate, 180),
            ("crop", crop, 0.49),
            ("crop_p", crop_p, 1),
            ("flip_p", flip_p, 1),
        ):
            if not 0 <= value <= most:
                raise UserError(f"{name}={value} is out of range; it is a number from 0 (off) to {most}")
        self.size = size
        # value / 255 normalised, as one product and one sum
        self._scale_C = torch.tensor([1 / (255 * s) for s in std]).view(3, 1, 1)
        self._shift_C = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1)
        steps: list[A.BasicTransform] = []
        if rotate:
            steps.append(A.Rotate((-rotate, rotate), cv2.INTER_LINEAR, border_mode=cv2.BORDER_CONSTANT, fill=0, p=1))
        if crop and crop_p:
            steps += [A.RandomCropFromBorders(crop, crop, crop, crop, p=crop_p), A.Resize(size, size, p=1)]
        if flip_p:
            steps.append(A.HorizontalFlip(p=flip_p))
        steps += _colour(contrast=contrast, brightness=brightness, saturation=saturation)
        self._augment = A.Compose(steps) if train and steps else None

    @property
    def is_random(self) -> bool:
        """Whether the seed makes a difference."""
        return self._augment is not None

    def __call__(self, image_SHWC: np.ndarray, seed: int) -> Tensor:
        """Turn the pictures of a case into (S, 3, H, W) float32, fully determined by ``seed``.

        Args:
            image_SHWC: uint8 with C 1 or 3; one channel becomes three equal ones.
            seed: Not negative; unused without augmentation.
        """
        return self.with_masks(image_SHWC, (), seed)[0]

    def with_masks(
        self, image_SHWC: np.ndarray, masks_HW: Sequence[np.ndarray], seed: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Turn the pictures of a case and the masks of its first picture into tensors; no mask changes a picture.

        Args:
            image_SHWC: As for a call.
            masks_HW: uint8 in {0, 1}, each as large as the result.
            seed: As for a call.

        Returns:
            (S, 3, H, W) float32, and (1, H, W) float32 in {0, 1} for each mask.
        """
        pictures, masks = [resize(picture, self.size) for picture in image_SHWC], [np.array(m) for m in masks_HW]
        if self._augment is not None:
            # One generator for all steps and slices: Compose.set_random_seed gives each step the same one anew,
            # which ties the toss for the flip to the toss for the crop, and takes six times as long.
            self._augment.set_random_state(np.random.default_rng(seed), random.Random(seed))
            first = self._augment(image=np.array(pictures[0]), **({"masks": masks} if masks else {}))
            rest = [self._augment(image=np.array(picture))["image"] for picture in pictures[1:]]
            pictures, masks = [first["image"], *rest], list(first.get("masks", ()))
        values_SCHW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        values_SCHW = values_SCHW.to(torch.float32, memory_format=torch.contiguous_format)
        return values_SCHW * self._scale_C + self._shift_C, [torch.from_numpy(m)[None].float() for m in masks]


def _normalization(normalize: str | Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    """Return mean and standard deviation."""
    if isinstance(normalize, str):
        if normalize not in NORMALIZE:
            raise UserError(f"unknown normalize '{normalize}'{nearest(normalize, NORMALIZE)}")
        return NORMALIZE[normalize]
    if [len(row) for row in normalize] != [3, 3] or min(normalize[1]) <= 0:
        raise UserError(
            f"normalize={normalize} is a name ({', '.join(NORMALIZE)}) or three means and three positive standard "
            f"deviations, such as [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]"
        )
    return normalize


def _colour(**ranges: Sequence[float] | None) -> list[A.BasicTransform]:
    """Return the jitter of contrast, brightness and saturation, or nothing if all are off."""
    for name, given in ranges.items():
        if given is not None and not (len(given) == 2 and 0 <= given[0] <= given[1]):
            raise UserError(f"{name}={given} is no range; give the least and the greatest factor, such as [0.7, 1.3]")
    factors = {name: (1.0, 1.0) if given is None else tuple(given) for name, given in ranges.items()}
    return [A.ColorJitter(**factors, hue=(0, 0), p=1)] if any(r is not None for r in ranges.values()) else []
