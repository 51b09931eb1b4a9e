"""Tokenizers of encoders and decoders: what pads, what is inside a text, where they lie, and how they fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sentencepiece
from huggingface_hub import constants
from program import WORDS, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusionbench.data.texts import TextReader
from fusionbench.encoders import hf_tokenizer
from fusionbench.encoders.hf_tokenizer import HFTokenizer
from fusionbench.errors import UserError

TEXT = "lung nodule <unk> in the upper lobe, é"


def byte_level(folder: Path, **special: str) -> str:
    """Write a byte-level tokenizer without merges, the special tokens at its end, and return its folder."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(str(folder))
    return str(folder)


def sentencepiece_model(folder: Path) -> Path:
    """Train a SentencePiece model with byte fallback, as Llama 2's, and return its file."""
    lines = [f"lung nodule {i} in the upper lobe without effusion" for i in range(200)]
    options = {"vocab_size": 320, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), **options
    )
    return folder / "tokenizer.model"


@pytest.mark.parametrize(
    ("special", "pads"),
    [
        ({"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<|im_end|>"}, "<pad>"),
        ({"unk_token": "<unk>", "eos_token": "<|im_end|>"}, "<unk>"),
        ({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}, "<|im_end|>"),
    ],
)
def test_a_decoder_pads_with_what_it_has(tmp_path: Path, special: dict[str, str], pads: str) -> None:
    folder = byte_level(tmp_path, **special)
    made = HFTokenizer({"weights": folder}, special=False)
    assert made.pad_id == PreTrainedTokenizerFast.from_pretrained(folder).convert_tokens_to_ids(pads)
    if pads != "<pad>":
        with pytest.raises(UserError, match="no padding token, so it is not of a BERT-like encoder"):
            HFTokenizer({"weights": folder})


def test_a_decoder_needs_some_token_to_pad_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no padding token, so it is not of a decoder with"):
        HFTokenizer({"weights": byte_level(tmp_path, bos_token="<|im_start|>")}, special=False)


@pytest.mark.parametrize("name", ["<|im_end|>", "<unk>"])
@pytest.mark.parametrize("other", [{}, {"unk_token": "<unk>"}])
def test_a_text_that_spells_a_special_token_has_no_hole(tmp_path: Path, name: str, other: dict[str, str]) -> None:
    folder = byte_level(tmp_path, eos_token="<|im_end|>", **other)
    made = HFTokenizer({"weights": folder}, special=False)
    text = f"no{name} nodule"
    (ids,) = made([text], 64)
    assert made.pad_id not in ids
    assert PreTrainedTokenizerFast.from_pretrained(folder).decode(ids) == text


def test_only_an_encoders_text_has_special_tokens(tmp_path: Path) -> None:
    folder = {"weights": str(tokenizer(tmp_path))}
    (whole,), (bare,) = HFTokenizer(folder)([" ".join(WORDS[:3])], 9), HFTokenizer(folder, special=False)([WORDS[0]], 9)
    assert whole == [2, 4, 5, 6, 3]
    assert bare == [4]
    assert HFTokenizer(folder)([""], 9) == [[2, 3]]


def test_unknown_words_are_left_out_if_they_would_pad(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "[UNK]"}))
    made = HFTokenizer({"weights": str(folder)}, special=False)
    assert made.pad_id == 1
    assert made([f"{WORDS[1]} zebra {WORDS[0]}", "zebra", ""], 9) == [[5, 4], [1], [1]]


def test_a_text_is_cut_behind_the_words_that_are_left_out(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "[UNK]"}))
    made = HFTokenizer({"weights": str(folder)}, special=False)
    text = f"zebra {WORDS[1]} zebra {WORDS[0]} {WORDS[1]}"
    assert made(["", text, WORDS[2], "zebra zebra zebra"], 2) == [[1], [5, 4], [6], [1]]
    ids, (note,) = TextReader(tokenizers={"notes": made}, length=2).tokens("notes", [text])
    assert ids == [[5, 4]]
    assert note.startswith("1 of 1 texts of 'notes' have more than 2 tokens and are cut (longest: 3)")


def test_texts_come_in_order_and_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_tokenizer, "_AT_ONCE", 3)
    folder = byte_level(tmp_path, eos_token="<|im_end|>")
    made = HFTokenizer({"weights": folder}, special=False)
    texts = ["no nodule " * k for k in range(8)]
    ids = made(texts, 35)
    assert ids == [made([text], 35)[0] for text in texts]
    assert [len(own) for own in ids] == [1, 10, 20, 30, 35, 35, 35, 35]
    assert made([], 35) == []


