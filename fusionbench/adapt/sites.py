"""Which layers of an encoder a tuning method wraps, and the wrapping."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from fusionbench.encoders.base import Encoder
from fusionbench.errors import UserError, nearest
from fusionbench.layers.adaptable import Adaptable
from fusionbench.layers.low_rank_parts import LowRankParts
from fusionbench.layers.rank_mixture import RankMixtureLinear

PARTS = ("q", "k", "v")  # the order of their rows in a fused qkv layer


def replace_linears(
    encoder: Adaptable,
    sites: Sequence[str],
    *,
    views: int,
    ranks: Sequence[int],
    routed: bool,
    bypass: bool,
    scale: float,
    last: int | None = None,
) -> None:
    """Freeze an encoder and put low-rank updates beside the linear layers at the named sites.

    Where queries, keys and values come from one fused layer, ``q``, ``k`` and ``v`` are parts of it.

    Args:
        encoder: What to adapt, in place.
        sites: Names as in ``Encoder.linear_sites``.
        views: V, how many adapter sets to hold.
        ranks: Rank of each update.
        routed: Whether a router weighs the updates.
        bypass: Whether the router has a further output whose share of the update is dropped.
        scale: α / rank.
        last: Only in so many last layers; None: in all.

    Raises:
        UserError: The encoder has no such site, or a router would need a part of a layer.
    """

    def mixture(base: nn.Linear) -> nn.Module:
        options = {"ranks": ranks, "routed": routed, "bypass": bypass, "scale": scale}
        return RankMixtureLinear(base, views, encoder.selector, **options)  # type: ignore[arg-type]

    def partial(base: nn.Linear) -> nn.Module:
        return LowRankParts(base, views, encoder.selector, parts=parts, of=len(PARTS), rank=ranks[0], scale=scale)

    encoder.requires_grad_(False)
    fused = fused_sites(encoder, sites) if not routed and len(ranks) == 1 else []
    parts = sorted(PARTS.index(site) for site in fused)
    for site in sites:
        for name in () if site in fused else linear_layers(encoder, site, last):
            wrap(encoder, name, mixture)
    for name in linear_layers(encoder, "qkv", last) if fused else ():
        wrap(encoder, name, partial)


def fused_sites(encoder: Adaptable, sites: Sequence[str]) -> list[str]:
    """Return which of the sites are parts (``PARTS``) of one fused qkv layer.

    Raises:
        UserError: The fused layer as a whole is named, too.
    """
    known = encoder.linear_sites()
    fused = [site for site in sites if site in PARTS and not known.get(site) and known.get("qkv")]
    if fused and "qkv" in sites:
        raise UserError(f"'adapt.sites' names qkv and, within it, {fused[0]}; give either")
    return fused


def linear_layers(encoder: Adaptable, site: str, last: int | None = None) -> list[str]:
    """Return the module names of a site's layers, or of the last few.

    Raises:
        UserError: The encoder has no such site, or not so many layers.
    """
    known = {name: layers for name, layers in encoder.linear_sites().items() if layers}
    if site not in known:
        raise UserError(f"{type(encoder).__name__} has no linear layers '{site}' to adapt{nearest(site, known)}")
    if last is not None and last > len(known[site]):
        raise UserError(f"'adapt.last' is {last}, but {type(encoder).__name__} has only {len(known[site])} layers")
    return known[site] if last is None else known[site][-last:]


def wrap(encoder: Adaptable, name: str, make: Callable[..., nn.Module]) -> None:
    """Put what ``make`` builds around a module into the module's place."""
    parent, _, child = name.rpartition(".")
    setattr(encoder.get_submodule(parent), child, make(encoder.get_submodule(name)))


def need_layers(encoder: Encoder, method: str) -> None:
    """Refuse an encoder that is no stack of layers over a sequence.

    Raises:
        UserError: Says which encoder.
    """
    if not encoder.takes_tokens or not encoder.depth:
        raise UserError(
            f"'{method}' works on a transformer's layers, which {type(encoder).__name__} lacks; choose timm_vit or "
            "hf_text for the encoder, or adapt: frozen"
        )
