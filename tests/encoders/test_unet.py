"""The U-Net against the library's own, its files, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from tiny import perturb

from fusionbench.encoders.unet import UNet
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec

BACKBONE = "tu-test_efficientnet"
SPEC = ModalitySpec("image", size=32)


def unet(**options: Any) -> UNet:
    return UNet(SPEC, **{"backbone": BACKBONE, "weights": "random", "segment": True, **options})


def library(path: Path | None = None) -> smp.Unet:
    """Return the library's network with noise in its weights, and save it."""
    whole = perturb(smp.Unet(BACKBONE, encoder_weights=None, classes=1)).eval()
    if path is not None:
        save_file(whole.state_dict(), path)
    return whole


@pytest.mark.parametrize("size", [(32, 32), (50, 38)])
def test_pyramid_and_decoder_are_the_librarys_whole(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "whole.safetensors"
    whole, made = library(path), unet(weights=str(path)).eval()
    images = torch.randn(2, 3, *size)
    mask = made.decode(made.pyramid(images))
    assert mask.shape == (2, 1, *size)
    torch.testing.assert_close(mask, whole(images))


def test_every_feature_reaches_the_mask_and_the_mask_the_encoder() -> None:
    made = perturb(unet()).eval()
    seen = made.pyramid(torch.randn(1, 3, 64, 64))
    mask = made.decode(seen)
    for index in range(4):
        skips = [skip + 1 if place == index else skip for place, skip in enumerate(seen.skips)]
        assert not torch.allclose(made.decode(seen._replace(skips=skips)), mask)
    mask.square().sum().backward()
    assert all(p.grad is not None for p in made.parameters())


def test_resnet50_has_the_four_stages_of_the_paper() -> None:
    with torch.device("meta"):
        made = UNet(ModalitySpec("image", size=512), weights="random", segment=True)
        seen = made.pyramid(torch.empty(1, 3, 512, 512))
    assert made.skip_channels == (256, 512, 1024, 2048)
    assert [tuple(s.shape[1:]) for s in seen.skips] == [(256, 128, 128), (512, 64, 64), (1024, 32, 32), (2048, 16, 16)]
    classifier = 2048 * 1000 + 1000
    assert sum(p.numel() for p in made.net.parameters()) == 25_557_032 - classifier


def test_a_backbones_own_file_is_read(tmp_path: Path) -> None:
    path, images = tmp_path / "backbone.safetensors", torch.randn(1, 3, 32, 32)
    backbone = perturb(timm.create_model("test_efficientnet", features_only=True)).eval()
    save_file(backbone.state_dict(), path)
    made = unet(weights=str(path), segment=False).eval()
    torch.testing.assert_close(made.pyramid(images).skips[-1], backbone(images)[-1])


def test_a_file_of_another_network_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"lacks \d+ of the \d+ tensors of 'tu-test_efficientnet'"):
        unet(weights=str(path))


def test_a_file_of_another_shape_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    state = timm.create_model("test_efficientnet", features_only=True, in_chans=4).state_dict()
    save_file(state, path)
    with pytest.raises(UserError, match=r"does not fit 'tu-test_efficientnet'.*size mismatch") as caught:
        unet(weights=str(path))
    assert "\n" not in str(caught.value)


def test_without_a_decoder_there_is_no_mask() -> None:
    made = unet(segment=False)
    with pytest.raises(UserError, match=r"no mask decoder; build it with encoder.segment=true"):
        made.decode(made.pyramid(torch.randn(2, 3, 32, 32)))
    assert not any("decoder" in name for name, _ in made.named_parameters())


@pytest.mark.parametrize(
    ("backbone", "hint"),
    [("resnet5", "did you mean 'resnet50'"), ("tu-test_efficientnt", "did you mean 'tu-test_efficientnet")],
)
def test_an_unknown_backbone_is_answered_with_the_nearest(backbone: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        unet(backbone=backbone)
