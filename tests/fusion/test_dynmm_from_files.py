"""DynMM's frozen experts whose encoders are still in their files while the network is built (ZeRO-3)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import adaptation, images, perturb
from transformers import AutoModel, LlamaConfig

from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.llama import Llama
from fusionbench.fusion.base import UnimodalState
from fusionbench.fusion.dynmm import DynMM
from fusionbench.layers import sharded
from fusionbench.layers.frozen import settled_checksum

MADE = images(2)
CONFIG = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_decoder(folder: Path) -> None:
    config = LlamaConfig(**CONFIG, vocab_size=32, max_position_embeddings=64)
    save_file(AutoModel.from_config(config, dtype=torch.float16).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


def network(folder: Path) -> DynMM:
    node = (Llama, {"weights": str(folder), "patch": 16, "dtype": "bfloat16"})
    torch.manual_seed(0)
    pool = EncoderPool(MADE.modalities, dict.fromkeys(MADE.modalities, node), adaptation("full"))
    return DynMM(MADE, pool, experts="frozen")


def test_frozen_experts_are_those_of_stage_1_and_not_placeholders(tmp_path: Path) -> None:
    write_decoder(tmp_path)
    stage = perturb(network(tmp_path))
    states = {
        name: UnimodalState(stage.views.adapter(f"unimodal/{name}"), stage.heads[name].state_dict())
        for name in MADE.modalities
    }
    with sharded.building(lambda parameter: None):
        made = network(tmp_path)
        made.load_unimodal(states)
        settled_checksum(made)
    assert made.settled
    for name, state in states.items():
        found = made.views.adapter(f"unimodal/{name}")
        assert found.keys() == state.adapter.keys()
        for key, value in state.adapter.items():
            assert torch.equal(found[key], value)


def test_experts_without_stage_1_are_those_of_the_files(tmp_path: Path) -> None:
    write_decoder(tmp_path)
    plain = network(tmp_path)
    with sharded.building(lambda parameter: None):
        made = network(tmp_path)
        made._settle_experts()
        settled_checksum(made)
    plain._settle_experts()
    for (name, found), (_, wanted) in zip(sorted(made.named_buffers()), sorted(plain.named_buffers()), strict=True):
        assert torch.equal(found, wanted), name
