"""BERT-like models of transformers: read or made at random, cut to their first layers, and how their layers run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionbench.encoders.base import attention_mask
from fusionbench.encoders.hf_config import makes, model_type, random_config
from fusionbench.encoders.weights import hub_failed, weights_path
from fusionbench.errors import UserError, check_number, nearest
from fusionbench.layers.skeleton import is_skeleton

_FAMILIES = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
# What BERT and DistilBERT call the linear layers of a block.
_SITES = {
    "fc1": ("intermediate.dense", "ffn.lin1"),
    "fc2": (".output.dense", "ffn.lin2"),
    "q": ("attention.self.query", "attention.q_lin"),
    "k": ("attention.self.key", "attention.k_lin"),
    "v": ("attention.self.value", "attention.v_lin"),
    "proj": ("attention.output.dense", "attention.out_lin"),
}


class NotOnHub(UserError):
    """Weights that the hub did not give."""


def load(model: str | None, weights: str, config: Mapping[str, Any] | None, layers: int | None = None) -> nn.Module:
    """Return a BERT-like model without its pooler, in float32.

    Args:
        model: Hub id, where ``weights`` is ``hub``.
        weights: ``hub``, ``asset:NAME``, ``random``, or a path to a folder as transformers saves.
        config: With random weights, a transformers config.
        layers: How many of the first layers are kept; None: all.

    Raises:
        UserError: It cannot be had (``NotOnHub``: from the hub), is not BERT-like, or has fewer layers.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    if weights == "random":
        return _cut(_plain(_random(config or {})), layers)
    path = weights_path(weights)
    if path is not None and not (path / "config.json").is_file():
        raise UserError(
            f"encoder weights '{path}' must be a folder with config.json and weights, as transformers saves"
        )
    if path is None and model is None:
        raise UserError("encoder.weights=hub needs encoder.model=OWNER/NAME")
    return _cut(_plain(pretrained(str(path or model))), layers)


def pretrained(source: str) -> nn.Module:
    """Read a model from a folder or the hub, in float32.

    Raises:
        UserError: It cannot be had (``NotOnHub``: from the hub), or lacks tensors, which would stay random.
    """
    from transformers import AutoConfig, AutoModel

    try:
        if is_skeleton():
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            return cast(nn.Module, AutoModel.from_config(config, dtype=torch.float32))
        net, report = AutoModel.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers, the hub client, torch and safetensors each have their own
        if Path(source).is_dir():
            raise UserError(f"no weights could be read from '{source}': {' '.join(str(error).split())[:200]}") from None
        raise NotOnHub(str(hub_failed(source, error))) from None
    holes = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if holes:
        raise UserError(f"the weights of '{source}' lack {len(holes)} tensors ({holes[0]}), which would stay random")
    return cast(nn.Module, net)


def layers_of(net: nn.Module) -> nn.ModuleList:
    """Return the list of layers where BERT-like families keep it.

    Raises:
        UserError: The model is of another kind.
    """
    for holder in ("encoder", "transformer"):
        layers = getattr(getattr(net, holder, None), "layer", None)
        if isinstance(layers, nn.ModuleList) and hasattr(net, "embeddings"):
            return layers
    raise UserError(
        f"{type(net).__name__} is not BERT-like (no embeddings and encoder.layer); possible are BERT, RoBERTa, "
        "ELECTRA, CamemBERT, DistilBERT and models derived from them"
    )


def run_layer(layer: nn.Module, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
    """Run one layer, which may return its values in a tuple."""
    out = layer(values_BND, attention_mask=attention_mask(mask_BN))
    values: Tensor = out[0] if isinstance(out, tuple) else out
    return values


def linear_sites(encoder: nn.Module, layers: nn.ModuleList) -> dict[str, list[str]]:
    """Name the linear layers of every block, as modules of the encoder, by site."""
    linear = _inside(encoder, layers, nn.Linear)
    sites = {site: [n for n in linear if n.endswith(ends)] for site, ends in _SITES.items()}
    sites["fc2"] = [n for n in sites["fc2"] if n not in sites["proj"]]
    return sites


def norm_sites(encoder: nn.Module, layers: nn.ModuleList) -> list[str]:
    """Name the norms of every block, as modules of the encoder."""
    return _inside(encoder, layers, nn.LayerNorm)


def _inside(encoder: nn.Module, layers: nn.ModuleList, kind: type[nn.Module]) -> list[str]:
    prefix = next(name for name, module in encoder.named_modules() if module is layers)
    return [n for n, m in encoder.named_modules() if isinstance(m, kind) and n.startswith(prefix + ".")]


def _random(config: Mapping[str, Any]) -> nn.Module:
    """Build a model of random weights.

    Raises:
        UserError: ``config`` lacks the model's type, has a key that the type does not know, or a size that cannot be.
    """
    from transformers import CONFIG_MAPPING, AutoModel

    kind = model_type(config, example="bert")
    if kind not in CONFIG_MAPPING:
        raise UserError(f"transformers has no 'encoder.config.model_type' {kind!r}{nearest(str(kind), _FAMILIES)}")
    settings = random_config(config, _SIZES)
    with makes(kind):
        net: nn.Module = AutoModel.from_config(settings)
    return net


def _plain(net: nn.Module) -> nn.Module:
    """Drop BERT's pooler, which is never read and would be trained for nothing."""
    if getattr(net, "pooler", None) is not None:
        net.register_module("pooler", None)
    layers_of(net)
    return net


def _cut(net: nn.Module, layers: int | None) -> nn.Module:
    """Keep the first layers.

    Raises:
        UserError: The model has fewer.
    """
    if layers is None:
        return net
    check_number("encoder.layers", layers, least=1)
    there = layers_of(net)
    if layers > len(there):
        raise UserError(f"'encoder.layers' is {layers}, but the model has {len(there)}: give fewer, or null for all")
    del there[layers:]
    return net
