"""The methods that peft has too, on a whole text encoder: equal outputs and gradients, given equal weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import peft
import pytest
import torch
from tiny import SPECS, encoder_node, perturb, trained
from torch import Tensor

from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.bitfit import BitFit
from fusionbench.adapt.late_lora import LateLoRA
from fusionbench.adapt.lora import LoRA
from fusionbench.encoders.base import Encoder


def pair(method: Adaptation, sites: Sequence[str], layers: Sequence[int], **lora: Any) -> tuple[Encoder, Encoder]:
    """Return an encoder under our method and its copy under peft's LoRA at the named sites of the given layers."""
    kind, options = encoder_node("hf_text")
    ours = kind(SPECS["report"], **options).eval()
    theirs = copy.deepcopy(ours)
    targets = [theirs.linear_sites()[site][layer] for site in sites for layer in layers]
    method.apply(ours, 1)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=targets, lora_dropout=0.0, **lora), theirs)
    return perturb(ours), theirs


def vector(encoder: Encoder, text: Tensor) -> Tensor:
    """Return the pooled text."""
    return encoder.pool(encoder.encode(encoder.embed(text)))


@pytest.mark.parametrize(
    ("method", "sites", "layers"),
    [(LoRA(), ["fc1", "fc2"], [0, 1]), (LateLoRA(), ["q", "v"], [1])],
    ids=["lora", "late_lora"],
)
def test_lora_equals_peft(method: LoRA | LateLoRA, sites: list[str], layers: list[int]) -> None:
    ours, theirs = pair(method, sites, layers, r=4, lora_alpha=8)
    found = {n: m for n, m in theirs.named_modules() if isinstance(m, peft.tuners.lora.Linear)}
    assert len(found) == len(sites) * len(layers)
    with torch.no_grad():
        for name, layer in found.items():
            layer.lora_A["default"].weight.copy_(ours.get_submodule(name).down[0])
            layer.lora_B["default"].weight.copy_(ours.get_submodule(name).up[0])
    text = torch.randint(1, 100, (3, 7))
    a, b = vector(ours, text), vector(theirs, text)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    a.pow(3).sum().backward()  # squares sum to a constant behind BERT's last norm
    b.pow(3).sum().backward()
    for name, layer in found.items():
        mine = ours.get_submodule(name)
        torch.testing.assert_close(mine.down.grad[0], layer.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.up.grad[0], layer.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for _, p in trained(ours)) == sum(p.numel() for _, p in trained(theirs))


def test_bitfit_equals_pefts_training_of_all_biases() -> None:
    """Peft trains biases beside a LoRA alone; its B is zero at the start, so outputs and biases' gradients compare."""
    ours, theirs = pair(BitFit(), ["q"], [0], r=1, bias="all")
    shifts = {name.removesuffix(".shift"): shift for name, shift in trained(ours)}
    biases = {n.replace(".base_layer", ""): p for n, p in trained(theirs) if n.endswith("bias")}
    assert {f"{name}.bias" for name in shifts} == set(biases)
    with torch.no_grad():
        for name, shift in shifts.items():
            biases[f"{name}.bias"].add_(shift[0])
    text = torch.randint(1, 100, (3, 7))
    a, b = vector(ours, text), vector(theirs, text)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    a.pow(3).sum().backward()  # squares sum to a constant behind BERT's last norm
    b.pow(3).sum().backward()
    for name, shift in shifts.items():
        torch.testing.assert_close(shift.grad[0], biases[f"{name}.bias"].grad, rtol=1e-4, atol=1e-4)
