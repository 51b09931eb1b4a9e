"""Decoders as encoders: equal to transformers' own, padding, pooling, shared backbones, precision, full size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny import LLAMA, perturb, trained
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

from fusionbench.data.assets import asset
from fusionbench.encoders.base import Tokens
from fusionbench.encoders.llama import Llama
from fusionbench.encoders.llama_weights import FAMILIES
from fusionbench.errors import UserError
from fusionbench.layers.decoder_mask import decoder_mask, encoder_roles
from fusionbench.types import ModalitySpec

TEXT, PICTURE = ModalitySpec("text"), ModalitySpec("image", size=16)
SMALL = {**LLAMA, "num_hidden_layers": 3, "max_position_embeddings": 16}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def llama(spec: ModalitySpec = TEXT, **options: Any) -> Llama:
    made = {"weights": "random", "config": SMALL, "patch": 8, **options}
    return perturb(Llama(spec, **made)).eval()


def run(encoder: Llama, inputs: Tensor) -> Tensor:
    return encoder.pool(encoder.encode(encoder.embed(inputs)))


def ids(*lengths: int, size: int = 7) -> Tensor:
    """Return texts of some lengths, padded by 0."""
    return torch.randint(1, 100, (len(lengths), size)) * (torch.arange(size) < torch.tensor(lengths)[:, None])


@pytest.mark.parametrize("family", FAMILIES)
def test_with_rope_and_causal_it_is_transformers_own_model(family: str) -> None:
    config = {**SMALL, "model_type": family, **({"head_dim": 8} if family == "qwen3" else {})}
    theirs = AutoModel.from_config(CONFIG_MAPPING[family](**{k: v for k, v in config.items() if k != "model_type"}))
    ours = Llama(TEXT, weights="random", config=config, rope=True, causal=True).eval()
    perturb(theirs.eval())
    missing, unexpected = ours.net.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing
    assert not unexpected
    texts = ids(7, 7, 4)
    wanted = theirs(input_ids=texts, attention_mask=(texts != 0).long()).last_hidden_state
    found = ours.net.norm(ours.encode(ours.embed(texts)).values)
    torch.testing.assert_close(found[texts != 0], wanted[texts != 0], **CLOSE)
    torch.testing.assert_close(run(ours, texts), wanted[torch.arange(3), torch.tensor([6, 6, 3])], **CLOSE)


def test_without_rope_and_mask_the_order_of_words_does_not_matter_to_the_mean() -> None:
    encoder, texts = llama(pool="mean"), ids(7, 7)
    torch.testing.assert_close(run(encoder, texts), run(encoder, texts.flip(1)), **CLOSE)
    for option in ("rope", "causal"):
        other = llama(pool="mean", **{option: True})
        assert (run(other, texts) - run(other, texts.flip(1))).abs().max() > 1e-3


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("options", [{}, {"rope": True}, {"causal": True}, {"rope": True, "causal": True}], ids=str)
def test_a_longer_pad_changes_nothing(pool: str, options: Mapping[str, bool]) -> None:
    encoder, texts = llama(pool=pool, **options), ids(5, 3, 0)
    longer = torch.cat([texts, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    torch.testing.assert_close(run(encoder, longer), run(encoder, texts), **CLOSE)
    tokens, extra = (encoder.embed(t) for t in (texts, longer)), torch.randn(3, 2, encoder.width)
    short, long = (encoder.pool(encoder.encode(t.append(extra))) for t in tokens)
    torch.testing.assert_close(long, short, **CLOSE)


def test_padding_is_read_where_asked_for_but_never_pooled_and_masked_tokens_never() -> None:
    encoder, texts = llama(mask_padding=False), ids(3, 5, size=5)
    masked = llama()
    masked.load_state_dict(encoder.state_dict())
    found, other = run(encoder, texts), run(masked, texts)
    assert (found - other)[0].abs().max() > 1e-3
    torch.testing.assert_close(found[1], other[1], **CLOSE)
    encoded = encoder.encode(encoder.embed(texts))
    torch.testing.assert_close(found[0], encoder.net.norm(encoded.values[0, 2]), **CLOSE)
    closed = encoder.embed(texts).append(torch.randn(2, 2, 32), torch.zeros(2, 2, dtype=torch.bool))
    torch.testing.assert_close(encoder.pool(encoder.encode(closed)), found, **CLOSE)


def test_pooling_reads_own_valid_tokens_alone() -> None:
    last, mean = llama(), llama(pool="mean")
    mean.load_state_dict(last.state_dict())
    values, mask = torch.randn(3, 4, 32), torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    tokens = Tokens(values, mask).append(torch.randn(3, 2, 32))
    normed = last.net.norm(values)
    torch.testing.assert_close(last.pool(tokens), torch.stack([normed[0, 3], normed[1, 2], normed[2, 3]]))
    wanted = torch.stack([normed[0].mean(0), (normed[1, 0] + normed[1, 2]) / 2, torch.zeros(32)])
    torch.testing.assert_close(mean.pool(tokens), wanted)
    torch.testing.assert_close(last.pool(Tokens(values)), normed[:, 3])


def test_an_empty_text_is_read_as_one_padding_token() -> None:
    assert run(llama(), ids(0, 0)).isfinite().all()


def test_every_patch_sees_every_other_unless_causal() -> None:
    values = torch.randn(1, 4, 32)
    later = values.clone()
    later[:, 3] += 1
    for causal in (False, True):
        encoder = llama(PICTURE, causal=causal)
        moved = encoder.encode(Tokens(later)).values - encoder.encode(Tokens(values)).values
        assert (moved.abs().amax(dim=-1)[0] > 1e-5).tolist() == [not causal] * 3 + [True]


def states(encoder: Llama, values: Tensor) -> Tensor:
    """Return the last states of a sequence whose last two tokens were appended."""
    return encoder.encode(Tokens(values[:, :4]).append(values[:, 4:])).values


def test_mutual_attention_lets_pictures_read_what_stands_behind_and_text_not() -> None:
    values = torch.randn(1, 6, 32)
    later = values.clone()
    later[:, 5] += 1
    for spec, mutual, reads in ((PICTURE, True, True), (PICTURE, False, False), (TEXT, True, False)):
        encoder = llama(spec, causal=True, mutual_attention=mutual)
        moved = (states(encoder, later) - states(encoder, values)).abs().amax(dim=-1)[0]
        assert (moved[:4] > 1e-5).tolist() == [reads] * 4
        assert moved[5] > 1e-5


def test_mutual_attention_needs_a_causal_mask() -> None:
    with pytest.raises(UserError, match=r"'encoder\.mutual_attention' opens a causal mask; give encoder\.causal=true"):
        llama(mutual_attention=True)


def test_bfloat16_stays_close_to_float32() -> None:
    exact, short = llama(rope=True, causal=True), llama(rope=True, causal=True, dtype="bfloat16")
    short.load_state_dict(exact.state_dict())
    texts = ids(7, 4)
    torch.testing.assert_close(run(short, texts), run(exact, texts), rtol=0.1, atol=0.1)
    positions = short.bfloat16().positions(torch.zeros(1, 7, 32), None)
    assert torch.equal(positions[0], exact.positions(torch.zeros(1, 7, 32), None)[0])


def test_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = llama(checkpointing=checkpointing, causal=True, rope=True)
        run(encoder, ids(7, 4)).square().sum().backward()
        grads.append([p.grad for _, p in trained(encoder)])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mask_padding", [False, True])
def test_masks_and_angles_are_made_once_for_all_layers(
    monkeypatch: pytest.MonkeyPatch, checkpointing: bool, mask_padding: bool
) -> None:
    encoder = llama(causal=True, rope=True, checkpointing=checkpointing, mask_padding=mask_padding)
    made: list[str] = []
    for kind, name in ((decoder_mask, "decoder_mask"), (encoder_roles, "encoder_roles")):
        noted = lambda *args, kind=kind, name=name, **more: made.append(name) or kind(*args, **more)  # noqa: E731
        monkeypatch.setattr(f"fusionbench.encoders.llama.{name}", noted)
    encoder.positions.rotary.register_forward_pre_hook(lambda *_: made.append("rotary"))
    run(encoder, ids(7, 4)).sum().backward()
    assert sorted(made) == ["decoder_mask", "encoder_roles", "rotary"]


@dataclass
class Words:
    """A tokenizer of which only padding and size matter."""

    pad_id: int = 0
    size: int = 100

    def __call__(self, texts: list[str], max_length: int) -> list[list[int]]:
        return [[2] for _ in texts]


def test_a_tokenizer_of_another_model_is_refused() -> None:
    llama().check_tokenizer(Words())
    llama(config={**SMALL, "pad_token_id": 3}).check_tokenizer(Words(pad_id=3))
    with pytest.raises(UserError, match="tokenizer pads with token 1, but the decoder with 0: give the model's own"):
        llama().check_tokenizer(Words(pad_id=1))
    with pytest.raises(UserError, match="tokenizer has 101 words, but the decoder only 100: give the model's own"):
        llama().check_tokenizer(Words(size=101))


def test_rope_has_as_many_positions_as_the_decoder() -> None:
    assert llama().longest is None
    assert run(llama(), ids(20, size=20)).isfinite().all()
    assert llama(rope=True).longest == 16
    with pytest.raises(UserError, match=r"an input has 17 tokens, the decoder takes 16: set data\.text_length"):
        llama(rope=True).embed(ids(17, size=17))


def test_further_layers_come_from_the_same_place() -> None:
    blocks: Any = Llama.blocks({"weights": "random", "config": SMALL, "dtype": "bfloat16"}, [2, 0])
    assert [b.self_attn.config.num_key_value_heads for b in blocks] == [2, 2]
    assert {p.dtype for b in blocks for p in b.parameters()} == {torch.bfloat16}
    with pytest.raises(UserError, match=r"'fusion\.cross' names layer 3, but the decoder has 3, 0 to 2"):
        Llama.blocks({"weights": "random", "config": SMALL}, [3])


@pytest.mark.assets
def test_smollm2_with_its_real_weights_is_transformers_own() -> None:
    theirs = AutoModelForCausalLM.from_pretrained(asset("smollm2"), dtype=torch.float32).eval()
    options = {"weights": "asset:smollm2", "layers": [0, 1, 2], "rope": True, "causal": True}
    ours = Llama(TEXT, **options).eval()
    tokenizer = Llama.load_tokenizer(options)
    ours.check_tokenizer(tokenizer)
    texts = tokenizer(["moderately obvious, soft tissue", "no finding"], 16)
    longest = max(map(len, texts))
    padded = torch.tensor([own + [tokenizer.pad_id] * (longest - len(own)) for own in texts])
    mask = padded != tokenizer.pad_id
    with torch.no_grad():
        wanted = theirs(input_ids=padded, attention_mask=mask.long(), output_hidden_states=True).hidden_states[3]
        found = ours.encode(ours.embed(padded)).values
    torch.testing.assert_close(found[mask], wanted[mask], rtol=1e-3, atol=1e-3)
