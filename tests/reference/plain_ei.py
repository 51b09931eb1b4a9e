"""EI as a plain loop over modalities, cases and slices, written from Eq. 1-8 and the readings fixed in ei_facts.md.

Weights are read from the strategy under test; nothing else of it is used. One case is one sequence: what is absent, or
padding, is left out instead of masked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel

from fusionbench.fusion.base import Strategy
from fusionbench.types import Batch

RANKS = (2, 4, 8)


@dataclass(frozen=True)
class Reading:
    """What the paper leaves open, and its sweeps."""

    acquire_layer: int | None = None
    insert_layer: int = 0
    lambda_aux: float = 0.3
    lambda_gate: float = 0.1
    detach: bool = True
    aux_pool: str = "max"
    primary_pool: str = "mean"
    order: list[int] = field(default_factory=list)  # modalities from the most to the least trusted by the prior
    gaps: list[float] | None = None  # given: the prior is taken for each sample


@dataclass
class Plain:
    """What the loop gives; lists over modalities hold None for a case that lacks one."""

    logits: Tensor
    primary: list[list[Tensor | None]]
    auxiliary: list[list[Tensor | None]]
    weights: Tensor
    losses: dict[str, Tensor]


def adapted(layer: nn.Module, view: int, h_ND: Tensor) -> Tensor:
    """Eq. 4 with scale 2, expert by expert: h' = Wh + Σ w_k 2 B_k A_k h, w_0 being the bypass."""
    out = F.linear(h_ND, layer.base.weight, layer.base.bias)
    w = torch.softmax(h_ND @ layer.route_weight[view].T + layer.route_bias[view], dim=-1)
    first = 0
    for k, rank in enumerate(RANKS, start=1):
        a_k, b_k = layer.down[view, first : first + rank], layer.up[view, :, first : first + rank]
        out = out + w[:, k : k + 1] * 2 * ((h_ND @ a_k.T) @ b_k.T)
        first += rank
    return out


class Walk:
    """One view's encoder, one sequence (N, D) at a time."""

    def __init__(self, network: Strategy, view: str) -> None:
        key, self.view = network.views.address[view]
        modules = list(network.views.backbones[key].modules())
        self.net = next(m for m in modules if isinstance(m, VisionTransformer | BertModel))
        self.is_image = isinstance(self.net, VisionTransformer)
        self.depth = len(self.net.blocks) if self.is_image else len(self.net.encoder.layer)

    def embed(self, value: Tensor) -> Tensor:
        """Turn one picture (3, H, W), or one text (L,) whose padding is 0, into Z^0."""
        if self.is_image:
            return self.net.norm_pre(self.net._pos_embed(self.net.patch_embed(value[None])))[0]
        return self.net.embeddings(input_ids=value[value != 0][None])[0]

    def layers(self, z_ND: Tensor, start: int, stop: int) -> Tensor:
        """Run layers ``start`` to ``stop``."""
        for index in range(start, stop):
            z_ND = self._block(index, z_ND) if self.is_image else self._bert_layer(index, z_ND)
        return z_ND

    def _block(self, index: int, z_ND: Tensor) -> Tensor:
        block = self.net.blocks[index]
        z_ND = z_ND + block.attn(block.norm1(z_ND)[None])[0]
        h = F.gelu(adapted(block.mlp.fc1, self.view, block.norm2(z_ND)))
        return z_ND + adapted(block.mlp.fc2, self.view, h)

    def _bert_layer(self, index: int, z_ND: Tensor) -> Tensor:
        layer = self.net.encoder.layer[index]
        z_ND = layer.attention(z_ND[None])[0][0]
        h = adapted(layer.output.dense, self.view, F.gelu(adapted(layer.intermediate.dense, self.view, z_ND)))
        return layer.output.LayerNorm(z_ND + h)

    def cls(self, z_ND: Tensor) -> Tensor:
        """Return the class token after the final norm, if there is one."""
        return (self.net.norm(z_ND) if self.is_image else z_ND)[0]


def over_slices(values: list[Tensor], how: str) -> Tensor:
    """Pool vectors over slices, element by element."""
    stacked = torch.stack(values)
    return stacked.max(dim=0).values if how == "max" else stacked.mean(dim=0)


def slices(network: Strategy, batch: Batch, name: str, case: int) -> list[Tensor]:
    """Return a case's pictures, or its one text."""
    value = batch.inputs[name][case]
    return list(value) if network.problem.modalities[name].is_image else [value]


def intervention(network: Strategy, target: str, reference: str, cls_D: Tensor) -> Tensor:
    """Eq. 1's adapter of an ordered pair: LayerNorm (eps 1e-6), Linear, GELU, Linear."""
    norm, first, second = [m for m in network.adapters[f"{target}/{reference}"] if list(m.parameters())]
    h = F.layer_norm(cls_D, cls_D.shape, norm.weight, norm.bias, eps=1e-6)
    return F.linear(F.gelu(F.linear(h, first.weight, first.bias)), second.weight, second.bias)


