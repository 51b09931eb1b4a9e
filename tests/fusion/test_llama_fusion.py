"""Late, early and mixed LLaMA-II fusion against plain loops, with missing modalities, padding and several slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_cross import Case, cross, readout
from tiny import LLAMA, adaptation, batch, perturb, pool, problem, step
from torch import Tensor

from fusionbench import registry
from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.base import Tokens
from fusionbench.encoders.llama import Llama
from fusionbench.errors import UserError
from fusionbench.fusion.base import Strategy
from fusionbench.layers.cross_block import CrossBlock
from fusionbench.types import Batch, ModalitySpec, Problem

WIRINGS = ("llama_late", "llama_early", "llama_mixed")
# Weights of std 0.5: with a pretrained start's 0.02 every layer would be next to the identity, and late next to early.
SMALL = {
    **LLAMA,
    "hidden_size": 12,
    "num_attention_heads": 6,
    "intermediate_size": 10,
    "initializer_range": 0.5,
}
CLOSE = {"rtol": 1e-3, "atol": 1e-5}
TWO = torch.tensor([[1, 1], [1, 0], [0, 1]], dtype=torch.bool)
THREE = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)


AROUND = Problem(
    {"left": ModalitySpec("image", size=32), "report": ModalitySpec("text"), "right": ModalitySpec("image", size=32)},
    ("class0", "class1", "class2"),
)


def build(fusion: str, made: Problem, method: str = "lora", dtype: str = "float32", **options: Any) -> Strategy:
    """Build a strategy on tiny Llamas, two blocks and, if mixed, one behind the sum, whose adapters do something."""
    node = {"weights": "random", "config": SMALL, "layers": (0, 1), "patch": 16, "dtype": dtype}
    source = EncoderPool(made.modalities, dict.fromkeys(made.modalities, (Llama, node)), adaptation(method))
    more = {"cross_after": (3,)} if fusion == "llama_mixed" else {}
    kind = registry.describe("fusion", fusion).load()
    return perturb(kind(made, source, **{"cross": (2, 1), **more, **options}))


def texts(ids: Tensor) -> Tensor:
    """Return which tokens are no padding; the first is always read."""
    mask = ids != 0
    mask[0] = True
    return mask


def encoded(network: Strategy, name: str, value: Tensor, layers: bool) -> tuple[Tensor, list[bool]]:
    """Return one case's tokens of all its images, embedded or also encoded and normed, and which of them count."""
    encoder, view = network.views.encoder(name), network.views.address[name][1]
    is_image = network.problem.modalities[name].is_image
    tokens, open_ = [], []
    for row in value if is_image else value[None]:
        with encoder.selector.select((view,)):
            embedded = encoder.embed(row[None])
        values = encoder.encode(embedded, views=(view,)).values[0] if layers else embedded.values[0]
        tokens.append(encoder.net.norm(values) if layers else values)
        open_ += [True] * len(values) if is_image else texts(row).tolist()
    return torch.cat(tokens), open_


def plain(network: Strategy, fusion: str, inputs: dict[str, Tensor], here: list[str]) -> Tensor:
    """Return one case's logits (K,): an absent modality's tokens are never open."""
    own, raw = {}, {}
    open_ = {}
    for name, value in inputs.items():
        own[name], flags = encoded(network, name, value, layers=True)
        raw[name], _ = encoded(network, name, value, layers=False)
        open_[name] = [name in here and flag for flag in flags]

    def blocks(stack: torch.nn.Module, states: Case) -> Case:
        for block in stack.blocks:
            states = cross(states, block, open_)
        return states

    if fusion == "llama_late":
        fused = blocks(network.cross, own)
    else:
        crossed = blocks(network.cross, raw)
        fused = {name: own[name] + crossed[name] for name in own}
    if fusion == "llama_mixed":
        fused = blocks(network.after, fused)
    return network.head.weight @ readout(fused, network.readout, open_, here) + network.head.bias


