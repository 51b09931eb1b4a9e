"""Runs of one identity start alike and hold what they train under one name; a frozen view may have others beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import SETTING
from tiny import BERT, LLAMA, SPECS, adaptation, batch, problem

from fusionbench.adapt.feature_store import _encode
from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.encoders.base import Encoder
from fusionbench.encoders.hf_text import HFText
from fusionbench.encoders.llama import Llama
from fusionbench.layers.frozen import base_checksum, trained_state

NODE = {"weights": "random", "config": LLAMA, "layers": (0, 1), "patch": 8}
RANDOM_BERT = (HFText, {"weights": "random", "config": BERT})


def views(method: str, nodes: Mapping[str, tuple[type[Encoder], Mapping[str, Any]]]) -> Views:
    specs = {name: SPECS[name] for name in nodes}
    return EncoderPool(specs, nodes, adaptation(method)).views({name: name for name in nodes})


def both(method: str, **more: object) -> Views:
    """Return views of a picture and a report on one decoder."""
    return views(method, dict.fromkeys(("picture", "report"), (Llama, {**NODE, **more})))


def assert_same_start(one: Views, other: Views) -> None:
    a, b = trained_state(one), trained_state(other)
    assert a
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert base_checksum(one) == base_checksum(other)


@pytest.mark.parametrize("more", [{"checkpointing": True}, {"checkpointing": False, "rope": False}])
@pytest.mark.parametrize("method", ["lora", "peft_lora"])
def test_what_a_run_s_identity_leaves_out_changes_neither_start_nor_names(method: str, more: dict[str, object]) -> None:
    assert_same_start(both(method), both(method, **more))


def test_neither_does_the_place_of_the_weights(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    first, second = tmp_path / "here", tmp_path / "there"
    BertModel(BertConfig(**{k: v for k, v in BERT.items() if k != "model_type"})).save_pretrained(first)
    shutil.copytree(first, second)
    (second / "README.md").write_text("words")
    made = [views("lora", {"report": (HFText, {"weights": str(place)})}) for place in (first, second)]
    assert_same_start(*made)


def test_two_nodes_that_differ_in_checkpointing_alone_are_one_backbone_that_has_it() -> None:
    plain, saving = (Llama, NODE), (Llama, {**NODE, "checkpointing": True})
    made = views("lora", {"picture": plain, "report": saving})
    assert len(made.backbones) == 1
    assert made.encoder("picture").checkpointing
    assert_same_start(made, both("lora"))


def test_backbones_of_other_options_differ_in_name_start_and_identity() -> None:
    made = views("lora", {"picture": (Llama, NODE), "report": (Llama, {**NODE, "pool": "mean"})})
    assert [made.address[view][0] for view in ("picture", "report")] == ["shared_0", "shared_1"]
    assert len(set(made.identities.values())) == 2
    layer = "net.layers.0.mlp.up_proj"
    first, second = (made.encoder(view).get_submodule(layer).state_dict() for view in ("picture", "report"))
    assert not any(torch.equal(first[name], second[name]) for name in first if name.endswith("weight"))


def test_a_random_base_is_the_same_alone_and_second_in_order() -> None:
    alone = views("frozen", {"report": RANDOM_BERT}).encoder("report")
    made = views("frozen", {"picture": (Llama, NODE), "report": RANDOM_BERT})
    assert made.address["report"][0] == "shared_1"
    assert base_checksum(made.encoder("report")) == base_checksum(alone)


def test_a_frozen_text_is_frozen_beside_a_picture_with_a_stem() -> None:
    made = both("frozen", causal=True)
    assert {view: made.is_frozen(view) for view in made.address} == {"picture": False, "report": True}
    assert not both("lora").is_frozen("report")
    made.encoder("report").net.norm.requires_grad_(True)
    assert not made.is_frozen("report"), "what both go through is trained"


def test_features_are_computed_as_the_view_that_they_are_of() -> None:
    made = both("frozen", causal=True).eval()
    ids = batch(problem(("report",)), 3).inputs["report"]
    index = made.address["report"][1]
    assert index == 1
    with torch.no_grad():
        stored = _encode(made.encoder("report"), SETTING, index)(ids)
        live = made.features({"report": ids})["report"]
    assert torch.equal(stored.values, live.values)
    assert torch.equal(stored.mask, live.mask)
