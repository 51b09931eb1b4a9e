"""RadDiag: attention over each scan's slices, then over the modalities."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusionbench.adapt.views import EncoderPool
from fusionbench.errors import check_number
from fusionbench.fusion.base import Strategy, linear
from fusionbench.layers.projection import check_heads, projections
from fusionbench.layers.transformer import transformer
from fusionbench.registry import register
from fusionbench.types import Output, Problem


@register
class RadDiag(Strategy):
    """RadDiag: a transformer over each modality's slices, and one over the modalities, each with a class token.

    Large-scale long-tailed disease diagnosis on radiology images, Nature Communications 2024. The vectors of a scan's
    slices with learned positions and a class token go through one layer with one head; the results of all modalities,
    with a learned embedding of the modality and a further class token, through two layers with four heads, absent
    modalities masked; an MLP classifies the class token. Feed-forward layers are as wide as the tokens and nothing is
    dropped.

    As in the original one slice transformer serves all modalities. Ours: the slices' vectors are the encoder's (its
    class token, where the original has a ResNet-50's mean) and projected where widths differ; layers are post-norm with
    ReLU; the cross-entropy is the task's; the term that draws the attention to marked slices is left out, since EI's
    data mark none. A modality with one picture is a scan of one slice.

    Beside the encoders 11,238,148 parameters are trained with 2 modalities and 4 classes. With fully tuned encoders
    that makes the published 212.2 M (CLIP) and 213.3 M (DINOv2) in the mean of EI's three datasets.

    Args:
        slice_layers: Layers over the slices.
        slice_heads: Attention heads over the slices.
        layers: Layers over the modalities.
        heads: Attention heads over the modalities.
        ratio: Width of the feed-forward layers by that of the tokens.
    """

    def __init__(
        self,
        problem: Problem,
        pool: EncoderPool,
        *,
        slice_layers: int = 1,
        slice_heads: int = 1,
        layers: int = 2,
        heads: int = 4,
        ratio: float = 1.0,
    ) -> None:
        super().__init__(problem)
        check_number("fusion.slice_layers", slice_layers, least=1)
        check_number("fusion.layers", layers, least=1)
        check_number("fusion.ratio", ratio, above=0)
        self.views = pool.token_views({name: name for name in self.names})
        widths = {name: self.views.width(name) for name in self.names}
        width = max(widths.values())
        check_heads("fusion.slice_heads", slice_heads, width)
        check_heads("fusion.heads", heads, width)
        hidden = max(1, round(ratio * width))
        most = max(spec.instances if spec.is_image else 1 for spec in problem.modalities.values())
        self.projections = projections(widths, width)
        self.slice_class, self.positions = _embedding(1, width), _embedding(1 + most, width)
        self.over_slices = transformer(width, layers=slice_layers, heads=slice_heads, hidden=hidden)
        self.case_class, self.modality = _embedding(1, width), _embedding(len(self.names), width)
        self.over_modalities = transformer(width, layers=layers, heads=heads, hidden=hidden)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), linear(width, self.classes))

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Read the slices of every modality, then the modalities, and classify."""
        pooled = self.views.pool(self.views.features(self.present_inputs(inputs, present_BM)))
        scans = [self.projections[name](self.by_case(pooled[name], name)) for name in self.names]
        vectors_BMD = torch.stack([self.read_slices(scan_BSD) for scan_BSD in scans], dim=1)
        sequence = _with_class(self.case_class, vectors_BMD + self.modality)
        closed = None if self.problem.complete else ~nn.functional.pad(present_BM, (1, 0), value=True)
        return Output(self.head(self.over_modalities(sequence, src_key_padding_mask=closed)[:, 0]))

    def read_slices(self, slices_BSD: Tensor) -> Tensor:
        """Return the class token (B, D) that has attended to one modality's slices."""
        sequence = _with_class(self.slice_class, slices_BSD)
        out: Tensor = self.over_slices(sequence + self.positions[: sequence.shape[1]])[:, 0]
        return out


def _embedding(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(count, width), std=0.02))


def _with_class(token_1D: Tensor, values_BND: Tensor) -> Tensor:
    """Put a class token before every sequence."""
    return torch.cat([token_1D.expand(len(values_BND), 1, -1).to(values_BND.dtype), values_BND], dim=1)
