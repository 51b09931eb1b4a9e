"""MDF against a plain loop, the unfused model where the gates are closed, gradients, leaks, padding, ablations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mdf_networks import CLOSE, MADE, PRESENT, cases_of, mdf, same_language_model
from tiny import Words, perturb, step, trained
from torch import Tensor

from fusionbench.encoders.vision_language import Memory, VisionLanguage
from fusionbench.fusion.mdf import MDF
from fusionbench.types import Problem


@pytest.mark.parametrize("encoder", ["llama_vision", "mllama"])
@pytest.mark.parametrize("closed", [{"gate": 0.0}, {"query": "vision"}])
def test_with_closed_gates_it_is_the_unfused_language_model(encoder: str, closed: dict[str, Any]) -> None:
    network, cases = mdf(encoder, "full", **closed), cases_of()
    for block in network.blocks.values() if "query" in closed else ():
        block.alpha.detach().zero_()
    alone = same_language_model(network, encoder, "full")
    wanted = alone(cases.inputs, cases.present).logits
    found = network(cases.inputs, cases.present).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    opened = mdf(encoder, "full", **{k: v for k, v in closed.items() if k == "query"})
    state = network.state_dict()
    opened.load_state_dict({k: v for k, v in state.items() if not k.endswith(("alpha", "gate_logit"))}, strict=False)
    assert (opened(cases.inputs, cases.present).logits - wanted)[PRESENT[:, 0]].abs().max() > 1e-4


def test_at_the_start_film_is_the_identity() -> None:
    network, cases = mdf(mask="vessels", noisy=False), cases_of()
    unet = network.unet()
    wanted = unet.decode(unet.pyramid(cases.inputs["picture"][:, 0]))
    found = network(cases.inputs, cases.present).maps["vessels"]
    assert torch.equal(found, wanted)
    perturb(network.films)
    assert not torch.equal(network(cases.inputs, cases.present).maps["vessels"], wanted)


def run(language: VisionLanguage, ids: list[int], memories: dict[int, Memory]) -> tuple[Tensor, dict[int, Tensor]]:
    """Run one sequence without padding; return its logits (N, V) and the mean over what leaves each layer."""
    values = language.embed(torch.tensor([ids])).values
    mask, positions = torch.ones(1, len(ids), len(ids), dtype=torch.bool).tril(), torch.arange(len(ids))[None]
    means = {}
    for index in range(language.depth):
        values = language.run_layer(index, values, mask, positions, memories.get(index))
        means[index] = values.mean(dim=1)
    return language.vocabulary(values)[0], means


def plain(network: MDF, picture_CHW: Tensor, text: list[int]) -> tuple[Tensor, Tensor]:
    """Return one case's class scores (K,) and mask logits, name by name."""
    language, unet = network.views.encoder("report"), network.unet()
    assert isinstance(language, VisionLanguage)
    pyramid, seen = unet.pyramid(picture_CHW[None]), language.see(picture_CHW[None])
    memories = {index: Memory(seen) for index in language.cross_layers}
    for layer, skip in zip(network.layers, pyramid.skips, strict=True):
        fused = network.blocks[str(layer)](skip, seen)
        memories[layer] = Memory(fused.tokens, fused.bias)
    ask, words = [*Words().spelled("wet"), *text, *Words().spelled(":")], Words()
    scores = []
    for name in MADE.classes:
        answer = [*words.spelled(name), words.end_id]
        logits, _ = run(language, [*ask, *answer], memories)
        told = [logits[len(ask) - 1 + i].log_softmax(0)[token] for i, token in enumerate(answer)]
        scores.append(torch.stack(told).mean())
    _, means = run(language, ask, memories)
    skips = []
    for layer, skip in zip(network.layers, pyramid.skips, strict=True):
        gamma, beta = network.films[str(layer)].project(means[layer])[0].chunk(2)
        skips.append(skip * (1 + gamma)[None, :, None, None] + beta[None, :, None, None])
    return torch.stack(scores), unet.decode(pyramid._replace(skips=skips))[0]