@pytest.mark.parametrize("named", ["folder", "file", "beside_config"])
def test_a_sentencepiece_model_alone_reads_as_sentencepiece_does(tmp_path: Path, named: str) -> None:
    file = sentencepiece_model(tmp_path)
    if named == "beside_config":
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    made = HFTokenizer({"weights": str(file if named == "file" else tmp_path)}, special=False)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(file))
    assert made.pad_id == plain.unk_id() == 0
    assert made([TEXT], 99) == [plain.encode(TEXT)]
    assert made.size == plain.vocab_size()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, r"'.*' holds no tokenizer \(tokenizer\.json or the like\); give encoder\.tokenizer=PATH"),
        ({"config.json": '{"model_type": "bert"}', "model.safetensors": ""}, "holds no tokenizer"),
        ({"tokenizer.json": "{damaged"}, r"no tokenizer could be read from '.*' \(.+\); give"),
        ({"tokenizer.json": "{}"}, r"no tokenizer could be read from '.*' \(.+\); give"),
        ({"tokenizer.model": "damaged"}, r"no tokenizer could be read from '.*' \(.+\); give"),
        ({"config.json": '{"model_type": "bert"}', "vocab.txt": ""}, "no tokenizer lies in"),
    ],
    ids=["nothing", "weights alone", "no json", "empty json", "no model", "no words"],
)
@pytest.mark.parametrize("special", [True, False])
def test_what_is_missing_or_damaged_is_told_in_a_sentence(
    tmp_path: Path, files: dict[str, str], said: str, special: bool
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        HFTokenizer({"weights": str(tmp_path)}, special=special)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there_and_random_weights_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a file nor a folder"):
        HFTokenizer({"weights": str(tmp_path / "gone")})
    with pytest.raises(UserError, match="random weights has no tokenizer of its own"):
        HFTokenizer({"weights": "random"})


class _Gate(BaseHTTPRequestHandler):
    """Answers as the hub does for a repository whose licence was not accepted."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


_Gate.do_GET = _Gate.do_HEAD


@pytest.fixture
def gated_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a hub on this machine in the place of the real one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Gate)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("gated_hub")
@pytest.mark.parametrize(
    ("node", "option"),
    [
        ({"weights": "hub", "model": "owner/decoder"}, "weights"),
        ({"weights": "random", "tokenizer": "owner/decoder"}, "tokenizer"),
    ],
)
def test_a_gated_repository_says_how_to_get_in(node: dict[str, str], option: str) -> None:
    said = rf"^'owner/decoder' is gated: accept its licence .* encoder\.{option}=PATH$"
    with pytest.raises(UserError, match=said):
        HFTokenizer(node, special=False)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"weights": "hub"}, "encoder.weights=hub needs encoder.model=OWNER/NAME"),
        ({"weights": "hubb"}, "possible are a path, hub, asset:NAME, random"),
        ({"weights": "random", "tokenizer": "./gone"}, "no tokenizer at './gone'; possible are a folder"),
    ],
)
def test_what_names_nothing_is_told_before_any_hub_is_asked(node: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        HFTokenizer(node)


def test_a_tokenizer_of_other_words_than_that_beside_the_weights_is_refused(tmp_path: Path) -> None:
    same, other, bare = (tmp_path / name for name in ("same", "other", "bare"))
    beside = byte_level(tmp_path / "weights", pad_token="<pad>", eos_token="<end>")
    byte_level(same, pad_token="<pad>", eos_token="<stop>")
    bare.mkdir()
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"word{i}": i for i in range(99)}, "word0")), pad_token="<pad>"
    ).save_pretrained(str(other))
    assert HFTokenizer({"weights": beside, "tokenizer": str(same)}).size == 258
    for weights in ("random", "hub", str(bare)):
        assert HFTokenizer({"weights": weights, "tokenizer": str(other)}).size == 100
    with pytest.raises(UserError, match=r"other words than that of '.*weights': leave out encoder.tokenizer"):
        HFTokenizer({"weights": beside, "tokenizer": str(other)})


@pytest.mark.parametrize("config", ["{", '{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}'])
def test_a_fault_of_the_config_is_not_blamed_on_the_tokenizer(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json' is wrong \(.+\); give a model's own"):
        HFTokenizer({"weights": str(tmp_path)}, special=False)
