"""Attention, transformer layers and pooling as plain loops over cases, heads and tokens, written from the equations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusionbench.fusion.base import Strategy


def norm(x_D: Tensor, layer: nn.LayerNorm) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * weight + bias of one token."""
    variance = ((x_D - x_D.mean()) ** 2).mean()
    return (x_D - x_D.mean()) / torch.sqrt(variance + layer.eps) * layer.weight + layer.bias


def attend(x_ND: Tensor, y_TD: Tensor, layer: nn.MultiheadAttention, open_: Sequence[bool]) -> Tensor:
    """Return softmax(q·k / sqrt(d)) v of every query and head, over the open keys alone."""
    width = x_ND.shape[1]
    part = width // layer.num_heads
    q, k, v = (
        x @ layer.in_proj_weight[i * width : (i + 1) * width].T + layer.in_proj_bias[i * width : (i + 1) * width]
        for i, x in enumerate((x_ND, y_TD, y_TD))
    )
    keys = [t for t in range(len(y_TD)) if open_[t]]
    out = []
    for n in range(len(x_ND)):
        heads = []
        for h in range(layer.num_heads):
            cut = slice(h * part, (h + 1) * part)
            scores = torch.stack([q[n, cut] @ k[t, cut] / math.sqrt(part) for t in keys])
            shares = scores.exp() / scores.exp().sum()
            heads.append(sum(shares[i] * v[t, cut] for i, t in enumerate(keys)))
        out.append(layer.out_proj.weight @ torch.cat(heads) + layer.out_proj.bias)
    return torch.stack(out)


def transform(x_ND: Tensor, encoder: nn.TransformerEncoder, open_: Sequence[bool]) -> Tensor:
    """Run post-norm layers with ReLU, without dropout, on one case's sequence."""
    for layer in encoder.layers:
        assert isinstance(layer, nn.TransformerEncoderLayer)
        x_ND = x_ND + attend(x_ND, x_ND, layer.self_attn, open_)
        x_ND = torch.stack([norm(x, layer.norm1) for x in x_ND])
        hidden = (x_ND @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
        x_ND = x_ND + hidden @ layer.linear2.weight.T + layer.linear2.bias
        x_ND = torch.stack([norm(x, layer.norm2) for x in x_ND])
    return x_ND


def pooled(x_ND: Tensor, count: int) -> Tensor:
    """Average tokens ⌊i N / count⌋ to ⌈(i + 1) N / count⌉ - 1 for every i."""
    n = len(x_ND)
    return torch.stack([x_ND[math.floor(i * n / count) : math.ceil((i + 1) * n / count)].mean(0) for i in range(count)])


def own_tokens(network: Strategy, name: str, value: Tensor) -> Tensor:
    """Return one case's normed tokens, one slice behind the other and without padding, from its encoder's parts.

    Args:
        network: Its view is called ``name``.
        name: The modality.
        value: One case's input: (S, C, H, W), (L,) or (F,).
    """
    encoder, index = network.views.encoder(name), network.views.address[name][1]
    rows = value if network.problem.modalities[name].is_image else value[None]
    out = []
    for row in rows:
        tokens = encoder.encode(encoder.embed(row[None]), views=(index,))
        values = tokens.values[0] if tokens.mask is None else tokens.values[0][tokens.mask[0]]
        out.append(final_norm(encoder, values))
    return torch.cat(out)


def final_norm(encoder: nn.Module, values_ND: Tensor) -> Tensor:
    """Norm tokens as an encoder's pooling norms its class token; BERT has nothing to norm there."""
    net = getattr(encoder, "net", encoder)
    layer = getattr(net, "norm", None)
    return values_ND if layer is None else torch.stack([norm(x, layer) for x in values_ND])
