"""Adapters in peft's own format: peft itself loads them and gives the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import perturb, trained
from torch import Tensor, nn
from tuned import CLOSE, bare, inputs, vectors, views

from fusionbench.adapt.peft_files import base_name
from fusionbench.adapt.peft_lora import PeftLoRA
from fusionbench.data.assets import ASSETS
from fusionbench.layers.adaptable import Adaptable

QV = ("query", "value")
PEFTS_OWN = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
FILES = [
    ("hf_text", ("q", "v")),
    ("hf_text", ("k", "proj", "fc1", "fc2")),
    ("llama", ("q", "k", "v", "proj", "gate", "fc1", "fc2")),
    ("timm_vit", ("qkv", "proj")),
    ("timm_vit", ("v", "q")),
    ("timm_vit", ("k", "fc1")),
]


@PEFTS_OWN
@pytest.mark.parametrize(("name", "sites"), FILES)
def test_peft_loads_what_is_exported_and_gives_the_same(name: str, sites: tuple[str, ...], tmp_path: Path) -> None:
    ours = bare(name)
    fresh = [copy.deepcopy(ours) for _ in range(2)]
    method = PeftLoRA(sites=sites)
    method.apply(ours, 2)
    perturb(ours)
    rows = inputs(name)
    for view, theirs in enumerate(fresh):
        folder = method.export(ours, view, tmp_path / f"view{view}")
        assert folder == tmp_path / f"view{view}"
        before = vectors(theirs, rows)
        PeftModel.from_pretrained(theirs.net, folder).eval()
        torch.testing.assert_close(vectors(theirs, rows), vectors(ours, rows, (view,)), **CLOSE)
        assert (vectors(theirs, rows) - before).abs().max() > 1e-3


@PEFTS_OWN
@pytest.mark.assets
def test_peft_loads_adapters_of_smollm2(tmp_path: Path) -> None:
    ours = bare("llama", weights="asset:smollm2", layers=(0, 1))
    theirs = copy.deepcopy(ours)
    method = PeftLoRA(rank=8, sites=("q", "v", "gate"))
    method.apply(ours, 2)
    perturb(ours)
    PeftModel.from_pretrained(theirs.net, method.export(ours, 1, tmp_path)).eval()
    rows = inputs("llama")
    torch.testing.assert_close(vectors(theirs, rows), vectors(ours, rows, (1,)), rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "asset:smollm2"


@PEFTS_OWN
def test_adapters_of_chosen_layers_load_at_their_places_in_the_whole_decoder(tmp_path: Path) -> None:
    ours = bare("llama", layers=(3, 1))
    whole = bare("llama", layers=None)
    for mine, place in zip(ours.net.layers, ours.net.places, strict=True):
        whole.net.layers[place].load_state_dict(mine.state_dict())
    method = PeftLoRA(sites=("q", "gate"))
    method.apply(ours, 2)
    perturb(ours)
    PeftModel.from_pretrained(whole.net, method.export(ours, 0, tmp_path)).eval()
    rows = torch.randn(2, 5, 32)
    for mine, place in zip(ours.net.layers, ours.net.places, strict=True):
        theirs = whole.net.layers[place]
        torch.testing.assert_close(theirs.self_attn.q_proj(rows), mine.self_attn.q_proj(rows), **CLOSE)
        torch.testing.assert_close(theirs.mlp.gate_proj(rows), mine.mlp.gate_proj(rows), **CLOSE)
    changed = {name.split(".")[1] for name, _ in whole.net.named_parameters() if "lora_A" in name}
    assert changed == {"1", "3"}


def test_adapters_of_a_layer_that_is_there_twice_name_no_base(tmp_path: Path) -> None:
    ours = bare("llama", layers=(2, 2))
    ours.net.config._name_or_path = "owner/decoder"
    method = PeftLoRA(sites=("q",))
    method.apply(ours, 1)
    config = json.loads((method.export(ours, 0, tmp_path) / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"layers.{index}.self_attn.q_proj" for index in (0, 1)]
    assert config["base_model_name_or_path"] is None


def test_a_run_s_adapters_lie_beside_its_own_files_and_name_no_path(tmp_path: Path) -> None:
    made = views("hf_text", PeftLoRA())
    made.save_adapters(tmp_path / "first")
    made.save_adapters(tmp_path / "second")
    folder = tmp_path / "first" / "auxiliary_x"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "second" / "auxiliary_x" / path.name).read_bytes()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"encoder.layer.{i}.attention.self.{q}" for i in (0, 1) for q in QV]
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 32.0, 0.1)
    assert config["base_model_name_or_path"] is None
    assert len(load_file(folder / "adapter_model.safetensors")) == 2 * len(config["target_modules"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("hub/some-bert", "hub/some-bert"),
        ("cache/models--some--bert-base/snapshots/0123", "some/bert-base"),
        ("folder/my-bert", "my-bert"),
        ("assets/minilm-{}", "asset:minilm"),
    ],
)
def test_the_base_is_named_as_its_library_knows_it(
    given: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = given.format(ASSETS["minilm"].version)
    if not given.startswith("hub"):
        Path(given).mkdir(parents=True)
    net = bare("hf_text").net
    net.config._name_or_path = given
    assert base_name(net) == told


def test_a_timm_model_is_named_with_its_tag(tmp_path: Path) -> None:
    encoder = bare("timm_vit")
    method = PeftLoRA()
    method.apply(encoder, 1)
    config = json.loads((method.export(encoder, 0, tmp_path) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "test_vit.r160_in1k"


class Block(Adaptable):
    """A strategy's own pretrained layers."""

    def __init__(self) -> None:
        super().__init__()
        self.cross = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(8, 8), "v": nn.Linear(8, 8)}) for _ in range(2))

    def linear_sites(self) -> dict[str, list[str]]:
        """Name both linear layers."""
        return {site: [f"cross.{i}.{site}" for i in range(2)] for site in ("q", "v")}

    def forward(self, rows: Tensor) -> Tensor:
        """Map (B, 8) to (B, 8)."""
        for layer in self.cross:
            rows = layer["v"](torch.tanh(layer["q"](rows)))
        return rows


def test_a_strategy_s_own_layers_are_tuned_and_exported(tmp_path: Path) -> None:
    ours = Block()
    theirs = copy.deepcopy(ours)
    method = PeftLoRA(dropout=0.0)
    method.tune(ours, 1)
    assert {name.split(".")[-3] for name, _ in trained(perturb(ours))} == {"lora_A", "lora_B"}
    folder = method.export(ours, 0, tmp_path / "cross")
    PeftModel.from_pretrained(theirs, folder).eval()
    rows = torch.randn(3, 8)
    torch.testing.assert_close(ours(rows), theirs(rows), **CLOSE)
    assert method.export(Block(), 0, tmp_path / "none") is None