def check(network: Strategy, fusion: str, cases: Batch) -> None:
    """Compare every case's logits with the plain loop."""
    logits = network.eval()(cases.inputs, cases.present).logits
    for row, wanted in enumerate(cases.present):
        here = [n for m, n in enumerate(network.names) if wanted[m]]
        inputs = {n: v[row] for n, v in cases.inputs.items()}
        torch.testing.assert_close(logits[row], plain(network, fusion, inputs, here), **CLOSE)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("fusion", WIRINGS)
def test_it_is_what_the_equations_say(fusion: str, method: str) -> None:
    made = problem(("picture", "report"), multilabel=True)
    check(build(fusion, made, method), fusion, batch(made, present=TWO))


@pytest.mark.parametrize("fusion", WIRINGS)
def test_three_modalities_each_read_all_others_and_all_slices(fusion: str) -> None:
    made = problem(("scan", "report", "picture"))
    check(build(fusion, made, readout="mean", through_vocabulary=True), fusion, batch(made, present=THREE))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("fusion", WIRINGS)
def test_pictures_that_are_embedded_together_keep_their_places_around_a_text(fusion: str, method: str) -> None:
    check(build(fusion, AROUND, method), fusion, batch(AROUND, present=THREE))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_blocks_take_modalities_in_any_order(method: str) -> None:
    network = build("llama_late", AROUND, method).eval()
    tokens = {name: Tokens(torch.randn(3, length, 12)) for name, length in (("left", 4), ("report", 5), ("right", 4))}
    straight, turned = network.cross(tokens, THREE), network.cross(dict(reversed(tokens.items())), THREE)
    assert list(straight) == list(turned) == list(AROUND.modalities)
    assert all(torch.equal(straight[name].values, turned[name].values) for name in tokens)


@pytest.mark.parametrize("method", ["lora", "full", "vpt", "peft_lora"])
@pytest.mark.parametrize("how", ["plain", "mixed", "true"])
def test_bfloat16_holds_what_is_frozen_of_the_blocks_too(method: str, how: str) -> None:
    made = problem(("picture", "report"))
    network, cases = build("llama_mixed", made, method, "bfloat16"), batch(made)
    blocks = [module for module in network.modules() if isinstance(module, CrossBlock)]
    held = {(p.requires_grad, p.dtype) for block in blocks for n, p in block.named_parameters() if "norm" not in n}
    frozen = {(False, torch.bfloat16)} if method in ("lora", "peft_lora") else set()
    assert held == {(True, torch.float32)} | frozen
    if how == "true":
        network = network.bfloat16()
        cases.inputs["picture"] = cases.inputs["picture"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "mixed"):
        _, losses = step(network, cases)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


def test_blocks_in_bfloat16_stay_close_to_float32() -> None:
    short, exact = (build("llama_late", AROUND, dtype=dtype).eval() for dtype in ("bfloat16", "float32"))
    exact.load_state_dict(short.state_dict())
    tokens = {name: Tokens(torch.randn(3, 4, 12)) for name in AROUND.modalities}
    found, wanted = short.cross(tokens, THREE), exact.cross(tokens, THREE)
    for name in tokens:
        assert found[name].values.dtype == torch.float32
        off = (found[name].values - wanted[name].values).norm() / wanted[name].values.norm()
        assert 0 < off < 0.1


def test_the_wirings_differ_on_the_same_weights() -> None:
    made = problem(("picture", "report"))
    cases = batch(made, 3)
    networks = {fusion: build(fusion, made).eval() for fusion in WIRINGS}
    state = networks["llama_mixed"].state_dict()
    logits = []
    for network in networks.values():
        network.load_state_dict({key: state[key] for key in network.state_dict()})
        logits.append(network(cases.inputs, cases.present).logits)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(logits[one], logits[other], atol=1e-3)


