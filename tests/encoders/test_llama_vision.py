"""A text decoder that is made to see: unchanged at the start, its stack, its positions, what is trained, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LLAMA, adaptation, perturb, trained
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.data.assets import asset
from fusionbench.data.transforms import NORMALIZE
from fusionbench.encoders.llama_vision import LlamaVision, cross_places
from fusionbench.encoders.vision_language import Memory, Pixels
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec

TEXT = ModalitySpec("text")
TOWER = {"model": "test_vit", "weights": "random"}
SMALL = {**LLAMA, "num_hidden_layers": 4}


def vision(**options: Any) -> LlamaVision:
    """Return a tiny encoder in evaluation mode, as it starts."""
    return LlamaVision(TEXT, **{"weights": "random", "config": SMALL, "vision": TOWER, **options}).eval()


def logits(encoder: LlamaVision, ids_BL: Tensor, memory: Memory | None = None, **given: Tensor) -> Tensor:
    """Run the whole stack on text and, maybe, a picture; causal from 0 unless mask and positions are given."""
    tokens = encoder.embed(ids_BL)
    rows, count = ids_BL.shape
    causal = torch.ones(rows, count, count, dtype=torch.bool).tril() & tokens.mask[:, None]
    mask, positions = given.get("mask", causal), given.get("positions", torch.arange(count).expand(rows, -1))
    values = tokens.values
    for index in range(encoder.depth):
        values = encoder.run_layer(index, values, mask, positions, memory)
    return encoder.vocabulary(values)


def words(rows: int = 2, count: int = 6) -> Tensor:
    return torch.randint(1, 100, (rows, count))


def seen(encoder: LlamaVision, rows: int = 2) -> Memory:
    """Return the memory of random pictures."""
    return Memory(encoder.see(torch.randn(rows, 3, 32, 32)), None)


@pytest.mark.assets
def test_smollm2_that_sees_starts_as_transformers_own_bit_for_bit() -> None:
    theirs = AutoModelForCausalLM.from_pretrained(asset("smollm2"), dtype=torch.float32).eval()
    tower = {"model": "vit_small_patch14_dinov2", "weights": "asset:dinov2_small", "size": 56}
    options: dict[str, Any] = {"weights": "asset:smollm2", "vision": tower}
    ours = LlamaVision(TEXT, **options).eval()
    assert (ours.depth, len(ours.cross_layers), ours.head) == (38, 8, None)
    tokenizer = LlamaVision.load_tokenizer(options)
    ours.check_tokenizer(tokenizer)
    texts = tokenizer(["moderately obvious, soft tissue", "no finding"], 16)
    longest = max(map(len, texts))
    padded = torch.tensor([own + [tokenizer.pad_id] * (longest - len(own)) for own in texts])
    mask = padded != tokenizer.pad_id
    with torch.no_grad():
        memory = Memory(ours.see(torch.randn(2, 3, 64, 64)), None)
        assert memory.tokens_BTD.shape == (2, 1 + 4 * 4, 576)
        wanted = theirs(input_ids=padded, attention_mask=mask.long()).logits
        found = logits(ours, padded, memory)
    assert torch.equal(found[mask], wanted[mask])


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_is_read_with_its_head(tied: bool, tmp_path: Path) -> None:
    shaped = {k: v for k, v in SMALL.items() if k != "model_type"}
    theirs = LlamaForCausalLM(LlamaConfig(**shaped, tie_word_embeddings=tied)).eval()
    theirs.save_pretrained(tmp_path)
    with pytest.MonkeyPatch.context() as patch:  # a tokenizer is asked for its padding alone
        patch.setattr("fusionbench.encoders.llama.Llama._padding", lambda _: 0)
        ours = vision(weights=str(tmp_path), config=None)
    ids = words()
    torch.testing.assert_close(logits(ours, ids, seen(ours)), theirs(ids).logits, rtol=1e-5, atol=1e-6)
    shared = [p for p in ours.parameters() if p.shape == (100, 32)]
    assert len(shared) == (1 if tied else 2)


def test_weights_without_a_head_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusionbench.encoders.llama.Llama._padding", lambda _: 0)
    LlamaModel(LlamaConfig(**{k: v for k, v in SMALL.items() if k != "model_type"})).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"do not fit: .*lm_head.weight"):
        vision(weights=str(tmp_path), config=None)


def test_the_default_stack_is_that_of_llama_3_2() -> None:
    own = cross_places(32)
    assert own == [3, 7, 11, 15, 19, 23, 27, 31]
    assert [place + before for before, place in enumerate(own)] == [3, 8, 13, 18, 23, 28, 33, 38]
    assert cross_places(30) == [2, 6, 10, 14, 17, 21, 25, 29]
    assert cross_places(2) == [0, 1]


def test_a_cross_layer_stands_before_the_layer_that_is_named() -> None:
    encoder = vision(layers=[2, 0, 3], at=[1, 2])
    assert encoder.cross_layers == (1, 3)
    assert encoder.depth == 5
    perturb(encoder.sight)
    values, memory, ran = torch.randn(1, 3, 32), seen(encoder, 1), []
    mask, positions = torch.ones(1, 3, 3, dtype=torch.bool).tril(), torch.arange(3)[None]
    sorts = {id(part): name for name, part in encoder.named_modules()}
    for part in [*encoder.decoder.net.layers, *encoder.sight.each[0].layers]:
        part.register_forward_hook(lambda module, *_: ran.append(sorts[id(module)]))
    for index in range(5):
        encoder.run_layer(index, values, mask, positions, memory)
    own, cross = "decoder.net.layers.", "sight.each.0.layers."
    assert ran == [own + "0", cross + "0", own + "1", cross + "1", own + "2"]


def test_without_memory_or_with_a_closed_one_a_cross_layer_changes_nothing() -> None:
    encoder, ids = vision(), words()
    perturb(encoder.sight)
    memory = seen(encoder)
    closed = memory._replace(bias_BT=torch.full(memory.tokens_BTD.shape[:2], float("-inf")))
    bare = logits(encoder, ids)
    assert torch.equal(logits(encoder, ids, closed), bare)
    assert (logits(encoder, ids, memory) - bare).abs().amax() > 1e-3


def test_names_behind_one_prompt_equal_names_one_at_a_time() -> None:
    encoder, prompt, names = vision(), words(1, 4), words(1, 5)
    perturb(encoder.sight)
    memory = seen(encoder, 1)
    owner = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])  # 0 is the prompt, 1 and 2 are names
    mask = ((owner[:, None] == owner) | (owner == 0)).tril()[None]
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 4, 5, 6]])
    together = logits(encoder, torch.cat([prompt, names], 1), memory, mask=mask, positions=positions)
    first = logits(encoder, torch.cat([prompt, names[:, :2]], 1), memory)
    second = logits(encoder, torch.cat([prompt, names[:, 2:]], 1), memory)
    torch.testing.assert_close(together[:, :6], first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[:, 6:], second[:, 4:], rtol=1e-4, atol=1e-5)


def test_text_alone_is_causal_and_padding_takes_no_place() -> None:
    encoder, ids = vision(), words(1, 6)
    ids[:, 4:] = 0
    padded, cut = encoder.encode(encoder.embed(ids)), encoder.encode(encoder.embed(ids[:, :4]))
    torch.testing.assert_close(padded.values[:, :4], cut.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.pool(padded), encoder.pool(cut), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.vocabulary(cut.values), logits(encoder, ids[:, :4]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tower", ["test_vit", "vit_small_patch14_reg4_dinov2"])
def test_the_picture_is_read_by_the_vits_class_token_and_patches(tower: str) -> None:
    encoder = vision(vision={**TOWER, "model": tower, "size": 56}, normalize="half")
    net, images = encoder.vision.net, torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    large = torch.nn.functional.interpolate(images, size=(56, 56), mode="bilinear", antialias=True)
    features = net.forward_features((large - mean) / std)
    used = torch.cat([features[:, :1], features[:, 1 + net.num_reg_tokens :]], dim=1)
    found = encoder.see(images * 2 - 1)
    assert found.shape == (2, 17, 32)  # 4 x 4 patches of 14, or of 16 with padding, and the class token
    torch.testing.assert_close(found, encoder.sight.each[0].projection(used), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", NORMALIZE)
def test_pixels_go_from_one_normalisation_to_another(given: str) -> None:
    picture, mean, deviation = torch.rand(1, 3, 4, 4), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    came = [(picture[:, c] - NORMALIZE[given][0][c]) / NORMALIZE[given][1][c] for c in range(3)]
    found = Pixels(given, mean=mean, deviation=deviation)(torch.stack(came, 1))
    for c in range(3):
        torch.testing.assert_close(found[:, c], (picture[:, c] - mean[c]) / deviation[c])


def views(method: str, count: int = 1) -> Views:
    """Return views of the encoder under a tuning method."""
    node = (LlamaVision, {"weights": "random", "config": SMALL, "vision": TOWER})
    names = [f"text{i}" for i in range(count)]
    return EncoderPool(dict.fromkeys(names, TEXT), dict.fromkeys(names, node), adaptation(method)).views(
        {name: name for name in names}
    )


@pytest.mark.parametrize(("method", "base"), [("frozen", False), ("lora", False), ("full", True)])
def test_the_new_layers_learn_whatever_the_method_and_the_rest_by_the_method(method: str, base: bool) -> None:
    encoder = views(method).encoder("text0")
    names = {name for name, _ in trained(encoder)}
    new = {name for name, _ in encoder.named_parameters() if name.startswith("sight.")}
    assert new <= names
    assert any(name.startswith("vision.") for name in names) == base
    rest = {name for name in names - new if not name.startswith("vision.")}
    assert bool(rest) == (method != "frozen")
    assert all(base or name.endswith((".down", ".up")) for name in rest)


def test_each_view_has_its_own_sight_on_one_base() -> None:
    made = views("frozen", 2)
    encoder = perturb(made).encoder("text0")
    assert encoder is made.encoder("text1")
    ids, images = words(1), torch.randn(1, 3, 32, 32)
    alone = []
    for view in (0, 1):
        with encoder.selector.select((view,)):
            alone.append(logits(encoder, ids, Memory(encoder.see(images))))
    with encoder.selector.select((0, 1)):
        both = logits(encoder, ids.repeat(2, 1), Memory(encoder.see(images.repeat(2, 1, 1, 1)), torch.zeros(2, 5)))
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert (alone[0] - alone[1]).abs().amax() > 1e-3
    state = made.adapter("text1")
    assert state
    assert all(name.startswith("sight.") for name in state)


def test_checkpointing_gives_the_same_gradients_for_the_selected_view() -> None:
    made = perturb(views("frozen", 2))
    encoder, ids, images = made.encoder("text0"), words(), torch.randn(2, 3, 32, 32)
    gradients = []
    for encoder.checkpointing in (False, True):
        with encoder.selector.select((1,)):
            loss = logits(encoder, ids, Memory(encoder.see(images))).square().mean()
        loss.backward()  # recomputes with view 0 selected
        gradients.append({name: p.grad.clone() for name, p in trained(encoder) if p.grad is not None})
        encoder.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    assert {name.split(".")[2] for name in gradients[0]} == {"1"}
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-4, atol=1e-6)


def test_pixels_of_bfloat16_are_resized_in_float32() -> None:
    resize, given = Pixels("half", mean=[0.5] * 3, deviation=[0.5] * 3, size=8), torch.randn(1, 3, 20, 20).bfloat16()
    found = resize.bfloat16()(given)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, resize.float()(given.float()).bfloat16())


def test_it_tells_how_many_positions_its_decoder_has() -> None:
    assert vision().longest == SMALL["max_position_embeddings"]


def test_bfloat16_mixed_is_near_float32() -> None:
    encoder, ids = perturb(vision()), words()
    images = torch.randn(2, 3, 32, 32)
    wanted = logits(encoder, ids, Memory(encoder.see(images)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits(encoder, ids, Memory(encoder.see(images), torch.zeros(2, 5)))
    torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"at": []}, r"'encoder.at' must name one or more layers, each once and rising, not \[\]"),
        ({"at": [2, 1]}, r"each once and rising, not \[2, 1\]"),
        ({"at": [1, 4]}, "'encoder.at' names layer 4, but the decoder has 4, 0 to 3"),
        ({"at": [-1]}, "'encoder.at' names layer -1, but the decoder has 4, 0 to 3"),
        ({"vision": {"model": "test_vit"}}, "'encoder.vision' needs a ViT and its weights"),
        ({"vision": {**TOWER, "sise": 3}}, "there is no 'encoder.vision.sise'; did you mean 'size'"),
        ({"vision": {**TOWER, "size": 0}}, "'encoder.vision.size' must be at least 1, not 0"),
        ({"normalize": "imagenett"}, "unknown encoder.normalize 'imagenett'; did you mean 'imagenet'"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        vision(**options)
