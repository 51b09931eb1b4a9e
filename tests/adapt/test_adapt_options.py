"""Options of the tuning methods that cannot be."""

from __future__ import annotations

import pytest

from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.lora import LoRA
from fusionbench.adapt.lora_moe import LoRAMoE
from fusionbench.adapt.mor import MoR
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
    ],
)
def test_a_rank_out_of_range_is_refused(kind: type[Adaptation], options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        kind(**options)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("kind", [LoRA, LoRAMoE, MoR])
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