def auxiliary(network: Strategy, batch: Batch, case: int, name: str, how: Reading) -> tuple[Tensor, Tensor]:
    """Eq. 1 and 6: the class token to hand on (D,) and the auxiliary prediction (K,)."""
    walk = Walk(network, f"auxiliary/{name}")
    acquire = walk.depth if how.acquire_layer is None else how.acquire_layer
    tokens, logits = [], []
    for value in slices(network, batch, name, case):
        z = walk.layers(walk.embed(value), 0, acquire)
        tokens.append(walk.cls(z))
        head = network.auxiliary_heads[name]
        logits.append(F.linear(walk.cls(walk.layers(z, acquire, walk.depth)), head.weight, head.bias))
    return over_slices(tokens, how.aux_pool), over_slices(logits, how.aux_pool)


def primary(network: Strategy, batch: Batch, case: int, name: str, int_D: list[Tensor], how: Reading) -> Tensor:
    """Eq. 2: the class token (D,) of a sequence at whose end the intervention tokens were put."""
    walk = Walk(network, f"primary/{name}")
    out = []
    for value in slices(network, batch, name, case):
        z = walk.layers(walk.embed(value), 0, how.insert_layer)
        z = torch.cat([z, *(token[None] for token in int_D)])
        out.append(walk.cls(walk.layers(z, how.insert_layer, walk.depth)))
    return over_slices(out, how.primary_pool)


def one_case(network: Strategy, batch: Batch, case: int, how: Reading) -> tuple[list, list, Tensor, Tensor]:
    """Return a case's primary and auxiliary predictions, its gate weights (M,) and fused logits (K,) by Eq. 1-3."""
    names = network.names
    here = [m for m in range(len(names)) if batch.present[case, m]]
    aux = {m: auxiliary(network, batch, case, names[m], how) for m in here}
    y_a = [aux[m][1] if m in aux else None for m in range(len(names))]
    y_t: list[Tensor | None] = []
    features = []
    for t, name in enumerate(names):
        if t not in here:
            y_t.append(None)
            features.append(torch.zeros(network.heads[name].in_features))
            continue
        int_D = [intervention(network, name, names[r], aux[r][0]) for r in here if r != t]
        features.append(primary(network, batch, case, name, int_D, how))
        y_t.append(F.linear(features[-1], network.heads[name].weight, network.heads[name].bias))
    joined = torch.cat(features)
    scores = F.linear(joined.detach() if how.detach else joined, network.gate.weight, network.gate.bias)
    share = torch.zeros(len(names)).index_put((torch.tensor(here),), torch.softmax(scores[here], dim=0))
    fused = sum(share[m] * (y_t[m].detach() if how.detach else y_t[m]) for m in here)
    return y_t, y_a, share, fused


def cross_entropy(logits: list[Tensor], target: list[Tensor]) -> Tensor:
    """Average -log p over cases, or binary cross-entropy over cases and classes."""
    if target[0].ndim == 0:
        return -torch.stack([torch.log_softmax(x, 0)[y] for x, y in zip(logits, target, strict=True)]).mean()
    p = torch.sigmoid(torch.stack(logits))
    y = torch.stack(target)
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def ranking_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return one case's cross-entropy by which ``per_sample`` compares modalities; a soft target when multi-label."""
    log_p = torch.log_softmax(logits, 0)
    return -log_p[target] if target.ndim == 0 else -(target * log_p).sum()


def wanted(y_t: list[Tensor | None], target: Tensor, how: Reading) -> int:
    """Return π of a case, among the modalities that it has."""
    here = [m for m, y in enumerate(y_t) if y is not None]
    if how.gaps is None:
        return next(m for m in how.order if m in here)
    return min(here, key=lambda m: ranking_loss(y_t[m], target).item() * how.gaps[m])


def plain_ei(network: Strategy, batch: Batch, how: Reading) -> Plain:
    """Run the cases one by one and return predictions and the terms of Eq. 8, weights included."""
    cases = [one_case(network, batch, case, how) for case in range(len(batch.target))]
    y_t, y_a, share, fused = (list(part) for part in zip(*cases, strict=True))
    targets = list(batch.target)
    losses = {"fused": cross_entropy(fused, targets)}
    for m, name in enumerate(network.names):
        for role, predictions, weight in (("primary", y_t, 1.0), ("auxiliary", y_a, how.lambda_aux)):
            seen = [(p[m], y) for p, y in zip(predictions, targets, strict=True) if p[m] is not None]
            losses[f"{role}/{name}"] = weight * cross_entropy([p for p, _ in seen], [y for _, y in seen])
    if how.order or how.gaps:
        nll = [-torch.log(s[wanted(y, target, how)]) for s, y, target in zip(share, y_t, targets, strict=True)]
        losses["gate"] = how.lambda_gate * torch.stack(nll).mean()
    return Plain(torch.stack(fused), y_t, y_a, torch.stack(share), losses)
