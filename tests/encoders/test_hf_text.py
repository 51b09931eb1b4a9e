"""Text encoders: whose tokenizer fits, how many tokens have a position, and which random configs are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from program import WORDS, tokenizer
from tiny import BERT
from transformers import AutoTokenizer

from fusionbench.encoders.hf_text import HFText
from fusionbench.encoders.hf_tokenizer import HFTokenizer
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec

ROBERTA = {**BERT, "model_type": "roberta", "pad_token_id": 1}


@dataclass
class Words:
    """A tokenizer of which only padding and size matter."""

    pad_id: int = 0
    size: int = 100

    def __call__(self, texts: list[str], max_length: int) -> list[list[int]]:
        return [[2] for _ in texts]


def encoder(**config: object) -> HFText:
    return HFText(ModalitySpec("text"), weights="random", config={**BERT, **config})


def test_the_models_own_tokenizer_is_accepted(tmp_path: Path) -> None:
    made = HFTokenizer({"weights": "random", "tokenizer": str(tokenizer(tmp_path))})
    assert made.size == len(WORDS) + 4
    encoder(vocab_size=made.size).check_tokenizer(made)
    encoder(pad_token_id=1).check_tokenizer(Words(pad_id=1))


def test_a_tokenizer_that_pads_otherwise_is_refused() -> None:
    with pytest.raises(UserError, match="tokenizer pads with token 1, but the text encoder with 0: give"):
        encoder().check_tokenizer(Words(pad_id=1))


def test_a_tokenizer_with_more_words_than_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer has 101 words, but the text encoder only 100: give"):
        encoder().check_tokenizer(Words(size=101))
    folder = tokenizer(tmp_path)
    grown = AutoTokenizer.from_pretrained(folder)
    grown.add_tokens(["nodule-like"])
    grown.save_pretrained(folder)
    assert HFTokenizer({"weights": str(folder)}).size == len(WORDS) + 5


def test_a_tokenizer_without_padding_is_refused(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path)
    bare = AutoTokenizer.from_pretrained(folder)
    bare.pad_token = None
    bare.save_pretrained(folder)
    with pytest.raises(UserError, match="has no padding token"):
        HFTokenizer({"weights": str(folder)})


@pytest.mark.parametrize(("config", "longest"), [(BERT, 32), (ROBERTA, 30), ({**ROBERTA, "pad_token_id": 3}, 28)])
def test_the_longest_text_has_a_position_for_each_token(config: dict[str, object], longest: int) -> None:
    made = encoder(**config)
    assert made.longest == longest
    ids = torch.full((2, longest), 5)
    assert made.pool(made.encode(made.embed(ids))).isfinite().all()
    with pytest.raises(UserError, match=f"{longest + 1} tokens, the encoder takes {longest}: set data.text_length"):
        made.embed(torch.full((2, longest + 1), 5))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "bertt"}, "no 'encoder.config.model_type' 'bertt'; did you mean 'bert'?"),
        ({"model_type": 7}, "no 'encoder.config.model_type' 7; possible are: bert,"),
        ({"hidden_sizes": 64}, "a bert has no 'encoder.config.hidden_sizes'; did you mean 'hidden_size'?"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "makes no bert: The hidden size (30) is not a multiple"),
        ({"hidden_size": "wide"}, "'encoder.config' makes no bert"),
        ({"hidden_size": 0}, "'encoder.config.hidden_size' must be at least 1, not 0"),
        ({"num_hidden_layers": 0}, "'encoder.config.num_hidden_layers' must be at least 1, not 0"),
        ({"num_attention_heads": 0}, "'encoder.config.num_attention_heads' must be at least 1, not 0"),
        ({"pad_token_id": 100}, "'encoder.config' makes no bert"),
        ({"model_type": "gpt2", "n_embd": 8, "n_head": 1, "n_layer": 1}, "GPT2Model is not BERT-like"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_model_is_refused_in_a_sentence(config: dict[str, object], said: str) -> None:
    whole = config if config.get("model_type") == "gpt2" else {**BERT, **config}
    with pytest.raises(UserError) as caught:
        HFText(ModalitySpec("text"), weights="random", config=whole)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [None, {}, {"hidden_size": 32}])
def test_random_weights_need_a_config(config: dict[str, object] | None) -> None:
    with pytest.raises(UserError, match=r"random weights need 'encoder\.config'"):
        HFText(ModalitySpec("text"), weights="random", config=config)


def test_weights_must_be_a_folder_of_transformers(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    for path in (file, tmp_path):
        with pytest.raises(UserError, match=r"must be a folder with config\.json and weights"):
            HFText(ModalitySpec("text"), weights=str(path))


def test_damaged_weights_are_told_with_a_reason(tmp_path: Path) -> None:
    encoder().net.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"no weights could be read from '.*': \w+") as caught:
        HFText(ModalitySpec("text"), weights=str(tmp_path))
    assert "hub" not in str(caught.value)


def test_only_the_first_layers_are_kept(tmp_path: Path) -> None:
    whole = encoder(num_hidden_layers=3).eval()
    whole.net.save_pretrained(tmp_path)
    first = HFText(ModalitySpec("text"), weights=str(tmp_path), layers=2).eval()
    assert (whole.depth, first.depth) == (3, 2)
    ids = torch.tensor([[2, 5, 7, 0]])
    wanted = whole.encode(whole.embed(ids), 0, 2).values
    assert torch.equal(first.encode(first.embed(ids)).values, wanted)
    assert all(len(names) == 2 for names in first.linear_sites().values())


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (3, "'encoder.layers' is 3, but the model has 2: give fewer, or null for all"),
        (0, "'encoder.layers' must be at least 1, not 0"),
    ],
)
def test_more_layers_than_there_are_are_refused(layers: int, said: str) -> None:
    with pytest.raises(UserError) as caught:
        HFText(ModalitySpec("text"), weights="random", config=BERT, layers=layers)
    assert str(caught.value) == said
