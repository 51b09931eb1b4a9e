"""Image patches through the layers of a BERT-like text model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from fusionbench.encoders import hf_models
from fusionbench.encoders.base import Encoder, Tokens, mean_of_own
from fusionbench.layers.patch_stem import PatchStem
from fusionbench.layers.per_view import EachView
from fusionbench.registry import register
from fusionbench.types import ModalitySpec


@register
class HFPatches(Encoder):
    """Patches of a picture through the first layers of a BERT-like model, as TransCheX's vision stream.

    MONAI's ``transchex.py``: a convolution of side and stride ``patch``, a LayerNorm and learned positions (zero at the
    start) make the tokens, BERT's layers read them; there is no class token. The stem has no pretrained weights: each
    view has one of its own, trained whatever the tuning method. The text model's own embeddings are dropped. MONAI
    never pools this stream, so both ways are ours; pictures whose size is no multiple of ``patch`` are padded, too.

    Args:
        model: Hub id of the text model, e.g. ``google-bert/bert-base-uncased``; not needed for a path or an asset.
        weights: ``hub``, ``asset:NAME``, ``random``, or a path to a folder with config.json and weights.
        config: With random weights, a transformers config: ``{model_type: bert, hidden_size: 64, ...}``.
        fallback: ``asset:NAME`` or a path to start from where ``weights`` is ``hub`` and the hub does not give them;
            the run says so, and its config tells by ``weights`` which it was. null: the run stops.
        patch: Side of a patch, in pixels.
        layers: How many of the model's first layers are used; null: all.
        pool: ``mean``: the mean over the patches; ``first``: the patch at the top left.
        checkpointing: Recompute layers in the backward pass to save memory.
    """

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        weights: str,
        model: str | None = None,
        config: Mapping[str, Any] | None = None,
        fallback: str | None = None,
        patch: int = 32,
        layers: int | None = 2,
        pool: Literal["mean", "first"] = "mean",
        checkpointing: bool = False,
    ) -> None:
        super().__init__(spec, checkpointing)
        net: Any = hf_models.load(model, weights, config, layers)
        self.layers = hf_models.layers_of(net)
        self.width, self.depth = int(net.config.hidden_size), len(self.layers)
        self.patch, self.pool_kind = patch, pool
        self.furnish([spec])

    def furnish(self, specs: Sequence[ModalitySpec]) -> None:
        """Give each view a stem of its own."""
        stems = [PatchStem(self.width, patch=self.patch, size=spec.size) for spec in specs]
        self.stem, self.embeds_by_view = EachView(self.selector, stems), True
        counts = {stem.count for stem in stems}
        self.sequence = counts.pop() if len(counts) == 1 else None

    def embed(self, inputs: Tensor) -> Tokens:
        """Turn pictures (B, 3, H, W) of the modality's size into patches with their positions, (B, N, D)."""
        return Tokens(self.stem(inputs))

    def layer(self, index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Run one transformer layer."""
        return hf_models.run_layer(self.layers[index], values_BND, mask_BN)

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the mean over the patches, or the first patch."""
        return mean_of_own(tokens) if self.pool_kind == "mean" else tokens.values[:, 0]

    def linear_sites(self) -> dict[str, list[str]]:
        """Name the linear layers of every block, by what BERT and DistilBERT call them."""
        return hf_models.linear_sites(self, self.layers)

    def norm_sites(self) -> list[str]:
        """Name the norms of every layer; there is no final one."""
        return hf_models.norm_sites(self, self.layers)
