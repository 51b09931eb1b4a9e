"""Options of the tuning methods that cannot be."""

from __future__ import annotations

import pytest
from tiny import SPECS

from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.bitfit import BitFit
from fusionbench.adapt.late_lora import LateLoRA
from fusionbench.adapt.lora import LoRA
from fusionbench.adapt.lora_moe import LoRAMoE
from fusionbench.adapt.losa import LoSA
from fusionbench.adapt.mor import MoR
from fusionbench.adapt.vpt import VPT
from fusionbench.encoders.timm_cnn import TimmCNN
from fusionbench.encoders.timm_vit import TimmViT
from fusionbench.errors import UserError

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (MoR, {"ranks": []}, "'adapt.ranks' is empty; give at least one rank"),
        (MoR, {"ranks": [2, 0]}, "'adapt.ranks' must be at least 1, not 0"),
        (LoRA, {"rank": 0}, "'adapt.rank' must be at least 1, not 0"),
        (LoRAMoE, {"rank": -1}, "'adapt.rank' must be at least 1, not -1"),
        (LoRAMoE, {"experts": 0}, "'adapt.experts' must be at least 1, not 0"),
        (LateLoRA, {"rank": 0}, "'adapt.rank' must be at least 1, not 0"),
        (LateLoRA, {"last": 0}, "'adapt.last' must be at least 1, not 0"),
        (LoSA, {"rank": 0}, "'adapt.rank' must be at least 1, not 0"),
        (LoSA, {"tokens": 0}, "'adapt.tokens' must be at least 1, not 0"),
        (LoSA, {"every": 0}, "'adapt.every' must be at least 1, not 0"),
        (VPT, {"prompts": 0}, "'adapt.prompts' must be at least 1, not 0"),
    ],
)
def test_a_number_out_of_range_is_refused(kind: type[Adaptation], options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        kind(**options)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("kind", [LoRA, LateLoRA, LoRAMoE, MoR])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": NAN}, "'adapt.scale' must be finite and above 0, not nan"),
        ({"scale": INFINITE}, "'adapt.scale' must be finite and above 0, not inf"),
        ({"scale": 0.0}, "'adapt.scale' must be above 0, not 0.0"),
        ({"sites": []}, "'adapt.sites' must name one or more layers, each once"),
        ({"sites": ["fc1", "fc2", "fc1"]}, "'adapt.sites' must name one or more layers, each once"),
    ],
)
def test_scale_and_sites_are_checked(kind: type[Adaptation], options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        kind(**options)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (LoRA(sites=["fc3"]), "TimmViT has no linear layers 'fc3' to adapt; did you mean 'fc"),
        (MoR(sites=["q"]), "TimmViT has no linear layers 'q' to adapt"),
        (LoRA(sites=["q", "qkv"]), "'adapt.sites' names qkv and, within it, q; give either"),
        (LateLoRA(last=7), "'adapt.last' is 7, but TimmViT has only 6 layers"),
    ],
)
def test_sites_that_the_encoder_lacks_are_refused(method: Adaptation, said: str) -> None:
    with pytest.raises(UserError) as caught:
        method.apply(TimmViT(SPECS["picture"], model="test_vit", weights="random"), 1)
    assert str(caught.value).startswith(said)


def test_a_bias_before_an_activation_is_refused() -> None:
    encoder = TimmCNN(SPECS["picture"], model="test_efficientnet", weights="random")
    with pytest.raises(UserError, match="cannot train the bias of BatchNormAct2d"):
        BitFit().apply(encoder, 1)
