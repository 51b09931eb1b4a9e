"""MM-MIL: attention over all images of all modalities as the instances of one bag."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionbench.adapt.views import EncoderPool
from fusionbench.errors import check_number
from fusionbench.fusion.base import Strategy, linear
from fusionbench.registry import register
from fusionbench.types import Output, Problem


@register
class MMMIL(Strategy):
    """MM-MIL: each image of each modality is an instance; heads of attention weigh them into case vectors.

    Multi-Modal Multi-Instance Learning for Retinal Disease Recognition, arXiv 2109.12307, Fig. 2 and 3. With ``v_i``
    the vector of instance i, and head k its own weights over all instances of the case::

        s_ki = w_k · tanh(U_k v_i + u_k)        a_k = softmax_i(s_ki + log(n_max / n_m(i)))
        c_k = Σ_i a_ki v_i                      y = mean_k(W c_k + b)

    The paper over-samples the modality that has fewer images (n_m of them) until all have n_max. Copies of an instance
    in a softmax are the logarithm of their number added to its score, which is what we do: the same weights without
    encoding an image twice, and for any n_m. (The paper's copies are crops of a larger picture; ours are the picture.)

    Code and sub-network are not public. Ours: tanh attention of width ``hidden`` for each head, no bias in ``w_k``,
    which a softmax would cancel; one classifier for all heads; text and tables are one instance; encoders whose widths
    differ are projected to the widest; a missing modality's instances have weight 0, the others being renormalised.

    Trainable beside the encoders at width 768 and 4 classes: 8 heads · (768 · 256 + 256 + 256) = 1,576,960, classifier
    3,076; with MoR and M = 2, 4,529,348. These defaults are chosen because they give all that EI's Table 3 prints as
    means of three datasets: 5.0 M with MoR, fully tuned 202.5 M (CLIP) and 203.6 M (DINOv2). Our CLIP is 201.8 M
    (-0.4 %), since its position embeddings keep their pretrained grid and are interpolated as it runs.

    Args:
        heads: h, how many weightings of the instances.
        hidden: Width of each head's hidden layer.
    """

    modality_count: ClassVar[tuple[int, int | None]] = (2, None)

    def __init__(self, problem: Problem, pool: EncoderPool, *, heads: int = 8, hidden: int = 256) -> None:
        super().__init__(problem)
        check_number("fusion.heads", heads, least=1)
        check_number("fusion.hidden", hidden, least=1)
        self.views = pool.token_views({name: name for name in self.names})
        widths = {name: self.views.width(name) for name in self.names}
        width = max(widths.values())
        self.projections = nn.ModuleDict({n: nn.Linear(w, width) for n, w in widths.items() if w != width})
        self.hidden = nn.Linear(width, heads * hidden)
        self.score = nn.Parameter(torch.empty(heads, hidden).uniform_(-1, 1) / math.sqrt(hidden))
        self.head = linear(width, self.classes)
        counts = [spec.instances if spec.is_image else 1 for spec in problem.modalities.values()]
        owners = [m for m, count in enumerate(counts) for _ in range(count)]
        copies = [math.log(max(counts) / counts[m]) for m in owners]
        self.register_buffer("owners", torch.tensor(owners), persistent=False)
        self.register_buffer("copies", torch.tensor(copies), persistent=False)
        self.owners: Tensor
        self.copies: Tensor

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Encode every image, weigh the instances by each head and average the heads' logits (B, K)."""
        instances_BND = self._instances(self.present_inputs(inputs, present_BM))
        weights_BNH = self._attend(instances_BND, present_BM)
        cases_BHD = torch.einsum("bnh,bnd->bhd", weights_BNH, instances_BND.to(weights_BNH.dtype))
        counted_BN = weights_BNH.mean(dim=2)
        counted_BM = torch.zeros_like(present_BM, dtype=counted_BN.dtype).index_add(1, self.owners, counted_BN)
        return Output(self.head(cases_BHD).mean(dim=1), weights=counted_BM)

    def _instances(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors of all images of all modalities, (B, N, D), in the order of the modalities."""
        pooled = self.views.pool(self.views.features(rows))
        for name, project in self.projections.items():
            pooled[name] = project(pooled[name])
        return torch.cat([self.by_case(pooled[name], name) for name in self.names], dim=1)

    def _attend(self, instances_BND: Tensor, present_BM: Tensor) -> Tensor:
        """Return each head's weights (B, N, H), which sum to 1 over the instances that a case has."""
        hidden_BNHL = self.hidden(instances_BND).tanh().unflatten(-1, self.score.shape)
        scores_BNH = (hidden_BNHL * self.score).sum(dim=-1) + self.copies[:, None]
        absent_BN = ~present_BM[:, self.owners]
        weights: Tensor = scores_BNH.masked_fill(absent_BN[..., None], float("-inf")).softmax(dim=1)
        return weights