@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("fusion", WIRINGS)
def test_a_longer_pad_changes_nothing(fusion: str, readout: str) -> None:
    made = problem(("picture", "report"))
    network = build(fusion, made, readout=readout).eval()
    cases = batch(made, 3)
    longer = {**cases.inputs, "report": torch.nn.functional.pad(cases.inputs["report"], (0, 9))}
    short, long = (network(inputs, cases.present).logits for inputs in (cases.inputs, longer))
    torch.testing.assert_close(long, short, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", WIRINGS)
def test_complete_cases_without_padding_need_no_mask(fusion: str) -> None:
    made = problem(("picture", "scan"))
    network = build(fusion, made).eval()
    cases = batch(made, 2)
    masked = network(cases.inputs, cases.present).logits
    for name, stack in network.named_children():
        if name in ("cross", "after"):
            stack.complete = True
    heard: list[object] = []
    network.cross.blocks[0].register_forward_pre_hook(lambda _, args: heard.append(args[1]))
    torch.testing.assert_close(network(cases.inputs, cases.present).logits, masked, **CLOSE)
    assert heard == [None]


@pytest.mark.parametrize("fusion", WIRINGS)
def test_one_frozen_base_serves_both_directions(fusion: str) -> None:
    made = problem(("picture", "report"))
    network = build(fusion, made)
    blocks = [module for module in network.modules() if isinstance(module, CrossBlock)]
    assert len(blocks) == (3 if fusion == "llama_mixed" else 2)
    assert all(len(block.attentions) == 1 for block in blocks)
    (one,) = Llama.blocks({"weights": "random", "config": SMALL}, [1])
    held = sum(p.numel() for p in one.parameters())
    assert [sum(p.numel() for p in b.parameters() if not p.requires_grad) for b in blocks] == [held] * len(blocks)
    _, losses = step(network, batch(made, 3))
    sum(losses.values()).backward()
    for parameter in (p for block in blocks for p in block.parameters() if p.requires_grad):
        assert all(part.any() for part in parameter.grad)  # each view's slice


def test_blocks_start_from_the_named_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    real = Llama.blocks
    monkeypatch.setattr(
        Llama, "blocks", lambda options, *where: asked.append((options["layers"], *where)) or real(options, *where)
    )
    build("llama_mixed", problem(("picture", "report")), cross=(5, 3), cross_after=(4, 4))
    assert asked == [((0, 1), (5, 3), "fusion.cross"), ((0, 1), (4, 4), "fusion.cross_after")]


def test_without_a_llama_the_blocks_are_random_and_trained_whole() -> None:
    made = problem(("picture", "report", "record"))
    network = registry.describe("fusion", "llama_late").load()(made, pool(made, "lora"), cross=(0, 1))
    assert network.cross.width == network.views.width("picture") == 64
    assert [len(block.attentions) for block in network.cross.blocks] == [3, 3]
    assert all(p.requires_grad for p in network.cross.parameters())
    assert [type(layer).__name__ for layer in network.projections.values()] == ["Identity", "Linear", "Linear"]


def test_a_modality_alone_trains_no_cross_block() -> None:
    made = problem(("report",))
    for fusion in WIRINGS:
        network = build(fusion, made, "full")
        _, losses = step(network, batch(made, 3))
        sum(losses.values()).backward()
        assert all(
            p.requires_grad is not name.startswith(("cross.", "after.")) for name, p in network.named_parameters()
        )
        assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("fusion", "options", "said"),
    [
        (
            "llama_late",
            {"cross": ()},
            r"'fusion\.cross' must name one or more decoder layers, counted from 0, not \[\]",
        ),
        ("llama_early", {"cross": (-1,)}, r"'fusion\.cross' must name one or more decoder layers, .* not \[-1\]"),
        ("llama_mixed", {"cross_after": (9,)}, r"'fusion\.cross_after' names layer 9, but the decoder has 8, 0 to 7"),
        ("llama_late", {"dropout": 1.0}, r"'fusion\.dropout' must be at least 0 and below 1, not 1\.0"),
        ("llama_late", {"through_vocabulary": True}, r"'fusion\.through_vocabulary' needs a modality of kind text"),
    ],
)
def test_a_value_out_of_range_is_refused(fusion: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(fusion, problem(("picture", "scan")), **options)
