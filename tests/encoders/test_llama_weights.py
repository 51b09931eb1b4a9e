"""Layers read by name from every form of checkpoint, and one sentence for each that does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import LLAMA
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fusionbench.encoders.llama_weights import DecoderSource
from fusionbench.errors import UserError

WHOLE = "model.safetensors"
SIX = {**LLAMA, "num_hidden_layers": 6}
SHAPED = {key: value for key, value in SIX.items() if key != "model_type"}


@pytest.fixture
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SHAPED))


def saved(model: Any, folder: Path, **options: Any) -> Path:
    """Save a model as transformers does and return the folder."""
    model.save_pretrained(folder, **options)
    return folder


def check(folder: Path, model: LlamaForCausalLM) -> None:
    """Read layers 4 and 1, the norm and the words, and compare them with the model's."""
    source = DecoderSource({"weights": str(folder)})
    found = source.build([4, 1]).state_dict()
    state = model.model.state_dict()
    wanted = {"norm.weight": state["norm.weight"]}
    for place, index in enumerate((4, 1)):
        wanted |= {
            key.replace(f"layers.{index}.", f"layers.{place}."): value
            for key, value in state.items()
            if key.startswith(f"layers.{index}.")
        }
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert torch.equal(source.words().weight, state["embed_tokens.weight"])


def test_the_named_layers_are_read_in_their_order(model: LlamaForCausalLM, tmp_path: Path) -> None:
    check(saved(model, tmp_path), model)


def test_a_model_without_a_head_has_names_without_a_prefix(model: LlamaForCausalLM, tmp_path: Path) -> None:
    check(saved(model.model, tmp_path), model)


