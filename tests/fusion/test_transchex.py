"""TransCheX against a plain loop, what reads what, and its parameters at BERT-base size."""

from __future__ import annotations

import pytest
import torch
from plain_blocks import attend, norm, own_tokens
from plain_vectors import trainable
from tiny import batch, encoder_node, perturb, pool, problem, strategy
from torch import Tensor

from fusionbench.adapt.full import Full
from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.hf_patches import HFPatches
from fusionbench.encoders.hf_text import HFText
from fusionbench.errors import UserError
from fusionbench.fusion.transchex import TransCheX
from fusionbench.layers.mixed_block import CrossReading, MixedBlock
from fusionbench.types import ModalitySpec, Problem

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PRESENT = torch.tensor([[True, False, True], [True, True, True], [False, True, False], [True, True, False]])
BASE = {"model_type": "bert"}  # transformers' defaults are BERT-base, uncased


def reading(layer: CrossReading, x_ND: Tensor, y_TD: Tensor) -> Tensor:
    """Return LN(x + A(x, y)) of one case; where there is nothing to read, LN(x)."""
    read = attend(x_ND, y_TD, layer.attention, [True] * len(y_TD)) if len(y_TD) else torch.zeros_like(x_ND)
    return torch.stack([norm(x + r, layer.norm) for x, r in zip(x_ND, read, strict=True)])


def plain(network: TransCheX, inputs: dict[str, Tensor], here: list[str]) -> Tensor:
    """Return one case's logits (K,), of its own tokens alone."""
    width = network.pooler.in_features
    text = own_tokens(network, "report", inputs["report"]) if "report" in here else torch.zeros(0, width)
    parts = [torch.zeros(0, width)]
    for name in (n for n in here if n != "report"):
        parts.append(network.projections[name](own_tokens(network, name, inputs[name])))
    language, vision = text if len(text) else torch.zeros(1, width), torch.cat(parts)
    for block in network.mixed:
        before = language
        language = reading(block.language, language, vision)
        if block.vision is not None and len(vision):
            vision = reading(block.vision, vision, before if len(text) else before[:0])
    pooled = torch.tanh(network.pooler.weight @ language[0] + network.pooler.bias)
    return network.head.weight @ pooled + network.head.bias


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_is_what_the_equations_say(layers: int) -> None:
    made = problem(("picture", "report", "scan"))
    network = strategy("transchex", made, layers=layers, heads=2).eval()
    cases = batch(made, present=PRESENT)
    logits = network(cases.inputs, cases.present).logits
    for row in range(len(PRESENT)):
        here = [n for i, n in enumerate(network.names) if PRESENT[row, i]]
        wanted = plain(network, {n: v[row] for n, v in cases.inputs.items()}, here)
        torch.testing.assert_close(logits[row], wanted, **CLOSE)


def test_a_longer_pad_changes_nothing() -> None:
    made = problem(("picture", "report"))
    network = strategy("transchex", made).eval()
    cases = batch(made, 3)
    longer = {**cases.inputs, "report": torch.nn.functional.pad(cases.inputs["report"], (0, 5))}
    before, after = (network(inputs, cases.present).logits for inputs in (cases.inputs, longer))
    torch.testing.assert_close(before, after, **CLOSE)


def test_both_directions_read_the_state_before_the_layer() -> None:
    block = perturb(MixedBlock(8, 2)).eval()
    language, vision = torch.randn(1, 3, 8), torch.randn(1, 4, 8)
    masks = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    out, seen = block(language, vision, *masks)
    torch.testing.assert_close(out[0], reading(block.language, language[0], vision[0]), **CLOSE)
    torch.testing.assert_close(seen[0], reading(block.vision, vision[0], language[0]), **CLOSE)


def test_what_is_masked_is_not_read_and_nothing_to_read_adds_nothing() -> None:
    layer = perturb(CrossReading(8, 2)).eval()
    values, context = torch.randn(2, 3, 8), torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    out = layer(values, context, mask)
    torch.testing.assert_close(out[0], reading(layer, values[0], context[0, mask[0]]), **CLOSE)
    torch.testing.assert_close(out[1], reading(layer, values[1], context[1, :0]), **CLOSE)
    out.square().sum().backward()
    assert context.grad.isfinite().all()
    assert not context.grad[~mask].any()


