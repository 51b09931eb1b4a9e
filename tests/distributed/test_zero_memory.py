"""A network out of a file of another type, trained layers included, is never whole in one of two processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from pairs import run_pair
from safetensors.torch import load_file, save_file
from tiny import adaptation, batch, criterion, images, perturb
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModel, LlamaConfig
from zero_trials import Watch, options, trainer

from fusionbench import models
from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.llama import Llama
from fusionbench.files import write_tensors
from fusionbench.fusion.base import Strategy, UnimodalState
from fusionbench.fusion.concat import Concat
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


def whole(folder: Path) -> Concat:
    """Return a network that is trained whole, of one of the decoder's layers for each modality."""
    node = (Llama, {"weights": str(folder), "patch": 16, "dtype": "bfloat16", "layers": (0,)})
    torch.manual_seed(0)
    return Concat(MADE, EncoderPool(MADE.modalities, dict.fromkeys(MADE.modalities, node), adaptation("full")))


def started(folder: Path, starts: Path) -> Concat:
    """Return it as stage 1 lets it start."""
    made = whole(folder)
    made.load_unimodal({name: UnimodalState(load_file(starts / f"{name}.safetensors")) for name in MADE.modalities})
    return made


def save(strategy: Strategy, folder: Path) -> dict[str, int]:
    """Save a parted network; return what the process held meanwhile: numbers on its device, copies besides."""
    import deepspeed

    seen, gather = [], deepspeed.zero.GatheredParameters

    def watched(parameters: list[Any], **given: Any) -> Any:
        seen.append(sum(p.ds_numel for p in parameters))
        return gather(parameters, **given)

    config: Any = SimpleNamespace(public=dict)
    with (
        mock.patch.object(deepspeed.zero, "GatheredParameters", watched),
        mock.patch.object(sharded, "value", wraps=sharded.value) as copied,
    ):
        models.save(folder, strategy, config, {}, "base", write=dist.get_rank() == 0)
    trained = [p for p in strategy.parameters() if p.requires_grad]
    assert all(sharded.is_sharded(p) for p in trained)
    return {"gathers": len(seen), "trained": len(trained), "held": max(seen), "copies": copied.call_count}


def build_and_save(folder: Path, starts: Path, out: Path) -> dict[str, int]:
    """Build a parted network that starts from stage 1, and save it as it is."""
    made = FusionTask(MADE, partial(started, folder, starts), partial(sgd, lr=0.01), constant, criterion(MADE))
    with trainer(options("zero3"), out, Watch()).strategy.model_sharded_context():
        made.configure_model()
    return save(made.strategy, out / "whole")


def own_bytes() -> int:
    """Return the process's memory that no file backs."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024


@contextmanager
def left_behind(network: torch.nn.Module) -> Iterator[list[int]]:
    """Collect how many numbers are still gathered, behind each backward pass, of those that are not always so."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    found: list[int] = []
    release = Coordinator.release_backward_leftovers

    def watched(coordinator: Any) -> None:
        parted: list[Any] = [p for p in network.parameters() if not p.ds_persist]  # type: ignore[attr-defined]
        found.append(sum(p.ds_numel for p in parted if p.ds_status == ZeroParamStatus.AVAILABLE))
        release(coordinator)

    with mock.patch.object(Coordinator, "release_backward_leftovers", watched):
        yield found


def build_and_train(folder: Path, starts: Path, checkpoints: Path) -> dict[str, Any]:
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
    with mock.patch.object(sharded, "partition", watched), left_behind(made) as left:
        fitted.fit(made, cases, cases)
    held = {str(p.dtype) for p in made.parameters() if not p.requires_grad}
    return {
        "own": max(seen) - before,
        "base": made.base_checksum(),
        "held": held,
        "left": left,
        "state": trained_state(made.strategy),
        "lora": save(made.strategy, checkpoints / "lora"),
        "whole": build_and_save(folder, starts, checkpoints),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("memory")
    write_decoder(made / "decoder")
    views = perturb(whole(made / "decoder")).views
    for name in views.address:
        write_tensors(made / "starts" / f"{name}.safetensors", views.adapter(name))
    return made


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # small parameters that are freed leave the process too
        return run_pair(build_and_train, folder / "decoder", folder / "starts", folder / "saved")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_no_process_ever_holds_more_than_its_part_and_one_parameter(ranks: list[dict[str, Any]], folder: Path) -> None:
    alone = network(folder / "decoder")
    size = sum(p.numel() * p.element_size() for p in alone.parameters())
    for rank in ranks:
        assert rank["own"] < 0.65 * size, (rank["own"], size)
        assert rank["base"] == base_checksum(alone)
        assert "torch.bfloat16" in rank["held"]
    assert all(value.isfinite().all() for value in ranks[0]["state"].values())


def test_blocks_that_two_modalities_go_through_are_not_left_gathered(ranks: list[dict[str, Any]]) -> None:
    """A block has 4 · 512² numbers and 3 · 512 · 1408."""
    width, wide = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    for rank in ranks:
        assert len(rank["left"]) == 1
        assert rank["left"][0] < 4 * width**2 + 3 * width * wide


@pytest.mark.parametrize("name", ["lora", "whole"])
def test_a_model_is_saved_parameter_by_parameter_by_one_process(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        saved = rank[name]
        assert saved["gathers"] == saved["trained"]
        assert saved["held"] <= CONFIG["hidden_size"] * CONFIG["intermediate_size"]
    assert ranks[1][name]["copies"] == 0


@pytest.mark.usefixtures("ranks")
def test_what_is_saved_is_what_stage_1_let_it_start_from(folder: Path) -> None:
    saved = folder / "saved" / "whole"
    states = {name: load_file(folder / "starts" / f"{name}.safetensors") for name in MADE.modalities}
    assert not (saved / "adapters").exists()
    model = load_file(saved / "model.safetensors")
    encoders = {f"views.backbones.own_{n}.{key}": value for n, state in states.items() for key, value in state.items()}
    assert same({name: model[name] for name in encoders}, encoders)
    assert {name.split(".")[0] for name in set(model) - set(encoders)} == {"head"}


@pytest.mark.usefixtures("ranks")
def test_adapters_are_saved_as_they_are_in_the_model(folder: Path) -> None:
    saved = folder / "saved" / "lora"
    again = network(folder / "decoder")
    sharded.load_state(again, load_file(saved / "model.safetensors"))
    for name in again.views.address:
        assert same(load_file(saved / "adapters" / f"{name}.safetensors"), again.views.adapter(name))


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
