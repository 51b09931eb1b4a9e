"""UniModel against a plain loop: one sequence, one adapter set, further encoders where needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain_blocks import final_norm, own_tokens
from plain_vectors import MOR, trainable, vit_base
from safetensors.torch import load_file
from tiny import SPECS, adaptation, batch, encoder_node, images, pool, problem, stage_one, strategy
from torch import Tensor, nn

from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.base import Tokens
from fusionbench.errors import UserError
from fusionbench.fusion.unimodel import UniModel
from fusionbench.types import Problem

CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def entering(network: UniModel, name: str, value: Tensor) -> Tensor:
    """Return one modality's tokens as they enter the one encoder, from the encoders' parts."""
    marked = network.modality[network.names.index(name)]
    if name in network.further:
        return network.projections[name](own_tokens(network, name, value)) + marked
    encoder = network.views.encoder(network.carrier)
    rows = value if network.problem.modalities[name].is_image else value[None]
    parts = [encoder.embed(row[None]) for row in rows]
    return torch.cat([p.values[0] if p.mask is None else p.values[0][p.mask[0]] for p in parts]) + marked


def plain(network: UniModel, inputs: dict[str, Tensor], here: list[str]) -> Tensor:
    """Return one case's logits (K,); the first token is the class token, even where its modality is absent."""
    order = [network.carrier, *(n for n in network.names if n != network.carrier)]
    parts = {n: entering(network, n, inputs[n]) for n in order}
    first = parts[network.carrier]
    tokens = [first if network.carrier in here else first[:1], *(parts[n] for n in order[1:] if n in here)]
    encoder = network.views.encoder(network.carrier)
    encoded = encoder.encode(Tokens(torch.cat(tokens)[None])).values[0]
    return network.head.weight @ final_norm(encoder, encoded[:1])[0] + network.head.bias


@pytest.mark.parametrize(
    "names", [("picture", "report", "scan"), ("report", "picture", "record")], ids=["vision first", "text first"]
)
def test_it_is_what_the_docstring_says(names: tuple[str, ...]) -> None:
    made = problem(names)
    network = strategy("unimodel", made).eval()
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    cases = batch(made, present=present)
    logits = network(cases.inputs, cases.present).logits
    for row in range(3):
        here = [n for i, n in enumerate(names) if present[row, i]]
        wanted = plain(network, {n: v[row] for n, v in cases.inputs.items()}, here)
        torch.testing.assert_close(logits[row], wanted, **CLOSE)


def test_the_first_encoder_that_takes_tokens_carries_the_sequence() -> None:
    made = problem(("picture", "record", "report"))
    network = strategy("unimodel", made, pool(made, "full", {"image": "timm_cnn", "table": "table_mlp"})).eval()
    assert network.carrier == "report"
    assert network.further == ("picture", "record")
    cases = batch(made, 3)
    wanted = plain(network, {n: v[1] for n, v in cases.inputs.items()}, list(network.names))
    torch.testing.assert_close(network(cases.inputs, cases.present).logits[1], wanted, **CLOSE)


def test_without_an_encoder_that_takes_tokens_it_is_refused() -> None:
    made = problem(("picture", "record"))
    with pytest.raises(UserError, match="unimodel needs one encoder that takes tokens"):
        strategy("unimodel", made, pool(made, "full", {"image": "timm_cnn", "table": "table_mlp"}))


@pytest.mark.parametrize("method", ["mor", "full"])
def test_modalities_of_one_encoder_node_share_encoder_and_adapter_set(method: str) -> None:
    one, three = images(1), images(3)
    first, second = (strategy("unimodel", made, pool(made, method)) for made in (one, three))
    assert list(second.views.address) == ["image0"]
    assert len(second.views.backbones) == 1
    sizes = [sum(p.numel() for p in network.parameters()) for network in (first, second)]
    assert sizes[1] - sizes[0] == 2 * 64