def test_a_pickled_checkpoint_is_read_as_tensors_alone(model: LlamaForCausalLM, tmp_path: Path) -> None:
    (saved(model, tmp_path) / WHOLE).unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    check(tmp_path, model)
    torch.save({"model.norm.weight": Path()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin' could not be read: Weights only load failed"):
        DecoderSource({"weights": str(tmp_path)}).build([0])


def test_of_a_checkpoint_in_parts_only_those_needed_are_opened(model: LlamaForCausalLM, tmp_path: Path) -> None:
    saved(model, tmp_path, max_shard_size="20kB")
    file_of = json.loads((tmp_path / f"{WHOLE}.index.json").read_text("utf-8"))["weight_map"]
    wanted = ("model.layers.1.", "model.layers.4.", "model.norm.", "model.embed_tokens.")
    needed = {file for name, file in file_of.items() if name.startswith(wanted)}
    others = set(file_of.values()) - needed
    assert others
    for file in others:
        (tmp_path / file).unlink()
    check(tmp_path, model)
    with pytest.raises(UserError, match=r"lacks its part 'model-0.*', which the index of its weights names"):
        DecoderSource({"weights": str(tmp_path)}).build(None)


def test_weights_are_held_in_the_dtype_asked_for(model: LlamaForCausalLM, tmp_path: Path) -> None:
    source = DecoderSource({"weights": str(saved(model.half(), tmp_path))})
    assert {p.dtype for p in source.build([0], torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in source.build([0]).parameters()} == {torch.float32}


def rewrite(folder: Path, change: dict[str, Tensor | None]) -> None:
    """Replace tensors of a checkpoint, or drop them."""
    state = {**load_file(folder / WHOLE), **change}
    save_file({key: value for key, value in state.items() if value is not None}, folder / WHOLE)


def refused(folder: Path, layers: list[int] | None = None) -> str:
    """Return the sentence that refuses a folder."""
    with pytest.raises(UserError) as caught:
        DecoderSource({"weights": str(folder)}).build(layers)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_or_of_another_shape_is_listed(model: LlamaForCausalLM, tmp_path: Path) -> None:
    first, second = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    rewrite(saved(model, tmp_path), {first: None, second: torch.zeros(3, 2), "model.norm.weight": None})
    said = refused(tmp_path)
    assert f"2 tensors are missing ({first}, model.norm.weight)" in said
    assert f"and 1 tensor is not of the shape that config.json says ({second} is 3 x 2 instead of 48 x 32)" in said
    assert refused(tmp_path, [2]).endswith("do not fit: 1 tensor is missing (model.norm.weight)")


def test_a_wrong_hidden_size_is_told_by_shapes(model: LlamaForCausalLM, tmp_path: Path) -> None:
    path = saved(model, tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "hidden_size": 64}), "utf-8")
    said = refused(tmp_path, [0])
    assert (
        "tensors are not of the shape that config.json says (model.layers.0.self_attn.q_proj.weight is 32 x 32" in said
    )
    with pytest.raises(UserError, match=r"\(model.embed_tokens.weight is 100 x 32 instead of 100 x 64\)"):
        DecoderSource({"weights": str(tmp_path)}).words()


def test_folders_that_hold_no_decoder_are_refused(model: LlamaForCausalLM, tmp_path: Path) -> None:
    assert "must be a folder with config.json and weights" in refused(tmp_path)
    saved(model, tmp_path)
    (tmp_path / WHOLE).write_bytes(b"damaged")
    assert f"{WHOLE}' could not be read" in refused(tmp_path)
    (tmp_path / WHOLE).unlink()
    assert "holds no weights: there is neither model.safetensors nor" in refused(tmp_path)
    (tmp_path / f"{WHOLE}.index.json").write_text("{}", "utf-8")
    assert f"{WHOLE}.index.json' could not be read: 'weight_map'" in refused(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', "utf-8")
    assert "'gpt2' is no decoder of the Llama family; possible are: llama, mistral, qwen2, qwen3" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{", "utf-8")
    assert "config.json' could not be read" in refused(tmp_path)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([0, 6], "'encoder.layers' names layer 6, but the decoder has 6, 0 to 5"),
        ([-1], "'encoder.layers' names layer -1, but the decoder has 6, 0 to 5"),
        ([], "'encoder.layers' is empty; give one or more layers of the decoder"),
    ],
)
def test_layers_that_are_not_there_are_refused(layers: list[int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        DecoderSource({"weights": "random", "config": SIX}).build(layers)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": None}, "random weights need 'encoder.config', e.g. {model_type: llama"),
        ({"model_type": "llamas"}, "'llamas' is no decoder of the Llama family; did you mean 'llama'?"),
        ({"hidden_sizes": 64}, "a llama has no 'encoder.config.hidden_sizes'; did you mean 'hidden_size'?"),
        ({"hidden_size": 30}, "'encoder.config' makes no llama: "),
        ({"num_hidden_layers": 0}, "'encoder.config.num_hidden_layers' must be at least 1, not 0"),
    ],
    ids=str,
)
def test_configs_that_make_no_decoder_are_refused(config: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        DecoderSource({"weights": "random", "config": {**LLAMA, **config}})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hub_needs_a_model() -> None:
    with pytest.raises(UserError, match=r"weights=hub needs encoder\.model=OWNER/NAME"):
        DecoderSource({"weights": "hub"})


class Gate(BaseHTTPRequestHandler):
    """Answers as the hub does for gated models: owner/STATUS-listed tells its files but does not give them."""

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models").strip("/").split("/")[1]
        status, listed = name.split("-")
        about = {"id": f"owner/{name}", "sha": "0" * 40, "siblings": [{"rfilename": "config.json"}]}
        tree = [{"type": "file", "path": "config.json", "size": 9, "oid": "0" * 40}]
        told = listed == "listed" and self.path.startswith("/api/models/")
        body = json.dumps((tree if "/tree/" in self.path else about) if told else {"error": "restricted"}).encode()
        self.send_response(200 if told else int(status))
        if not told:
            self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


@pytest.fixture
def hub() -> Iterator[str]:
    """Serve on a free port of this machine and return the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


GATED = ("owner/401-listed", "owner/403-listed", "owner/403-closed")
ASK = """
import sys
from fusionbench.encoders.checkpoint import Checkpoint
from fusionbench.errors import UserError
for model in sys.argv[1:]:
    try:
        Checkpoint(model, None).file("config.json")
    except UserError as error:
        print(error)
"""


def test_gated_weights_are_told_with_what_to_do(hub: str, tmp_path: Path) -> None:
    variables = {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
    }  # read when the client is imported
    command = [sys.executable, "-c", ASK, *GATED]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"the weights of '{model}' are gated and your account has no access: accept their licence on the model's "
        "page, log in by 'hf auth login', or give a local folder by encoder.weights=PATH"
        for model in GATED
    ]
