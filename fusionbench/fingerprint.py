"""A run's identity: a hash of all that can change its result, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch

from fusionbench import provenance, registry
from fusionbench.config import Config, Node, options_of
from fusionbench.data.images import file_digest
from fusionbench.data.module import FusionData
from fusionbench.encoders.weights import weights_path
from fusionbench.fusion.base import UnimodalState

_DATA_ELSEWHERE = {"root", "path", "modalities"}  # their content is in the data's own fingerprint
_NO_EFFECT = {"num_workers", "cache", "checkpointing"}
_TRAINER = ("max_epochs", "patience", "monitor", "precision", "accumulate", "gradient_clip", "limit_train_batches")
# What takes part in every run; the components that a config names are added to it.
_SHARED = (
    *("task", "metrics", "training", "callbacks", "build", "fusion.base", "fusion.criterion", "layers.rank_mixture"),
    *(
        "adapt.base",
        "adapt.views",
        "encoders.base",
        "encoders.weights",
        "encoders.hf_tokenizer",
        "data.module",
        "data.cases",
        "data.images",
    ),
    *("data.sampling", "data.tables", "data.transforms"),
)


def fingerprint(config: Config, source: FusionData, states: Mapping[str, UnimodalState]) -> str:
    """Return the run's identity.

    An allow-list: the data's content and options, encoders with the content of their weights, tuning method, strategy,
    task, optimizer, schedule, seed, the trainer's options that enter the arithmetic, the stage-1 states, and the source
    of the components. Device, workers, paths, progress bars and tracking are not in it; an option left out counts as
    its default.
    """
    digest = hashlib.sha256(json.dumps(_options(config, source), sort_keys=True, default=str).encode())
    digest.update(source.fingerprint.encode())
    digest.update(provenance.source_digest(_modules(config)).encode())
    for name in sorted(states):
        digest.update(safetensors.torch.save({**states[name].adapter, **states[name].head}))
    return digest.hexdigest()[:24]


def _options(config: Config, source: FusionData) -> dict[str, Any]:
    tree = config.to_dict()
    kept: dict[str, Any] = {key: tree[key] for key in ("task", "seed")}
    kept |= {kind: _whole(kind, tree[kind]) for kind in ("adapt", "fusion", "optimizer", "scheduler")}
    data = _whole("data", tree["data"])
    kept["data"] = {k: v for k, v in data.items() if k not in _DATA_ELSEWHERE}
    kept["encoder"] = {name: _encoder(config, name) for name in source.problem.modalities}
    kept["modalities"] = [[name, asdict(spec)] for name, spec in source.problem.modalities.items()]
    kept["trainer"] = {key: tree["trainer"][key] for key in _TRAINER}
    return kept


def _whole(kind: str, node: Node) -> Node:
    """Return a node with the defaults of what it leaves out, without what has no effect on a result."""
    defaults = {o.name: o.default for o in options_of(kind, node["name"]).values() if not o.required}
    whole = {**defaults, **node}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in whole.items() if k not in _NO_EFFECT}


def _encoder(config: Config, modality: str) -> Node:
    """Return a modality's encoder node, files replaced by their content, so that only the latter counts."""
    node = _whole("encoder", config.encoder.get("*") or config.encoder[modality])
    for key in ("weights", "tokenizer"):
        value = node.get(key)
        if isinstance(value, str) and (value.startswith("asset:") or Path(value).expanduser().exists()):
            node[key] = _content(weights_path(value) or Path(value))
    return node


def _content(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return hashlib.sha256("".join(file_digest(p) for p in files).encode()).hexdigest()


def _modules(config: Config) -> list[str]:
    """Return the modules whose source a result depends on."""
    picked = [("data", config.data), ("fusion", config.fusion), ("adapt", config.adapt)]
    picked += [("optimizer", config.optimizer), ("scheduler", config.scheduler)]
    picked += [("encoder", node) for node in config.encoder.values()]
    shared = [f"fusionbench.{name}" for name in _SHARED]
    return [*shared, *(registry.describe(kind, node["name"]).module for kind, node in picked)]