def test_complete_cases_need_no_mask() -> None:
    made = images(2, slices=2)
    network = strategy("unimodel", made).eval()
    cases = batch(made, 2)
    masked = network(cases.inputs, cases.present).logits
    object.__setattr__(made, "complete", True)
    torch.testing.assert_close(network(cases.inputs, cases.present).logits, masked, **CLOSE)


def test_the_stem_of_every_picture_modality_is_saved(tmp_path: Path) -> None:
    made, source = one_decoder(("left", "report", "right"))
    network = strategy("unimodel", made, source)
    paths = {path.stem: path for path in network.views.save_adapters(tmp_path)}
    assert set(paths) == {"left", "right"}
    stem = network.views.encoder("left").stem.each[1].state_dict()
    saved = load_file(paths["right"])
    assert {name.removeprefix("stem.") for name in saved} == set(stem)
    assert all(torch.equal(saved[f"stem.{name}"], value) for name, value in stem.items())


def test_parameters_are_those_of_one_vit_with_mor() -> None:
    assert trainable(vit_base("unimodel", 2, 4)) == MOR + 4 * 768 + 4 + 2 * 768 == 1_479_268


def one_decoder(names: tuple[str, ...], method: str = "lora", **options: object) -> tuple[Problem, EncoderPool]:
    """Return a problem on pictures and a report that share one node of a tiny Llama with large weights."""
    made = Problem({n: SPECS["report" if n == "report" else "picture"] for n in names}, ("a", "b", "c"))
    kind, given = encoder_node("llama")
    node = (kind, {**given, "config": {**given["config"], "initializer_range": 0.3}, **options})
    return made, EncoderPool(made.modalities, dict.fromkeys(names, node), adaptation(method))


def words(ids: Tensor) -> Tensor:
    """Return a text without its padding; the first token is always read."""
    return ids[(ids != 0) | (torch.arange(len(ids)) == 0)]


def plain_decoder(network: UniModel, inputs: dict[str, Tensor], here: list[str], reading: str, pool: str) -> Tensor:
    """Return one case's logits: pictures, then the text behind them, with who sees whom written out pair by pair."""
    encoder = network.views.encoder(network.carrier)
    pictures = [n for n in network.names if n != "report"]
    parts, is_picture = [], []
    for name in (*pictures, "report"):
        place = pictures.index(name) if name in pictures else None
        if place is None:
            values = encoder.net.embed_tokens(words(inputs[name]))
        else:
            values = encoder.stem.each[place](inputs[name])[0]
        values = values + network.modality[network.names.index(name)]
        kept = values if name in here else values[: 1 if name == pictures[0] else 0]
        parts.append(kept)
        is_picture += [place is not None] * len(kept)
    x = torch.cat(parts)[None]
    seen = torch.zeros(len(is_picture), len(is_picture), dtype=torch.bool)
    for q, asks in enumerate(is_picture):
        for k, told in enumerate(is_picture):
            seen[q, k] = reading == "open" or k <= q or (reading == "mutual" and asks and not told)
    head = encoder.net.layers[0].self_attn.head_dim
    unturned = (torch.ones(1, len(is_picture), head), torch.zeros(1, len(is_picture), head))
    for layer in encoder.net.layers:
        x = layer(x, attention_mask=seen[None, None], position_embeddings=unturned)
    own = len(is_picture) if reading == "causal" else sum(is_picture)
    normed = encoder.net.norm(x[0, :own])
    return network.head(normed.mean(dim=0) if pool == "mean" else normed[-1])


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("reading", ["open", "causal", "mutual"])
@pytest.mark.parametrize("names", [("left", "report"), ("report", "left"), ("left", "report", "right")])
def test_one_decoder_reads_pictures_and_then_their_text(names: tuple[str, ...], reading: str, pool: str) -> None:
    options = {"causal": reading != "open", "mutual_attention": reading == "mutual", "pool": pool}
    made, source = one_decoder(names, **options)
    network = strategy("unimodel", made, source).eval()
    assert network.carrier == "left"
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])[:, : len(names)]
    cases = batch(made, present=present)
    logits = network(cases.inputs, cases.present).logits
    for row in range(3):
        here = [n for i, n in enumerate(names) if present[row, i]]
        wanted = plain_decoder(network, {n: v[row] for n, v in cases.inputs.items()}, here, reading, pool)
        torch.testing.assert_close(logits[row], wanted, **CLOSE)


