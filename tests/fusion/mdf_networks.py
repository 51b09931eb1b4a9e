"""Small networks of MDF and its baseline, and cases with masks."""

from __future__ import annotations

from typing import Any

import torch
from tiny import batch, encoder_node, perturb, pool_for, problem, strategy
from torch import Tensor

from fusionbench.fusion.mdf import MDF
from fusionbench.fusion.mllm import MLLM
from fusionbench.types import Batch, Problem

MADE = problem(("picture", "report"))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PRESENT = torch.tensor([[True, True], [True, False], [True, True], [False, True]])


def mdf(
    encoder: str = "llama_vision", method: str = "frozen", made: Problem = MADE, noisy: bool = True, **options: Any
) -> MDF:
    """Return a small network in evaluation mode; with ``mask`` its U-Net has a decoder."""
    source = pool_for("mdf", made, method, {"text": encoder})
    kind, given = encoder_node("unet")
    source.nodes = {**source.nodes, "picture": (kind, {**given, "segment": "mask" in options})}
    out = MDF(made, source, **{"grid": 2, **options}).eval()
    out.draws = True
    if noisy:
        perturb(out).views.encoder("report").apply(open_gates)
    return out


@torch.no_grad()
def open_gates(module: torch.nn.Module) -> None:
    """Let cross-attention layers read pictures, which they do not at the start."""
    for name in ("cross_attn_attn_gate", "cross_attn_mlp_gate", "attention_gate", "mlp_gate"):
        if hasattr(module, name):
            getattr(module, name).fill_(0.5)


def cases_of(made: Problem = MADE, present: Tensor = PRESENT) -> Batch:
    """Return cases of which the first and the last have a mask."""
    cases, masks = batch(made, present=present), (torch.rand(len(present), 1, 32, 32) > 0.5).float()
    known = torch.arange(len(present)) % 3 == 0
    return cases._replace(extras={"vessels": masks, "vessels/present": known})


def same_language_model(network: MDF, encoder: str, method: str) -> MLLM:
    """Return the baseline around the same language model."""
    out = strategy("mllm", MADE, pool_for("mllm", MADE, method, {"text": encoder})).eval()
    own = network.views.encoder("report").state_dict()
    out.views.encoder("report").load_state_dict(own)
    return out
