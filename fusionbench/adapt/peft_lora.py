"""LoRA by peft."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from fusionbench.adapt.base import Adaptation, check_updates
from fusionbench.adapt.peft_files import adapted, write_adapter
from fusionbench.adapt.sites import PARTS, fused_sites, linear_layers, wrap
from fusionbench.encoders.base import Encoder
from fusionbench.errors import UserError, check_number
from fusionbench.layers.adaptable import Adaptable
from fusionbench.layers.peft_views import PeftLinear, PeftParts
from fusionbench.registry import register


@register
class PeftLoRA(Adaptation):
    """LoRA (arXiv 2106.09685) as peft makes it, with dropout before the update and adapters in peft's own files.

    The defaults are LLaMA-II fusion's (arXiv 2412.01306): α = 32, dropout 0.1, rank 2 gives its best results. Its rule
    of rank 8 on one kind of layer, 4 on two and 2 on all four of q, k, v, proj is ``total_rank: 8``, which keeps the
    trained parameters equal where these layers are square. As in peft, the update is scaled by α / rank, so that fewer
    ranks weigh more.

    Where q, k and v are one fused layer (timm), peft has no adapter for a part of it: those are trained by ours, and
    written as a peft adapter of the whole layer. Every model folder holds ``adapters/VIEW``, which
    ``peft.PeftModel.from_pretrained(net, folder)`` loads into timm's or transformers' model; those of chosen layers of
    a decoder name the layers by their places in the whole one, which is what they load into.

    Args:
        rank: Rank of the update of each layer.
        total_rank: Shared equally among ``sites`` in place of ``rank``, which it must divide by; null: ``rank`` holds.
        alpha: α; the update is scaled by α / rank.
        dropout: Share of the adapters' inputs that is dropped in training.
        sites: Which linear layers, of q, k, v, qkv, proj, gate, fc1, fc2, as far as the encoder has them.
    """

    def __init__(
        self,
        *,
        rank: int = 2,
        total_rank: int | None = None,
        alpha: float = 32.0,
        dropout: float = 0.1,
        sites: Sequence[str] = ("q", "v"),
    ) -> None:
        check_updates([rank], 1.0, sites)
        check_number("adapt.alpha", alpha, above=0)
        check_number("adapt.dropout", dropout, least=0, below=1)
        self.rank = rank if total_rank is None else _share(total_rank, len(sites))
        self.alpha, self.dropout, self.sites = alpha, dropout, tuple(sites)

    def apply(self, encoder: Encoder, views: int) -> None:
        """Freeze the encoder and let peft adapt its linear layers."""
        self.tune(encoder, views)

    def tune(self, layers: Adaptable, views: int) -> None:
        """Freeze layers and put peft's adapters, one for each view, beside the linear ones.

        Raises:
            UserError: There is no such site, or ``sites`` names a fused layer and a part of it.
        """
        layers.requires_grad_(False)
        fused = fused_sites(layers, self.sites)
        whole = [name for site in self.sites if site not in fused for name in linear_layers(layers, site)]
        for name in linear_layers(layers, "qkv") if fused else ():
            wrap(layers, name, partial(self._parts, layers, fused, views))
        if whole:
            self._inject(layers, whole, views)
        for name in whole:
            wrap(layers, name, partial(PeftLinear, selector=layers.selector, dropout=self.dropout))

    def export(self, encoder: Adaptable, view: int, folder: Path) -> Path | None:
        """Write a view's adapters in peft's format; also those of a strategy's own layers.

        Args:
            encoder: Holds the adapters.
            view: Which of its views.
            folder: Where to; made if need be.

        Returns:
            The folder, or None if nothing here is adapted.
        """
        if not adapted(encoder):
            return None
        return write_adapter(encoder, view, folder, rank=self.rank, alpha=self.alpha, dropout=self.dropout)

    def _inject(self, layers: Adaptable, names: Sequence[str], views: int) -> None:
        """Let peft replace the named linear layers by its own, with an adapter for each view."""
        from peft import LoraConfig, inject_adapter_in_model

        for view in range(views):
            config = LoraConfig(
                r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=list(names)
            )
            inject_adapter_in_model(config, layers, adapter_name=f"view{view}")
            del layers.peft_config  # peft's note to itself, which would have it warn of the next view

    def _parts(self, layers: Adaptable, sites: Sequence[str], views: int, base: nn.Linear) -> PeftParts:
        """Adapt the named parts of a fused layer."""
        return PeftParts(
            base,
            views,
            layers.selector,
            parts=sorted(PARTS.index(site) for site in sites),
            of=len(PARTS),
            rank=self.rank,
            scale=self.alpha / self.rank,
            dropout=self.dropout,
        )


def _share(total: int, sites: int) -> int:
    """Return the rank that each site gets of a total."""
    check_number("adapt.total_rank", total, least=1)
    if total % sites:
        raise UserError(
            f"'adapt.total_rank' {total} can't be shared equally by {sites} sites; give a multiple of {sites}, or "
            "'adapt.rank'"
        )
    return total // sites