def test_the_picture_reaches_the_first_word_and_the_words_reach_the_picture() -> None:
    made = problem(("picture", "report"))
    network = strategy("transchex", made).eval()
    cases = batch(made, 1)
    seen = []
    network.mixed[0].register_forward_hook(lambda _, given, out: seen.append(out))
    for changed in ("picture", "report"):
        other = torch.randn_like(cases.inputs["picture"]) if changed == "picture" else cases.inputs["report"].flip(1)
        seen.clear()
        for value in (cases.inputs[changed], other):
            network({**cases.inputs, changed: value}, cases.present)
        assert not torch.allclose(seen[0][0][:, 0], seen[1][0][:, 0], atol=1e-5)
        assert not torch.allclose(seen[0][1], seen[1][1], atol=1e-5)


def test_a_wider_picture_encoder_is_projected() -> None:
    made = problem(("picture", "report"))
    network = strategy("transchex", made)
    assert network.projections["picture"].weight.shape == (32, 64)
    same = strategy("transchex", made, pool(made, readers={"image": "hf_patches"}))
    assert isinstance(same.projections["picture"], torch.nn.Identity)


@pytest.mark.parametrize(
    ("modalities", "said"),
    [
        ({"a": "image", "b": "image"}, "a (image), b (image)"),
        ({"a": "text", "b": "text"}, "a (text), b (text)"),
        ({"a": "text", "b": "text", "c": "image"}, "a (text), b (text), c (image)"),
    ],
)
def test_other_modalities_than_one_text_beside_pictures_are_refused(modalities: dict[str, str], said: str) -> None:
    made = Problem({name: ModalitySpec(kind, size=32) for name, kind in modalities.items()}, ("x", "y"))
    with pytest.raises(UserError) as caught:
        strategy("transchex", made, pool(made))
    wanted = "fusion 'transchex' takes exactly one text beside one or more pictures, not "
    assert str(caught.value) == f"{wanted}{said}: choose by data.modalities"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": 0}, "'fusion.layers' must be at least 1, not 0"),
        ({"heads": 0}, "'fusion.heads' must divide the tokens' width 32, but 0 does not"),
        ({"dropout": 1.0}, "'fusion.dropout' must be at least 0 and below 1, not 1.0"),
    ],
)
def test_a_value_out_of_range_is_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        strategy("transchex", problem(("picture", "report")), **options)
    assert str(caught.value) == said


def test_heads_are_of_64_channels_where_that_can_be() -> None:
    def heads(width: int) -> int:
        kind, options = encoder_node("hf_text")
        text = (kind, {**options, "config": {**options["config"], "hidden_size": width}})
        made = problem(("picture", "report"))
        encoders = {"picture": encoder_node("timm_vit"), "report": text}
        network = TransCheX(made, EncoderPool(made.modalities, encoders, Full()))
        return network.mixed[0].language.attention.num_heads

    assert [heads(width) for width in (32, 128)] == [1, 2]


def test_parameters_at_bert_base_size() -> None:
    """Embeddings, 2 + 2 BERT layers, stem, three cross readings, pooler and head."""
    d, made = (
        768,
        Problem({"xray": ModalitySpec("image", size=256), "report": ModalitySpec("text")}, tuple("abcdefghijklmn")),
    )
    nodes = {
        "xray": (HFPatches, {"weights": "random", "config": BASE}),
        "report": (HFText, {"weights": "random", "config": BASE, "layers": 2}),
    }
    with torch.device("meta"):
        network = TransCheX(made, EncoderPool(made.modalities, nodes, Full()))
    embeddings = (30_522 + 512 + 2) * d + 2 * d
    layer = 4 * (d**2 + d) + 2 * 4 * d**2 + 4 * d + d + 2 * 2 * d
    stem = 3 * 32**2 * d + d + 2 * d + 64 * d
    cross = 4 * (d**2 + d) + 2 * d
    pooler, head = d**2 + d, 14 * d + 14
    total = embeddings + 4 * layer + stem + 3 * cross + pooler + head
    assert trainable(network) == total == 62_292_494
    for number in (embeddings, layer, stem, cross, pooler, head, total):
        assert f"{number:,}" in TransCheX.__doc__
