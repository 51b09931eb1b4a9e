"""Cross blocks and their readout as plain loops over cases, heads and tokens, written from llama2_facts.md, 3.2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fusionbench.layers.cross_block import ContextAttention, CrossBlock
from fusionbench.layers.decoder_readout import DecoderReadout
from fusionbench.layers.rank_mixture import RankMixtureLinear

Case = dict[str, Tensor]  # one case's tokens (N, D) by modality


def rms(x_D: Tensor, layer: nn.Module) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) * weight of one token."""
    eps = getattr(layer, "variance_epsilon", None) or layer.eps
    return x_D / torch.sqrt((x_D * x_D).mean() + eps) * layer.weight


def affine(x_D: Tensor, layer: nn.Module, view: int) -> Tensor:
    """Return W x + b, beside it a view's low-rank update if the layer has them."""
    if isinstance(layer, RankMixtureLinear):
        return affine(x_D, layer.base, view) + layer.scale * layer.up[view] @ (layer.down[view] @ x_D)
    out = layer.weight @ x_D
    return out if layer.bias is None else out + layer.bias


def head_norm(x_d: Tensor, layer: nn.Module) -> Tensor:
    """Norm one head, where the family does."""
    return x_d if isinstance(layer, nn.Identity) else rms(x_d, layer)


def read(x_ND: Tensor, y_TD: Tensor, layer: ContextAttention, open_: Sequence[bool], view: int) -> Tensor:
    """Return softmax(q·k / sqrt(d)) v of every query and head, over the open keys alone; zeros if there are none."""
    keys = [t for t in range(len(y_TD)) if open_[t]]
    if not keys:
        return torch.zeros_like(x_ND)
    size = affine(x_ND[0], layer.q, view).shape[0] // layer.heads
    out = []
    for x in x_ND:
        heads = []
        for h in range(layer.heads):
            own, shared = slice(h * size, (h + 1) * size), h * layer.kv_heads // layer.heads
            group = slice(shared * size, (shared + 1) * size)
            q = head_norm(affine(x, layer.q, view)[own], layer.q_norm)
            k = [head_norm(affine(y_TD[t], layer.k, view)[group], layer.k_norm) for t in keys]
            v = [affine(y_TD[t], layer.v, view)[group] for t in keys]
            weights = torch.stack([(q @ one / math.sqrt(size)).exp() for one in k])
            heads.append(sum(w / weights.sum() * one for w, one in zip(weights, v, strict=True)))
        out.append(affine(torch.cat(heads), layer.proj, view))
    return torch.stack(out)


def swiglu(x_D: Tensor, mlp: nn.Module, view: int) -> Tensor:
    """Return W_down (silu(W_gate x) * W_up x)."""
    gate = affine(x_D, mlp.gate_proj, view)
    return affine(gate / (1 + (-gate).exp()) * affine(x_D, mlp.up_proj, view), mlp.down_proj, view)


def cross(states: Case, block: CrossBlock, open_: Mapping[str, Sequence[bool]]) -> Case:
    """Run one block on one case; every direction reads the states that went in."""
    out = {}
    for view, (name, x_ND) in enumerate(states.items()):
        others = [other for other in states if other != name]
        context = [rms(y, block.norm) for other in others for y in states[other]]
        keys = [flag for other in others for flag in open_[other]]
        layer = block.attentions[view if len(block.attentions) > 1 else 0]
        queries = torch.stack([rms(x, block.norm) for x in x_ND])
        reading = read(queries, torch.stack(context) if context else x_ND[:0], layer, keys, view)
        pairs = zip(reading, x_ND, strict=True)
        out[name] = torch.stack([rms(swiglu(r, block.mlp, view) + x, block.norm_out) for r, x in pairs])
    return out


def readout(states: Case, layer: DecoderReadout, open_: Mapping[str, Sequence[bool]], here: Sequence[str]) -> Tensor:
    """Return one case's sum of pooled vectors, (D,)."""
    total = torch.zeros(layer.pooler.out_features)
    for name in here:
        valid = [rms(x, layer.norm) for x, flag in zip(states[name], open_[name], strict=True) if flag]
        vector = valid[-1] if layer.token == "last" else sum(valid) / len(valid)
        if isinstance(layer.to_vocabulary, nn.Linear):
            vector = affine(vector, layer.to_vocabulary, 0)
        total = total + torch.tanh(affine(vector, layer.pooler, 0))
    return total
