"""Weights of second choice: settled once, in the config, before data are tokenized and a run gets its identity.

An encoder node ``{weights: hub, model: OWNER/NAME, fallback: "asset:NAME"}`` becomes ``weights: "asset:NAME"`` where
the hub does not give the model. All that follows (tokenizer, fingerprint, tracked parameters, saved model, prediction)
sees weights that are settled, and the node still tells that they are not those of first choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

from fusionbench.config import Config
from fusionbench.errors import UserError


def settled(config: Config) -> Config:
    """Return the config with every ``fallback`` that is needed put in the place of ``hub``.

    The hub is asked once for each model and process, by reading it, and only if some node names a fallback.

    Raises:
        UserError: A fallback is no asset or path, or the hub gave weights that do not fit.
    """
    return dataclasses.replace(config, encoder={name: _settled(node) for name, node in config.encoder.items()})


def notes(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a sentence for each modality whose settled encoder node, given by modality, starts from its fallback."""
    return {
        name: f"the encoder of '{name}' starts from its fallback {node['fallback']}, not from '{node['model']}' "
        f"(encoder.{name}.weights=hub with encoder.{name}.fallback=null takes that, or tells why the hub does not give "
        "it)"
        for name, node in nodes.items()
        if _falls_back(node)
    }


def _falls_back(node: Mapping[str, Any]) -> bool:
    second = node.get("fallback")
    return second is not None and node.get("model") is not None and node["weights"] == second


def _settled(node: dict[str, Any]) -> dict[str, Any]:
    second = node.get("fallback")
    if second in ("hub", "random"):
        raise UserError(f"'encoder.fallback' must be asset:NAME or a path, not {second!r}; null stops the run instead")
    if second is None or node["weights"] != "hub" or node.get("model") is None or _on_hub(node["model"]):
        return node
    return {**node, "weights": second}


@cache
def _on_hub(model: str) -> bool:
    from fusionbench.encoders import hf_models

    try:
        hf_models.pretrained(model)
    except hf_models.NotOnHub:
        return False
    return True
