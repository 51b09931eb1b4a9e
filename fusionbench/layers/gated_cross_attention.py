"""A gated layer by which a decoder that has learned text alone comes to read a picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FloatRMSNorm(nn.RMSNorm):
    """RMSNorm computed in float32 whatever the precision of input and weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm the last dimension; the result has the input's dtype."""
        return F.rms_norm(x.float(), tuple(self.normalized_shape), self.weight.float(), self.eps).to(x.dtype)


class GatedCrossAttention(nn.Module):
    """A cross-attention layer with tanh gates that start at zero, so that it starts as the identity.

    As the layers of Llama 3.2 Vision, after Flamingo (arXiv 2204.14198)::

        x ← x + tanh(a) · Attention(query = norm(x), keys and values = c)
        x ← x + tanh(b) · SwiGLU(norm(x))

    with a and b learned scalars, grouped queries, an RMSNorm of each head's queries and keys, and no norm of the
    context itself and no positions, all as in Llama 3.2; Flamingo has no norms of heads and a plain MLP. A row whose
    context is closed everywhere passes both lines unchanged. In the first step of training only the gates have
    gradients.

    Args:
        width: D of both sequences.
        heads: Attention heads.
        kv_heads: Heads of keys and values, by which ``heads`` is divisible.
        head_width: Width of a head.
        hidden: Width of the feed-forward layer.
        eps: Of the norms.
        std: Of the normal distribution that the linear layers start from.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        kv_heads: int,
        head_width: int,
        hidden: int,
        eps: float = 1e-5,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.norm, self.norm_out = FloatRMSNorm(width, eps), FloatRMSNorm(width, eps)
        self.q_norm, self.k_norm = FloatRMSNorm(head_width, eps), FloatRMSNorm(head_width, eps)
        self.q = nn.Linear(width, heads * head_width, bias=False)
        self.k = nn.Linear(width, kv_heads * head_width, bias=False)
        self.v = nn.Linear(width, kv_heads * head_width, bias=False)
        self.proj = nn.Linear(heads * head_width, width, bias=False)
        self.gate, self.fc1 = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)
        self.attention_gate, self.mlp_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        for layer in (self.q, self.k, self.v, self.proj, self.gate, self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=std)

    def keys_and_values(self, context_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``forward`` needs of a context, (B, G, T, d) each, G the heads of keys and values."""
        return self.k_norm(_split(self.k(context_BTD), self.kv_heads)), _split(self.v(context_BTD), self.kv_heads)

    def forward(
        self, values_BND: Tensor, context: Tensor | tuple[Tensor, Tensor], bias_BT: Tensor | None = None
    ) -> Tensor:
        """Return the sequence (B, N, D) after reading the context.

        Args:
            values_BND: What asks.
            context: What is read, (B, T, D), or its ``keys_and_values``, so that they are computed once for many calls.
            bias_BT: Added to the attention logits of each token of the context, -inf closes it; None: all are open.
        """
        some_B11 = None
        if bias_BT is not None:
            # A softmax over nothing is NaN: a row without an open token attends to all of them and drops the result.
            some_B1 = (bias_BT > float("-inf")).any(dim=1, keepdim=True)
            bias_BT, some_B11 = bias_BT.where(some_B1, 0), some_B1[..., None]
        known = self.keys_and_values(context) if isinstance(context, Tensor) else context
        read = self._attend(self.norm(values_BND), *known, bias_BT)
        values_BND = values_BND + _gated(self.attention_gate, read, some_B11)
        normed = self.norm_out(values_BND)
        mixed: Tensor = self.fc2(F.silu(self.gate(normed)) * self.fc1(normed))
        return values_BND + _gated(self.mlp_gate, mixed, some_B11)

    def _attend(self, query_BND: Tensor, k_BGTd: Tensor, v_BGTd: Tensor, bias_BT: Tensor | None) -> Tensor:
        q_BHNd = self.q_norm(_split(self.q(query_BND), self.heads))
        # Not enable_gqa: with a bias it has no memory-efficient kernel on a GPU.
        share = self.heads // self.kv_heads
        k_BHTd, v_BHTd = k_BGTd.repeat_interleave(share, dim=1), v_BGTd.repeat_interleave(share, dim=1)
        bias_B11T = None if bias_BT is None else bias_BT[:, None, None].to(q_BHNd.dtype)
        mixed_BHNd = F.scaled_dot_product_attention(q_BHNd, k_BHTd, v_BHTd, bias_B11T)
        out: Tensor = self.proj(mixed_BHNd.transpose(1, 2).flatten(2))
        return out


def _split(values: Tensor, heads: int) -> Tensor:
    return values.reshape(*values.shape[:2], heads, -1).transpose(1, 2)


def _gated(gate: Tensor, update_BND: Tensor, some_B11: Tensor | None) -> Tensor:
    """Return tanh(gate) times an update, zero in rows that read nothing."""
    gated = gate.tanh() * update_BND
    return gated if some_B11 is None else gated * some_B11
