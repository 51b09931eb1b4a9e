"""A network out of a file of another type, trained layers included, is never whole in one of two processes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from pairs import run_pair
from safetensors.torch import save_file
from tiny import adaptation, batch, criterion, images
from torch.utils.data import DataLoader
from transformers import AutoModel, LlamaConfig
from zero_trials import Watch, options, trainer

from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.llama import Llama
from fusionbench.fusion.base import Strategy
from fusionbench.fusion.llama_early import LlamaEarly
from fusionbench.layers import sharded
from fusionbench.layers.frozen import base_checksum, trained_state
from fusionbench.layers.skeleton import skeleton
from fusionbench.optim.optimizers.sgd import sgd
from fusionbench.optim.schedulers.constant import constant
from fusionbench.task import FusionTask

MADE = images(2)
CONFIG = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16, "num_attention_heads": 8}


def write_decoder(folder: Path) -> None:
    """Write a decoder in float16."""
    folder.mkdir()
    config = LlamaConfig(**CONFIG, vocab_size=32, max_position_embeddings=64)
    net = AutoModel.from_config(config, dtype=torch.float16)
    save_file(net.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


def network(folder: Path) -> Strategy:
    """Return a network whose base is held in another type than its file has."""
    node = (Llama, {"weights": str(folder), "patch": 16, "dtype": "bfloat16"})
    torch.manual_seed(0)
    return LlamaEarly(MADE, EncoderPool(MADE.modalities, dict.fromkeys(MADE.modalities, node), adaptation("lora")))


def own_bytes() -> int:
    """Return the process's memory that no file backs."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024


def build_and_train(folder: Path, checkpoints: Path) -> dict[str, Any]:
    """Train a step; return the process's own memory around the parting of each parameter, above that before."""
    with skeleton():
        network(folder)  # what it imports takes memory too
    network_of = partial(network, folder)
    made = FusionTask(MADE, network_of, partial(sgd, lr=0.01), constant, criterion(MADE))
    fitted = trainer(options("zero3", max_epochs=1), checkpoints, Watch())
    seen: list[int] = []
    part = sharded.partition

    def watched(parameter: torch.nn.Parameter) -> None:
        seen.append(own_bytes())
        part(parameter)
        seen.append(own_bytes())

    before = own_bytes()
    cases = DataLoader([batch(MADE, 2)], batch_size=None)
    with mock.patch.object(sharded, "partition", watched):
        fitted.fit(made, cases, cases)
    held = {str(p.dtype) for p in made.parameters() if not p.requires_grad}
    return {
        "own": max(seen) - before,
        "base": made.base_checksum(),
        "held": held,
        "state": trained_state(made.strategy),
    }


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_no_process_ever_holds_more_than_its_part_and_one_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # small parameters that are freed leave the process too
    write_decoder(tmp_path / "decoder")
    first, second = run_pair(build_and_train, tmp_path / "decoder", tmp_path / "checkpoints")
    whole = network(tmp_path / "decoder")
    size = sum(p.numel() * p.element_size() for p in whole.parameters())
    for rank in (first, second):
        assert rank["own"] < 0.65 * size, (rank["own"], size)
        assert rank["base"] == base_checksum(whole)
        assert "torch.bfloat16" in rank["held"]
    assert all(value.isfinite().all() for value in first["state"].values())
