"""MMRAD against a plain loop: prompts, blocks in sequence, and a modality without others."""

from __future__ import annotations

import pytest
import torch
from plain_blocks import attend, final_norm, norm, pooled
from plain_vectors import EI_DATASETS, MOR, trainable, vit_base
from tiny import batch, images, problem, strategy
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.encoders.base import Tokens
from fusionbench.errors import UserError
from fusionbench.fusion.mmrad import MMRAD

SMALL = {"prompts": 3, "prompt_hidden": 5, "heads": 2, "ratio": 0.5}
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
PRESENT = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)  # the second text is padded


def net(x_ND: Tensor, layers: nn.Sequential) -> Tensor:
    """Run LayerNorm → Linear → GELU → Linear on every token."""
    first, up, _, down = layers
    hidden = F.gelu(torch.stack([norm(x, first) for x in x_ND]) @ up.weight.T + up.bias)
    return hidden @ down.weight.T + down.bias


def prompted(network: MMRAD, name: str, value: Tensor) -> Tensor:
    """Return one case's tokens, encoded beside their prompts, normed and projected."""
    encoder, index = network.views.encoder(name), network.views.address[name][1]
    out = []
    for row in value if network.problem.modalities[name].is_image else value[None]:
        embedded = encoder.embed(row[None])
        own = embedded.values[0] if embedded.mask is None else embedded.values[0][embedded.mask[0]]
        both = torch.cat([own, net(pooled(own, network.prompts), network.prompt_nets[name])])[None]
        encoded = encoder.encode(Tokens(both), views=(index,)).values[0]
        out.append(final_norm(encoder, encoded[: len(own)]))
    return network.projections[name](torch.cat(out))


def plain(network: MMRAD, inputs: dict[str, Tensor], here: list[str]) -> Tensor:
    """Return one case's logits (K,)."""
    tokens = {n: prompted(network, n, inputs[n]) for n in here}
    for name in here:
        block, others = network.blocks[name], [tokens[n] for n in here if n != name]
        if others:
            query = torch.stack([norm(x, block.norm_query) for x in tokens[name]])
            context = torch.stack([norm(y, block.norm_context) for y in torch.cat(others)])
            tokens[name] = tokens[name] + attend(query, context, block.attention, [True] * len(context))
        tokens[name] = tokens[name] + net(tokens[name], block.feed_forward)
    width = network.head.in_features // len(network.names)
    features = [tokens[n].mean(0) if n in here else torch.zeros(width) for n in network.names]
    return network.head.weight @ torch.cat(features) + network.head.bias


def test_it_is_what_the_docstring_says() -> None:
    made = problem(("picture", "report", "record"))
    network = strategy("mmrad", made, **SMALL).eval()
    cases = batch(made, present=PRESENT)
    logits = network(cases.inputs, cases.present).logits
    for row in range(4):
        here = [n for i, n in enumerate(network.names) if PRESENT[row, i]]
        wanted = plain(network, {n: v[row] for n, v in cases.inputs.items()}, here)
        torch.testing.assert_close(logits[row], wanted, **CLOSE)


def test_the_slices_of_a_scan_are_read_one_behind_the_other() -> None:
    made = problem(("picture", "scan"))
    network = strategy("mmrad", made, **SMALL).eval()
    cases = batch(made, 2)
    wanted = plain(network, {n: v[1] for n, v in cases.inputs.items()}, ["picture", "scan"])
    torch.testing.assert_close(network(cases.inputs, cases.present).logits[1], wanted, **CLOSE)


def test_complete_cases_need_no_mask() -> None:
    made = images(2)
    network = strategy("mmrad", made, **SMALL).eval()
    cases = batch(made, 2)
    masked = network(cases.inputs, cases.present).logits
    object.__setattr__(made, "complete", True)
    torch.testing.assert_close(network(cases.inputs, cases.present).logits, masked, **CLOSE)


def test_two_modalities_have_two_blocks_and_the_second_reads_what_the_first_wrote() -> None:
    network = strategy("mmrad", images(2), **SMALL)
    assert list(network.blocks) == ["image0", "image1"]
    heard: dict[str, Tensor] = {}
    for name, block in network.blocks.items():
        block.register_forward_hook(lambda _, args, out, n=name: heard.update({f"{n}/in": args[1], f"{n}/out": out}))
    cases = batch(images(2), 2)
    network(cases.inputs, cases.present)
    assert torch.equal(heard["image1/in"], heard["image0/out"])


def test_parameters_are_within_two_percent_of_the_published_ones() -> None:
    """A block has 6 d² + 12 d, a prompt net 512 d + 256 + 3 d, the head 4 classes on two modalities."""
    d = 768
    assert trainable(vit_base("mmrad", 2, 4, "frozen")) == 2 * (6 * d**2 + 12 * d + 515 * d + 256) + 8 * d + 4
    assert trainable(vit_base("mmrad", 2, 4)) == 7_894_020 + 2 * MOR
    for method, published in {"frozen": 9.3e6, "mor": 12.5e6}.items():
        counts = [trainable(vit_base("mmrad", m, k, method)) for m, k, _ in EI_DATASETS]
        assert sum(counts) / len(counts) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompts": 0}, "'fusion.prompts' must be at least 1, not 0"),
        ({"prompt_hidden": 0}, "'fusion.prompt_hidden' must be at least 1, not 0"),
        ({"ratio": 0.0}, "'fusion.ratio' must be above 0, not 0.0"),
        ({"heads": 7}, "'fusion.heads' must divide the tokens' width 64, but 7 does not"),
    ],
)
def test_a_value_out_of_range_is_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        strategy("mmrad", images(2), **options)
    assert str(caught.value) == said