@pytest.mark.parametrize("reader", ["llama", "hf_patches"])
def test_each_picture_has_a_stem_of_its_own_beside_the_one_adapter_set(reader: str) -> None:
    one, three = (strategy("unimodel", m, pool(m, "lora", {"image": reader})) for m in (images(1), images(3)))
    stem = sum(p.numel() for p in three.views.encoder("image0").stem.each[0].parameters())
    assert list(three.views.address) == ["image0"]
    assert trainable(three) - trainable(one) == 2 * (stem + three.views.width("image0"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_one_decoder_starts_from_the_first_modality_of_stage_1(method: str) -> None:
    made, source = one_decoder(("report", "left", "right"), method)
    network = strategy("unimodel", made, source)
    states = stage_one(made, source)
    fresh = {k: v.clone() for k, v in network.views.encoder("left").stem.each[1].state_dict().items()}
    network.load_unimodal(states)
    now = network.views.adapter("left")
    assert all(torch.equal(now[key], value) for key, value in states["left"].adapter.items())
    kept = network.views.encoder("left").stem.each[1].state_dict()
    assert all(torch.equal(kept[key], value) for key, value in fresh.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_tuning_trains_the_words_that_stand_behind_a_picture(dtype: str) -> None:
    made, source = one_decoder(("left", "report"), "full", dtype=dtype)
    network = strategy("unimodel", made, source)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters())
    cases = batch(made, 2)
    nn.functional.cross_entropy(network(cases.inputs, cases.present).logits, cases.target).backward()
    assert network.views.encoder("left").net.embed_tokens.weight.grad.any()


@pytest.mark.parametrize("reading", ["open", "causal", "mutual"])
@pytest.mark.parametrize("method", ["lora", "losa", "vpt"])
def test_a_decoder_leaves_nothing_that_is_trained_dead(method: str, reading: str) -> None:
    options = {"causal": reading != "open", "mutual_attention": reading == "mutual"}
    made, source = one_decoder(("left", "report", "right"), method, **options)
    network = strategy("unimodel", made, source)
    cases = batch(made, 4)
    nn.functional.cross_entropy(network(cases.inputs, cases.present).logits, cases.target).backward()
    assert not [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


def test_a_joined_sequence_that_the_decoder_has_no_positions_for_is_refused() -> None:
    config = {**encoder_node("llama")[1]["config"], "max_position_embeddings": 38}
    made, source = one_decoder(("left", "report", "right"), config=config, rope=True)
    network, cases = strategy("unimodel", made, source), batch(made, 2)
    assert network.joined({"report": 7}) == (2 * 16 + 7, 38)
    with pytest.raises(UserError, match=r"one sequence of 39 tokens, but its encoder takes 38: set data\.text_length"):
        network(cases.inputs, cases.present)
    fits = {**cases.inputs, "report": cases.inputs["report"][:, :6]}
    assert network(fits, cases.present).logits.isfinite().all()
    assert strategy("unimodel", *one_decoder(("left", "report"))).joined({"report": 7}) == (16 + 7, None)


def test_what_goes_through_an_encoder_of_its_own_counts_with_its_tokens() -> None:
    network = strategy("unimodel", problem(("picture", "report", "scan")))
    one = network.views.encoder("picture").sequence
    assert network.joined({"report": 9}) == (one + 9 + 2 * one, None)