@torch.no_grad()
@pytest.mark.parametrize("query", ["unet", "vision"])
def test_it_is_the_plain_loop_over_cases_and_names(query: str) -> None:
    network, cases = mdf(mask="vessels", prompt="wet\n{text}:", query=query), cases_of()
    output = network(cases.inputs, cases.present)
    for row in range(3):
        text = [int(i) for i in cases.inputs["report"][row] if i] if cases.present[row, 1] else []
        scores, mask = plain(network, cases.inputs["picture"][row, 0], text)
        torch.testing.assert_close(output.logits[row], scores, **CLOSE)
        torch.testing.assert_close(output.maps["vessels"][row], mask, **CLOSE)


@pytest.mark.parametrize("freeze", [(), ("language_model",)])
@pytest.mark.parametrize("encoder", ["llama_vision", "mllama"])
def test_the_gradient_reaches_the_unet_through_the_language_model(encoder: str, freeze: tuple[str, ...]) -> None:
    network = mdf(encoder, "full", mask="vessels", freeze=freeze)
    cases = cases_of()
    step(network, cases)[1]["answer"].backward()
    grads = {name: p.grad for name, p in network.unet().net.named_parameters()}
    assert all(grad is not None and grad.any() for grad in grads.values())
    assert all(p.grad is None for p in network.unet().decoder.parameters())


@torch.no_grad()
def test_answers_leak_neither_into_film_nor_into_the_maps() -> None:
    network, cases = mdf(mask="vessels", prompt="wet\n{text}:"), cases_of()
    other = mdf(mask="vessels", prompt="wet\n{text}:", made=Problem(MADE.modalities, ("dry", "macular")))
    other.load_state_dict(network.state_dict())
    (a, b) = (n(cases.inputs, cases.present).maps for n in (network, other))
    assert a.keys() == b.keys() == {"vessels", *(f"attention/{i}" for i in network.layers)}
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, **CLOSE)


@torch.no_grad()
def test_neither_padding_nor_the_batch_changes_scores_or_masks() -> None:
    network, cases = mdf(mask="vessels"), cases_of()
    whole = network(cases.inputs, cases.present)
    longer = torch.cat([cases.inputs["report"], torch.zeros(4, 3, dtype=torch.long)], dim=1)
    for rows in (slice(0, 4), slice(1, 2), slice(3, 4)):
        part = network({"picture": cases.inputs["picture"][rows], "report": longer[rows]}, cases.present[rows])
        torch.testing.assert_close(part.logits, whole.logits[rows], **CLOSE)
        for name, value in part.maps.items():
            torch.testing.assert_close(value, whole.maps[name][rows], **CLOSE)


def test_with_masks_every_trained_parameter_gets_a_gradient() -> None:
    network = mdf(method="mor", mask="vessels")
    sum(step(network, cases_of())[1].values()).backward()
    dead = [name for name, p in trained(network) if p.grad is None or not p.grad.any()]
    assert not dead


def test_each_half_of_the_fusion_can_be_left_out() -> None:
    cases = cases_of()
    film, cross, neither = (
        mdf(mask="vessels", **off) for off in ({"cross": False}, {"film": False}, {"cross": False, "film": False})
    )
    assert (len(film.blocks), len(film.films)) == (0, 4)
    assert (len(cross.blocks), len(cross.films)) == (4, 0)
    assert not [*neither.blocks, *neither.films]
    alone = same_language_model(film, "llama_vision", "frozen")
    for network in (film, cross, neither):
        network.views.encoder("report").load_state_dict(alone.views.encoder("report").state_dict())
        sum(step(network, cases)[1].values()).backward()
    wanted = alone(cases.inputs, cases.present).logits
    for network in (film, neither):
        torch.testing.assert_close(network(cases.inputs, cases.present).logits, wanted, rtol=0, atol=1e-6)
    assert (cross(cases.inputs, cases.present).logits - wanted).abs().max() > 1e-4
