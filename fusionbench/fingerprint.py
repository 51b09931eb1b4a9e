"""A run's identity: a hash of all that can change its result, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import safetensors.torch

from fusionbench import build, provenance, registry
from fusionbench.config import Config, Node, options_of
from fusionbench.data.module import FusionData
from fusionbench.distributed.deepspeed_config import STAGES
from fusionbench.encoders.identity import NO_EFFECT, effective
from fusionbench.fusion.base import UnimodalState

# Options of the data that count beyond the content of cases, splits and cells, which the data's own fingerprint holds;
# a dataset's own options choose that content and nothing else.
_DATA = ("batch_size", "sampling")
_FOLLOWED = ("adapt", "encoders", "fusion", "layers", "optim")  # what a component imports of these is part of it
_TRAINER = (
    *("max_epochs", "patience", "stop", "monitor"),
    *("precision", "accumulate", "gradient_clip", "limit_train_batches"),
)
# What takes part in every run; the components that a config names are added to it.
_SHARED = (
    *("task", "metrics", "training", "callbacks", "part_stopping"),
    *("build", "inference", "fusion.base", "fusion.criterion"),
    *(
        "adapt.base",
        "adapt.views",
        "encoders.base",
        "encoders.identity",
        "encoders.weights",
        "encoders.hf_tokenizer",
        "data.module",
        "data.cases",
        "data.images",
        "data.conversion",
    ),
    *("data.masks", "data.sampling", "data.tables", "data.texts", "data.transforms"),
)


def fingerprint(config: Config, source: FusionData, states: Mapping[str, UnimodalState]) -> str:
    """Return the run's identity.

    An allow-list: the data's content, batches and sampling, image transforms where there are pictures and the length of
    texts where there are texts, encoders with the content of their weights, tuning method, strategy, task, optimizer,
    schedule, seed, the trainer's options that enter the arithmetic, the stage-1 states, and the code of the components.
    Devices, workers, paths, progress bars, tracking and what was allowed to pass are not in it, nor how devices share
    the work, unless it is ZeRO in half precision; an option left out counts as its default.
    """
    digest = hashlib.sha256(json.dumps(_options(config, source), sort_keys=True, default=str).encode())
    digest.update(source.fingerprint.encode())
    digest.update(provenance.source_digest(_modules(config, source), _packages(config, source)).encode())
    for name in sorted(states):
        tensors = {"adapter": states[name].adapter, "head": states[name].head}
        digest.update(f"{name} {states[name].train_score!r}".encode())
        flat = {f"{part}/{key}": value for part, held in tensors.items() for key, value in held.items()}
        digest.update(safetensors.torch.save(flat))
    return digest.hexdigest()[:24]


def _options(config: Config, source: FusionData) -> dict[str, Any]:
    tree = config.to_dict()
    kept: dict[str, Any] = {key: tree[key] for key in ("task", "seed")}
    kept |= {kind: _whole(kind, tree[kind]) for kind in ("adapt", "fusion", "optimizer", "scheduler")}
    kept["data"] = _data(tree["data"], source)
    kept["encoder"] = {name: _encoder(node) for name, node in _nodes(config, source).items()}
    kept["modalities"] = [[name, asdict(spec)] for name, spec in source.problem.modalities.items()]
    kept["trainer"] = _trainer(tree["trainer"])
    return kept


def _trainer(node: Node) -> Node:
    """Return the trainer's options that enter the arithmetic.

    ZeRO holds all parameters in the half precision that DDP computes products in (autocast), and keeps what is trained
    in float32 beside them, which DDP's true half precision does not: there it is arithmetic of its own.
    """
    sharded = node["strategy"] in STAGES
    return {key: node[key] for key in _TRAINER} | {"zero_half": sharded and node["precision"] != "32-true"}


def _data(node: Node, source: FusionData) -> Node:
    """Return the data options that change a result of these modalities."""
    whole, kinds = _whole("data", node), {spec.kind for spec in source.problem.modalities.values()}
    kept = {key: whole[key] for key in _DATA}
    if kinds & {"image", "slices"}:
        defaults = registry.signature("fusionbench.data.transforms", "ImageTransform").values()
        given = whole["transforms"] or {}
        kept["transforms"] = {o.name: _like(given.get(o.name, o.default), o.default) for o in defaults}
    if "text" in kinds:
        kept["text_length"] = whole["text_length"]
    return kept


def _like(value: object, default: object) -> object:
    """Return a number as a float where the default is one: 90 is 90.0."""
    return float(value) if isinstance(default, float) and isinstance(value, int) else value


def _whole(kind: str, node: Node) -> Node:
    """Return a node with the defaults of what it leaves out, without what has no effect on a result."""
    defaults = {o.name: o.default for o in options_of(kind, node["name"]).values() if not o.required}
    whole = {**defaults, **node}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in whole.items() if k not in NO_EFFECT}


def _nodes(config: Config, source: FusionData) -> dict[str, Node]:
    """Return the encoder node of each modality that has an encoder."""
    return build.encoder_nodes(config, source.problem.modalities)


def _encoder(given: Node) -> Node:
    """Return an encoder's node, files replaced by their content, so that only the latter counts."""
    return effective(_whole("encoder", given))


def _components(config: Config, source: FusionData) -> list[registry.Component]:
    """Return the components that take part; an encoder only if one of the run's modalities has it."""
    picked = [("data", config.data), ("fusion", config.fusion), ("adapt", config.adapt)]
    picked += [("optimizer", config.optimizer), ("scheduler", config.scheduler)]
    picked += [("encoder", node) for node in _nodes(config, source).values()]
    return [registry.describe(kind, node["name"]) for kind, node in picked]


def _modules(config: Config, source: FusionData) -> list[str]:
    """Return the modules whose code a result depends on."""
    return [*(f"fusionbench.{name}" for name in _SHARED), *(c.module for c in _components(config, source))]


def _packages(config: Config, source: FusionData) -> list[str]:
    """Return the packages whose modules are part of what imports them: ours that are shared, and a component's own."""
    outside = {c.module.partition(".")[0] for c in _components(config, source)} - {"fusionbench"}
    return [*(f"fusionbench.{name}" for name in _FOLLOWED), *sorted(outside)]
