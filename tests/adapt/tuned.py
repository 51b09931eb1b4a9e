"""Tiny encoders and views of them, as tests of tuning methods want them."""

from __future__ import annotations

from tiny import SPECS, batch, encoder_node, perturb, problem
from torch import Tensor

from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.encoders.base import Encoder

READS = {"hf_text": "report", "llama": "report", "timm_vit": "picture"}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def bare(name: str, **options: object) -> Encoder:
    """Return a tiny frozen encoder in evaluation mode."""
    kind, defaults = encoder_node(name)
    return kind(SPECS[READS[name]], **{**defaults, **options}).eval()


def inputs(name: str) -> Tensor:
    """Return three texts (3, L) or pictures (3, C, H, W)."""
    value = batch(problem((READS[name],)), 3).inputs[READS[name]]
    return value.flatten(0, 1) if SPECS[READS[name]].is_image else value


def vectors(encoder: Encoder, rows: Tensor, views: tuple[int, ...] = (0,)) -> Tensor:
    """Return the pooled rows, equal parts of which belong to the given views."""
    return encoder.pool(encoder.encode(encoder.embed(rows), views=views))


def views(name: str, method: Adaptation, **options: object) -> Views:
    """Return two views of one encoder."""
    made = problem((READS[name],))
    kind, defaults = encoder_node(name)
    pool = EncoderPool(made.modalities, {READS[name]: (kind, {**defaults, **options})}, method)
    return perturb(pool.views(dict.fromkeys(("primary/x", "auxiliary/x"), READS[name])))
