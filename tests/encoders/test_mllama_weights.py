"""An Mllama out of a checkpoint or a config, and one sentence for each that does not fit."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from tiny import MLLAMA
from transformers import MllamaConfig, MllamaForConditionalGeneration

from fusionbench.data.assets import asset
from fusionbench.encoders.mllama import Mllama
from fusionbench.encoders.mllama_weights import MllamaSource
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec

TEXT = ModalitySpec("text")
WHOLE = "model.safetensors"


@pytest.fixture
def theirs() -> Any:
    return MllamaForConditionalGeneration(MllamaConfig(**copy.deepcopy(MLLAMA)))


@pytest.fixture
def folder(theirs: Any, tmp_path: Path) -> Path:
    """Return a checkpoint as transformers saves it, with a tokenizer whose padding is token 2."""
    theirs.config.text_config.pad_token_id = 2
    theirs.save_pretrained(tmp_path)
    for file in asset("smollm2").glob("*token*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def test_a_checkpoint_is_read_whole(theirs: Any, folder: Path) -> None:
    encoder = Mllama(TEXT, weights=str(folder))
    wanted = theirs.state_dict()
    found = encoder.net.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert encoder.pad_id == encoder.load_tokenizer({"weights": str(folder)}).pad_id == 2
    with pytest.raises(UserError, match=r"49152 words, but the decoder only 108: give the model's own"):
        encoder.check_tokenizer(encoder.load_tokenizer({"weights": str(folder)}))


def test_the_checkpoint_says_by_what_its_pictures_were_normalised(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}), "utf-8")
    assert MllamaSource({"weights": str(folder)}).colours() == ([0.5] * 3, [0.25] * 3)
    for text in ("{}", "{", '{"image_mean": [1], "image_std": [1]}'):
        path.write_text(text, "utf-8")
        with pytest.raises(UserError, match=r"preprocessor_config\.json' .*; fetch it again"):
            Mllama(TEXT, weights=str(folder))


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("text_config", {"hiden_size": 8}, r"no 'encoder\.config\.text_config\.hiden_size'.*hidden_size"),
        ("text_config", {"hidden_size": "wide"}, r"'encoder\.config\.text_config' does not fit"),
        ("text_config", {"num_hidden_layers": 0}, r"text_config\.num_hidden_layers of 'encoder\.config'' must be at"),
        ("text_config", {"cross_attention_layers": [1, 4]}, r"cross_attention_layers name layers of 0 to 3"),
        ("text_config", {"cross_attention_layers": []}, r"cross_attention_layers name layers of 0 to 3, one or more"),
        ("text_config", {"num_attention_heads": 3}, r"hidden_size is divisible by the heads"),
        ("text_config", {"pad_token_id": 128_004}, r"pad_token_id is one of 0 to 99"),
        ("vision_config", {"vision_output_dim": 48}, r"vision_output_dim is 32, 1 \+ 1 times"),
        ("vision_config", {"intermediate_layers_indices": [2]}, r"intermediate_layers_indices name layers of 0 to 1"),
        ("vision_config", {"image_size": [16, 16]}, r"'image_size' in vision_config .* must be one whole number"),
        ("vision_config", {"supported_aspect_ratios": [[1, 2]]}, r"\[1, 1\] is one of supported_aspect_ratios"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(part: str, change: dict[str, Any], said: str) -> None:
    config: dict[str, Any] = copy.deepcopy(MLLAMA)
    config[part].update(change)
    with pytest.raises(UserError, match=said) as caught:
        MllamaSource({"weights": "random", "config": config})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"config": None}, r"random weights need 'encoder\.config'"),
        ({"config": {"text": {}}}, r"no 'encoder\.config\.text'.*text_config"),
        ({"normalize": "image_net"}, r"unknown encoder\.normalize 'image_net'.*imagenet"),
        ({"weights": "hub"}, r"encoder\.weights=hub needs encoder\.model"),
        (
            {"weights": "asset:smollm2"},
            r"is of a llama, but encoder mllama reads an mllama .* take encoder llama_vision",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Mllama(TEXT, **{"weights": "random", "config": MLLAMA, **options})
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_or_of_another_size_are_told(folder: Path) -> None:
    head, gate = "language_model.lm_head.weight", "language_model.model.layers.1.cross_attn_attn_gate"
    state = load_file(folder / WHOLE)
    del state[head]
    state[gate] = torch.zeros(2)
    save_file(state, folder / WHOLE)
    with pytest.raises(UserError) as caught:
        Mllama(TEXT, weights=str(folder))
    assert f"1 tensor is missing ({head})" in str(caught.value)
    assert f"({gate} is 2 instead of 1)" in str(caught.value)
    (folder / WHOLE).unlink()
    with pytest.raises(UserError, match="holds no weights"):
        Mllama(TEXT, weights=str(folder))


def test_a_gated_model_without_access_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(GatedRepoError):
        def __init__(self) -> None:
            """Need no response of a server."""

    def closed(*args: Any, **kwargs: Any) -> str:
        raise Closed

    monkeypatch.setattr("huggingface_hub.snapshot_download", closed)
    with pytest.raises(UserError, match=r"the weights of 'owner/vision' are gated .* encoder\.weights=PATH"):
        Mllama(TEXT, weights="hub", model="owner/vision")
