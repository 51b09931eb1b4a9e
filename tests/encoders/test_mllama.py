"""Mllama, driven layer by layer: equal to transformers' own model, closed rows, precision, full size, bad input."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
from tiny import MLLAMA, adaptation, perturb, trained
from torch import Tensor, nn
from transformers import MllamaConfig, MllamaForConditionalGeneration

from fusionbench.adapt.views import EncoderPool
from fusionbench.data.transforms import NORMALIZE
from fusionbench.encoders.mllama import Mllama
from fusionbench.encoders.vision_language import Memory
from fusionbench.errors import UserError
from fusionbench.layers.decoder_mask import decoder_mask
from fusionbench.types import ModalitySpec, Problem

TEXT = ModalitySpec("text")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def noisy(module: Any) -> Any:
    """Open the gates, which start at zero, and tell all norms apart."""
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return module.eval()


@pytest.fixture
def theirs() -> Any:
    return noisy(MllamaForConditionalGeneration(MllamaConfig(**copy.deepcopy(MLLAMA))))


def mllama(**options: Any) -> Mllama:
    return noisy(Mllama(TEXT, **{"weights": "random", "config": MLLAMA, **options}))


def ids(*lengths: int, size: int = 7) -> Tensor:
    """Return texts of some lengths, padded by 0."""
    return torch.randint(3, 100, (len(lengths), size)) * (torch.arange(size) < torch.tensor(lengths)[:, None])


def drive(encoder: Mllama, texts: Tensor, memory: Memory | None) -> Tensor:
    """Return the logits (B, N, V) of texts read by one layer after the other."""
    tokens = encoder.embed(texts)
    mask_BNN = decoder_mask(torch.zeros_like(texts), tokens.mask)[:, 0]
    places, values = torch.arange(texts.shape[1]).expand_as(texts), tokens.values
    for index in range(encoder.depth):
        values = encoder.run_layer(index, values, mask_BNN, places, memory)
    return encoder.vocabulary(values)


def their_logits(model: Any, texts: Tensor, pictures: Tensor | None) -> Tensor:
    """Return the logits of transformers' own forward; a picture is the first of four tiles, which alone is open."""
    given = {}
    if pictures is not None:
        vision = model.config.vision_config
        tiles = torch.zeros(len(texts), 1, vision.max_num_tiles, 3, vision.image_size, vision.image_size)
        tiles[:, 0, 0] = pictures
        first = torch.tensor([1, 0, 0, 0])
        given = {
            "pixel_values": tiles,
            "aspect_ratio_ids": torch.ones(len(texts), 1, dtype=torch.long),
            "aspect_ratio_mask": first.expand(len(texts), 1, 4),
            "cross_attention_mask": first.expand(*texts.shape, 1, 4),
        }
    with torch.no_grad():
        out: Tensor = model(input_ids=texts, attention_mask=(texts != 0).long(), use_cache=False, **given).logits
    return out


def test_driven_layer_by_layer_it_is_transformers_own_model(theirs: Any) -> None:
    encoder, texts, pictures = mllama(normalize="clip"), ids(7, 7, 4), torch.randn(3, 3, 16, 16)
    assert not encoder.net.load_state_dict(theirs.state_dict()).missing_keys
    wanted = their_logits(theirs, texts, pictures)
    found = drive(encoder, texts, Memory(encoder.see(pictures)))
    torch.testing.assert_close(found[texts != 0], wanted[texts != 0], **CLOSE)
    alone = their_logits(theirs, texts, None)
    assert (wanted - alone).abs().max() > 0.01
    torch.testing.assert_close(drive(encoder, texts, None)[texts != 0], alone[texts != 0], **CLOSE)


def test_as_an_encoder_of_text_it_is_the_model_without_a_picture(theirs: Any) -> None:
    encoder, texts = mllama(), ids(7, 4)
    encoder.net.load_state_dict(theirs.state_dict())
    encoded = encoder.encode(encoder.embed(texts))
    wanted = their_logits(theirs, texts, None)[torch.arange(2), torch.tensor([6, 3])]
    torch.testing.assert_close(encoder.net.lm_head(encoder.pool(encoded)), wanted, **CLOSE)


def test_closed_tokens_are_not_read_and_gates_weigh_the_others() -> None:
    encoder, texts = mllama(), ids(5, 5, size=5)
    tokens = torch.randn(2, 3, 32)
    closed = Memory(tokens, torch.tensor([[0.0, 0.0, float("-inf")]] * 2))
    torch.testing.assert_close(drive(encoder, texts, closed), drive(encoder, texts, Memory(tokens[:, :2])), **CLOSE)
    twice = Memory(torch.cat([tokens, tokens[:, :1]], dim=1))  # a token read twice weighs as one gated by log 2
    gated = Memory(tokens, torch.tensor([[2.0, 1.0, 1.0]] * 2).log())
    torch.testing.assert_close(drive(encoder, texts, gated), drive(encoder, texts, twice), **CLOSE)


