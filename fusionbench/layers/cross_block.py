"""A pretrained decoder layer as a block in which several sequences read each other."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.layers.adaptable import Adaptable


class ContextAttention(nn.Module):
    """The self-attention of a Llama-like decoder layer, made to read another sequence: no causal mask, no RoPE.

    Args:
        attention: transformers' module; its projections are taken over, its heads are those of its ``config``.
    """

    def __init__(self, attention: Any) -> None:  # noqa: ANN401 - of any Llama-like family
        super().__init__()
        self.q, self.k, self.v, self.proj = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        self.heads = int(attention.config.num_attention_heads)
        self.kv_heads = int(attention.config.num_key_value_heads)
        nothing = nn.Identity()  # Qwen 3 norms each head
        self.q_norm, self.k_norm = getattr(attention, "q_norm", nothing), getattr(attention, "k_norm", nothing)

    def forward(self, query_BND: Tensor, context_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Return what each token (B, N, D) reads of a context; zeros in rows without anything to read.

        Args:
            query_BND: What asks.
            context_BTD: What is read.
            mask_BT: False where not to read. None: everything is read.
        """
        q_BHNd = self.q_norm(self._split(self.q(query_BND), self.heads))
        k_BGTd = self.k_norm(self._split(self.k(context_BTD), self.kv_heads))
        v_BGTd = self._split(self.v(context_BTD), self.kv_heads)
        # Not enable_gqa: with a mask it has no memory-efficient kernel on a GPU.
        share = self.heads // self.kv_heads
        k_BHTd, v_BHTd = k_BGTd.repeat_interleave(share, dim=1), v_BGTd.repeat_interleave(share, dim=1)
        if mask_BT is None:
            return self._join(F.scaled_dot_product_attention(q_BHNd, k_BHTd, v_BHTd))
        # A softmax over nothing is NaN: a row without an open key attends to all of them and drops the result.
        some_B1 = mask_BT.any(dim=1, keepdim=True)
        open_B11T = (mask_BT | ~some_B1)[:, None, None]
        return self._join(F.scaled_dot_product_attention(q_BHNd, k_BHTd, v_BHTd, open_B11T)) * some_B1[..., None]

    @staticmethod
    def _split(values: Tensor, heads: int) -> Tensor:
        return values.reshape(*values.shape[:2], heads, -1).transpose(1, 2)

    def _join(self, mixed_BHNd: Tensor) -> Tensor:
        out: Tensor = self.proj(mixed_BHNd.transpose(1, 2).flatten(2))
        return out


class CrossBlock(Adaptable):
    """Sequences that read each other through one decoder layer.

    Multimodal Medical Disease Classification with LLaMA II (arXiv 2412.01306), as in the first author's code::

        out_x = Attention_x(query = norm(x), keys and values = norm(y))        y: the tokens of all other sequences
        x'    = norm_out(SwiGLU(out_x) + x)

    and the same for y, out of the same states: no direction sees what another one wrote in this block. Both norms and
    the SwiGLU are shared by the directions. ``norm`` is the layer's input norm; that ``norm_out`` starts as its
    post-attention norm is ours, as are more than two sequences.

    Every direction has attention weights of its own. Where a tuning method works beside a frozen layer, they are one
    base in memory and an adapter set for each direction (so has an adapted SwiGLU); where all is trained, ``separate``
    makes copies.

    Args:
        layer: transformers' layer with ``self_attn``, ``mlp`` and both norms; its modules are taken over.
    """

    def __init__(self, layer: Any) -> None:  # noqa: ANN401 - of any Llama-like family
        super().__init__()
        self.attentions = nn.ModuleList([ContextAttention(layer.self_attn)])
        self.mlp = layer.mlp
        self.norm, self.norm_out = layer.input_layernorm, layer.post_attention_layernorm
        self.width = int(self.norm.weight.shape[0])

    def separate(self, directions: int) -> None:
        """Give each direction a copy of the attention."""
        first = self.attentions[0]
        self.attentions = nn.ModuleList([first, *(deepcopy(first) for _ in range(directions - 1))])

    def forward(self, states: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return all sequences after they read each other.

        Args:
            states: (B, N, D) by modality, always in the same order.
            masks: (B, N) bool by modality, False where a token must not be read; None: everything is read. A row whose
                other sequences have nothing to read keeps on with a reading of zeros.
        """
        normed = {name: self.norm(values) for name, values in states.items()}
        return {name: self._update(index, name, states, normed, masks) for index, name in enumerate(states)}

    def _update(
        self,
        index: int,
        name: str,
        states: Mapping[str, Tensor],
        normed: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """Return one sequence after it read the others."""
        others = [other for other in normed if other != name]
        with self.selector.select((index,)):
            if others:
                context = torch.cat([normed[other] for other in others], dim=1)
                mask = None if masks is None else torch.cat([masks[other] for other in others], dim=1)
                reading = self.attentions[index % len(self.attentions)](normed[name], context, mask)
            else:
                reading = torch.zeros_like(normed[name])
            out: Tensor = self.norm_out(self.mlp(reading) + states[name])
            return out

    def linear_sites(self) -> dict[str, list[str]]:
        """Name the linear layers; of the attention, those of every copy."""
        copies = range(len(self.attentions))
        sites = {site: [f"attentions.{i}.{site}" for i in copies] for site in ("q", "k", "v", "proj")}
        return sites | {"gate": ["mlp.gate_proj"], "fc1": ["mlp.up_proj"], "fc2": ["mlp.down_proj"]}

    def norm_sites(self) -> list[str]:
        """Name both norms."""
        return ["norm", "norm_out"]
