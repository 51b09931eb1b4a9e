"""What is refused or left out because of what a strategy says of its encoders and parts."""

from __future__ import annotations

import dataclasses

import pytest

from fusionbench import build, config, registry, stage_one
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec

SPECS = {"photo": ModalitySpec("image"), "notes": ModalitySpec("text")}
NODES = {"photo": {"name": "timm_vit"}, "notes": {"name": "hf_text"}}
COLUMNS = {name: {"kind": spec.kind, "column": name} for name, spec in SPECS.items()}
TREE = {
    "data": {"name": "csv", "path": "c.csv", "modalities": COLUMNS},
    "encoder": {
        "photo": {"name": "timm_vit", "model": "test_vit", "weights": "random"},
        "notes": {"name": "hf_text", "tokenizer": "words", "weights": "random"},
    },
    "fusion": {"name": "concat"},
}


@pytest.fixture
def told(monkeypatch):
    """Return a function that lets ``concat`` say other things of itself."""
    described = registry.describe

    def tell(**constants):
        def describe(kind, name):
            found = described(kind, name)
            return dataclasses.replace(found, constants=constants) if name == "concat" else found

        monkeypatch.setattr(registry, "describe", describe)

    return tell


def component(**constants):
    return dataclasses.replace(registry.describe("fusion", "concat"), constants=constants)


def test_a_strategy_takes_the_encoders_that_it_names():
    build.check_encoders(component(), SPECS, NODES)
    build.check_encoders(component(encoders={"text": ("hf_text",), "image": ("timm_vit",)}), SPECS, NODES)
    wanted = component(encoders={"text": ("llama", "mllama"), "image": ("timm_vit",)})
    with pytest.raises(UserError, match=r"reads text by llama or mllama, not by 'hf_text'; set encoder\.notes\.name"):
        build.check_encoders(wanted, SPECS, NODES)
    with pytest.raises(UserError, match="takes text, but modality 'photo' is image"):
        build.check_encoders(component(encoders={"text": ("hf_text",)}), SPECS, NODES)


def test_an_unencoded_modality_needs_no_node_and_one_that_it_has_is_left_out(told):
    told(unencoded=("image",), encoders={"text": ("hf_text",)})
    without = config.from_dict({**TREE, "encoder": {"notes": TREE["encoder"]["notes"]}})
    assert list(build.encoder_nodes(without, SPECS)) == ["notes"]
    made = config.from_dict(TREE)
    assert list(build.encoder_nodes(made, SPECS)) == ["notes"]
    build.check_strategy(made, SPECS, build.encoder_nodes(made, SPECS))
    with pytest.raises(UserError, match=r"'photo' has no encoder to be trained alone with; set init\.stage1=none"):
        stage_one.stage_one_config(without, "photo")


def test_random_weights_inside_an_encoder_are_told_too():
    nodes = TREE["encoder"] | {"photo": TREE["encoder"]["photo"] | {"weights": "hub"}}
    vision = {"model": "test_vit", "weights": "random"}
    nodes["notes"] = {"name": "llama_vision", "weights": "asset:smollm2", "vision": vision}
    assert build.random_encoders(config.from_dict({**TREE, "encoder": nodes}), SPECS) == ["notes.vision"]
    nodes["notes"] |= {"weights": "random", "vision": {"model": "test_vit", "weights": "asset:dinov2_small"}}
    assert build.random_encoders(config.from_dict({**TREE, "encoder": nodes}), SPECS) == ["notes"]


def test_parts_are_stopped_apart_where_there_are_two(told):
    alone = config.from_dict({**TREE, "trainer": {"stop": "per_part"}})
    with pytest.raises(UserError, match=r"fusion 'concat' is of one part only; set trainer\.stop=whole"):
        build.check_strategy(alone, SPECS, NODES)
    told(part_metrics={"eyes": "mAP", "mouth": "dice"})
    build.check_strategy(alone, SPECS, NODES)


def test_a_score_of_the_strategy_can_be_monitored(told):
    watching = {**TREE, "trainer": {"monitor": "dice"}}
    with pytest.raises(UserError, match="unknown metric 'dice'"):
        config.from_dict(watching)
    told(score_names=("dice",))
    assert config.from_dict(watching).trainer.monitor == "dice"


def test_a_text_alone_has_no_parts(told):
    told(score_names=("dice",), part_metrics={"eyes": "mAP", "mouth": "dice"})
    own = {"trainer": {"monitor": "dice", "stop": "per_part", "patience": 3}}
    own["optimizer"] = {"name": "adamw", "lr": 0.5, "parts": {"eyes": 0.1}}
    alone = stage_one.stage_one_config(config.from_dict({**TREE, **own}), "notes")
    assert (alone.trainer.monitor, alone.trainer.stop, alone.trainer.patience) == ("mAP", "whole", 3)
    assert alone.optimizer == {"name": "adamw", "lr": 0.5}


def test_tokens_that_no_causal_encoder_would_see_are_refused(told):
    told(adds_tokens=True)
    causal = {**NODES, "notes": {"name": "llama", "causal": True}}
    with pytest.raises(UserError, match="set 'causal: false' for modality 'notes'"):
        build.check_strategy(config.from_dict(TREE), SPECS, causal)
    build.check_strategy(config.from_dict(TREE), SPECS, {**causal, "notes": {"name": "llama", "causal": False}})


def test_a_class_name_too_long_for_metrics_says_how_long_it_may_be():
    build.check_class_names(["a" * 100, "b"])
    with pytest.raises(UserError, match=r"'a{40}\.\.\.' has 101 characters, at most 100 .* 32 tokens where "):
        build.check_class_names(["b", "a" * 101])