def test_a_row_that_is_closed_everywhere_reads_nothing_and_has_gradients() -> None:
    encoder, texts = mllama(), ids(5, 5, size=5)
    tokens = torch.randn(2, 3, 32, requires_grad=True)
    bias = torch.stack([torch.zeros(3), torch.full((3,), float("-inf"))]).requires_grad_()
    found = drive(encoder, texts, Memory(tokens, bias))
    torch.testing.assert_close(found[1], drive(encoder, texts, None)[1], **CLOSE)
    assert (found[0] - drive(encoder, texts, None)[0]).abs().max() > 0.01
    found.square().sum().backward()
    assert tokens.grad is not None
    assert bias.grad is not None
    assert tokens.grad.isfinite().all()
    assert bias.grad.isfinite().all()
    assert tokens.grad[0].any()
    assert not tokens.grad[1].any()


def test_checkpointing_changes_no_gradient() -> None:
    plain, texts, pictures = mllama(), ids(5, 3, size=5), torch.randn(2, 3, 16, 16)
    saving = mllama(checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    for encoder in (plain, saving):
        drive(encoder, texts, Memory(encoder.see(pictures))).square().mean().backward()
    wanted = dict(plain.named_parameters())
    for name, value in saving.named_parameters():
        assert value.grad is not None, name
        torch.testing.assert_close(value.grad, wanted[name].grad, **CLOSE)
        assert value.grad.any(), name


def test_with_checkpointing_one_layer_of_the_vision_tower_is_computed_again_at_a_time() -> None:
    sizes, ran = [], []
    for saving in (False, True):
        encoder, kept = mllama(checkpointing=saving), {}
        tower, keep = encoder.net.model.vision_model, lambda t, kept=kept: kept.update({t.data_ptr(): t.numel()}) or t
        for layer in (*tower.transformer.layers, *tower.global_transformer.layers):
            layer.register_forward_pre_hook(lambda module, *_: ran.append(module))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            seen = encoder.see(torch.randn(2, 3, 16, 16))
        sizes.append(sum(kept.values()))
        seen.sum().backward()
    whole, least = sizes
    assert least < whole / 2
    assert ran[3:] == [*ran[3:6], *ran[3:6][::-1]]


def channels(normalize: str) -> Tensor:
    """Return means and deviations, (2, 3, 1, 1)."""
    return torch.tensor(NORMALIZE[normalize])[..., None, None]


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_pictures_are_normalised_as_the_tower_knows_them_and_resized(normalize: str) -> None:
    encoder, shade = mllama(normalize=normalize), torch.rand(1, 3, 1, 1)
    given, wanted = ((shade - mean) / deviation for mean, deviation in (channels(normalize), channels("clip")))
    torch.testing.assert_close(encoder.pixels(given.expand(1, 3, 24, 20)), wanted.expand(1, 3, 16, 16), **CLOSE)
    assert encoder.see(given.expand(1, 3, 24, 20)).shape == (1, 5, 32)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_frozen_base_is_bfloat16_and_what_is_trained_float32(method: str) -> None:
    node = {"text": (Mllama, {"weights": "random", "config": MLLAMA, "dtype": "bfloat16"})}
    pool = EncoderPool(Problem({"text": TEXT}, ("a", "b")).modalities, node, adaptation(method))
    encoder: Any = pool.views({"text": "text"}).encoder("text")
    assert {p.dtype for _, p in trained(encoder)} == {torch.float32}
    frozen = {p.dtype for name, p in encoder.named_parameters() if not p.requires_grad and "norm" not in name}
    assert frozen == ({torch.bfloat16} if method == "lora" else set())
    perturb(encoder)
    seen = encoder.see(torch.randn(2, 3, 16, 16))
    assert seen.dtype == torch.float32
    bias = torch.zeros(2, seen.shape[1], requires_grad=True)
    logits = drive(encoder, ids(5, 4, size=5), Memory(seen, bias))
    assert logits.dtype == torch.float32
    logits.square().mean().backward()
    assert all(value.grad is not None for _, value in trained(encoder)), "a layer that nothing reads"


def test_at_full_size_it_is_llama_3_2_11b_vision() -> None:
    for size, count in ((560, 10_670_220_835), (448, 10_642_941_475)):
        begun = time.process_time()
        with torch.device("meta"):
            encoder = Mllama(TEXT, weights="random", config={"vision_config": {"image_size": size}})
        assert time.process_time() - begun < 1
        assert numel(encoder) == count
    assert encoder.cross_layers == (3, 8, 13, 18, 23, 28, 33, 38)
    assert (encoder.depth, encoder.width, encoder.pad_id) == (40, 4096, 128_004)
    assert numel(encoder.net.model.language_model) == 9_249_855_504
    assert numel(encoder.net.lm_head) == 4096 * 128_256
    assert numel(encoder.net.model.multi_modal_projector) == (7680 + 1) * 4096


def numel(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def test_a_text_with_more_tokens_than_positions_is_refused() -> None:
    with pytest.raises(UserError, match=r"has 65 tokens, the decoder takes 64: set data\.text_length"):
        mllama().embed(ids(65, size=65))
    with pytest.raises(UserError, match=r"pads with token 5, but the decoder with 0"):
        mllama().check_tokenizer(type("Other", (), {"pad_id": 5})())
