"""Each tuning method's layer against its equation, one row and one token at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny import SPECS, perturb
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.adapt.losa import LoSA
from fusionbench.adapt.vpt import VPT
from fusionbench.encoders.timm_vit import TimmViT
from fusionbench.layers.ladder import LowRankMixer
from fusionbench.layers.low_rank_parts import LowRankParts
from fusionbench.layers.output_affine import OutputAffine, OutputShift
from fusionbench.layers.per_view import PerView, ViewSelector
from fusionbench.layers.rescaled import RescaledLinear

D, VIEWS = 6, 3
PASSES = [(0,), (2,), (0, 1, 2), (2, 0)]


def check(layer: PerView, views: Sequence[int], rows: Tensor, got: Tensor, wanted: Tensor) -> None:
    """Compare values and gradients."""
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    inputs = [rows, *(p for p in layer.parameters() if p.requires_grad)]
    upstream = torch.randn_like(got)
    a, b = (torch.autograd.grad(x, inputs, upstream, allow_unused=True) for x in (got, wanted))
    for mine, theirs in zip(a, b, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def each_row(views: Sequence[int], rows: Tensor) -> list[tuple[int, Tensor]]:
    """Return view and row, the rows of one view after those of another."""
    return [(view, row) for view, part in zip(views, rows.chunk(len(views)), strict=True) for row in part]


@pytest.mark.parametrize("views", PASSES)
def test_low_rank_parts_change_queries_and_values_alone(views: tuple[int, ...]) -> None:
    layer = perturb(LowRankParts(nn.Linear(D, 3 * D), VIEWS, ViewSelector(), parts=(0, 2), of=3, rank=2, scale=0.5))
    rows = torch.randn(2 * len(views), 3, D, requires_grad=True)

    def token(view: int, h: Tensor) -> Tensor:
        q, k, v = (layer.base.weight @ h + layer.base.bias).chunk(3)
        q = q + 0.5 * layer.up[view, 0] @ (layer.down[view, :2] @ h)
        v = v + 0.5 * layer.up[view, 1] @ (layer.down[view, 2:] @ h)
        return torch.cat([q, k, v])

    with layer.selector.select(views):
        got = layer(rows)
    wanted = torch.stack([torch.stack([token(view, h) for h in row]) for view, row in each_row(views, rows)])
    check(layer, views, rows, got, wanted)


@pytest.mark.parametrize("views", PASSES)
@pytest.mark.parametrize("parts", [1, 3])
def test_rescaling_forms_w_plus_w_times_r_c(views: tuple[int, ...], parts: int) -> None:
    layer = perturb(RescaledLinear(nn.Linear(D, 3 * D), VIEWS, ViewSelector(), parts))
    rows = torch.randn(2 * len(views), 3, D, requires_grad=True)

    def weight(view: int) -> Tensor:
        height = 3 * D // parts
        lines = [w * (1 + layer.row[view, i] * layer.col[view, i // height]) for i, w in enumerate(layer.base.weight)]
        return torch.stack(lines)

    with layer.selector.select(views):
        got = layer(rows)
    wanted = [row @ weight(view).T + layer.base.bias + layer.shift[view] for view, row in each_row(views, rows)]
    check(layer, views, rows, got, torch.stack(wanted))


@pytest.mark.parametrize("views", PASSES)
@pytest.mark.parametrize("kind", [OutputShift, OutputAffine])
@pytest.mark.parametrize("base", [nn.Linear(D, D), nn.LayerNorm(D), nn.Conv2d(D, D, 1), nn.BatchNorm2d(D).eval()])
def test_each_view_has_its_bias_and_gain(base: nn.Module, kind: type[OutputShift], views: tuple[int, ...]) -> None:
    layer = perturb(kind(base, VIEWS, ViewSelector()))
    is_map = isinstance(base, nn.Conv2d | nn.BatchNorm2d)
    rows = torch.randn(2 * len(views), *((D, 3, 4) if is_map else (5, D)), requires_grad=True)

    def row(view: int, value: Tensor) -> Tensor:
        out = base(value[None])[0]
        shape = (D, 1, 1) if is_map else (D,)
        gain = layer.gain[view].reshape(shape) if kind is OutputAffine else 1
        return out * gain + layer.shift[view].reshape(shape)

    with layer.selector.select(views):
        got = layer(rows)
    check(layer, views, rows, got, torch.stack([row(view, value) for view, value in each_row(views, rows)]))


def vit(method: VPT | LoSA, checkpointing: bool = False) -> TimmViT:
    """Return a tiny ViT with two adapter sets."""
    encoder = TimmViT(SPECS["picture"], model="test_vit", weights="random", checkpointing=checkpointing).eval()
    method.apply(encoder, 2)
    return perturb(encoder)


def test_deep_prompts_are_replaced_in_every_layer() -> None:
    encoder = vit(VPT(prompts=3))
    tokens = encoder.embed(torch.randn(4, 3, 32, 32))
    got = encoder.encode(tokens, views=(1, 0)).values
    for row, view in enumerate([1, 1, 0, 0]):
        x = tokens.values[row : row + 1]
        for index, block in enumerate(encoder.net.blocks):
            x = block(torch.cat([x[:, :1], encoder.around.prompts[view, index][None], x[:, 1:]], dim=1))
            x = torch.cat([x[:, :1], x[:, 4:]], dim=1)
        torch.testing.assert_close(got[row : row + 1], x, rtol=1e-5, atol=1e-5)


def test_shallow_prompts_go_through_all_layers() -> None:
    encoder = vit(VPT(prompts=3, depth="shallow"))
    tokens = encoder.embed(torch.randn(2, 3, 32, 32))
    got = encoder.encode(encoder.encode(tokens, 0, 2, views=(0, 1)), 2, views=(0, 1)).values
    for view in (0, 1):
        x = tokens.values[view : view + 1]
        x = torch.cat([x[:, :1], encoder.around.prompts[view, 0][None], x[:, 1:]], dim=1)
        for block in encoder.net.blocks:
            x = block(x)
        torch.testing.assert_close(got[view : view + 1], torch.cat([x[:, :1], x[:, 4:]], 1), rtol=1e-5, atol=1e-5)


def plain_mixer(layer: LowRankMixer, view: int, x: Tensor, own: list[int]) -> Tensor:
    """Return g(x) of one row x (N, D): channels, then the tokens in ``own``, their weights read by interpolation."""
    part = {name: value[view] for name, value in layer.named_parameters()}

    def norm(values: Tensor, mixing: str) -> Tensor:
        lines = [(v - v.mean()) / (v.var(unbiased=False) + 1e-6).sqrt() for v in values]
        return torch.stack(lines) * part[f"{mixing}_gain"] + part[f"{mixing}_offset"]

    def read(table: Tensor, place: int) -> Tensor:
        position = place * (layer.tokens - 1) / max(len(own) - 1, 1)
        low = int(position)
        high = min(low + 1, layer.tokens - 1)
        return table[low] + (position - low) * (table[high] - table[low])

    middle = [F.gelu(part["channel_down"] @ v + part["channel_down_bias"]) for v in norm(x, "channel")]
    channel = torch.stack([m @ part["channel_up"] + part["channel_up_bias"] for m in middle])
    normed, lines = norm(x + channel, "token"), [torch.zeros_like(v) for v in x]
    hidden = []
    for rank in range(layer.rank):
        total = sum(read(part["token_down"][rank], i) * normed[n] for i, n in enumerate(own))
        hidden.append(F.gelu(total * layer.tokens / len(own) + part["token_down_bias"][rank]))
    for i, n in enumerate(own):
        lines[n] = sum(read(part["token_up"][r], i) * hidden[r] for r in range(layer.rank))
        lines[n] = lines[n] + read(part["token_up_bias"], i)
    return channel + torch.stack(lines)


@pytest.mark.parametrize("tokens", [1, 4, 5, 9])
@pytest.mark.parametrize("views", PASSES)
def test_the_mixer_mixes_channels_and_then_own_tokens(views: tuple[int, ...], tokens: int) -> None:
    layer = perturb(LowRankMixer(VIEWS, ViewSelector(), D, tokens, rank=2))
    rows = torch.randn(2 * len(views), 5, D, requires_grad=True)
    own = torch.ones(len(rows), 5, dtype=torch.bool)
    own[0, 2:] = False
    own[1, 1] = False
    with layer.selector.select(views):
        got = layer(rows, own)
    places = [row.nonzero().flatten().tolist() for row in own]
    wanted = [plain_mixer(layer, view, x, at) for (view, x), at in zip(each_row(views, rows), places, strict=True)]
    check(layer, views, rows, got, torch.stack(wanted))


def test_the_ladder_adds_mixers_to_what_the_layers_give_and_never_enters_them() -> None:
    encoder = vit(LoSA(every=3, rank=2, tokens=5))
    tokens = encoder.embed(torch.randn(1, 3, 32, 32))
    assert not tokens.values.requires_grad
    b, y = tokens.values, torch.zeros_like(tokens.values)
    steps = iter(encoder.around.steps)
    for index, block in enumerate(encoder.net.blocks):
        b = block(b)
        if index in (2, 5):
            y = y + next(steps)(b + y, torch.ones(1, 5, dtype=torch.bool))
    got = encoder.encode(tokens)
    torch.testing.assert_close(got.values, b + y, rtol=1e-5, atol=1e-5)
    inside = encoder.encode(tokens, 2, 3)
    assert not inside.values.requires_grad, "a gradient would flow through the backbone"
    assert inside.side is not None
    assert inside.side.requires_grad


def test_the_ladder_mixes_no_tokens_that_a_strategy_appends() -> None:
    encoder = vit(LoSA(every=6, rank=2, tokens=5))
    tokens = encoder.embed(torch.randn(1, 3, 32, 32)).append(torch.randn(1, 2, encoder.width))
    b = tokens.values
    for block in encoder.net.blocks:
        b = block(b)
    wanted = b[0] + plain_mixer(encoder.around.steps[0], 0, b[0], own=[0, 1, 2, 3, 4])
    torch.testing.assert_close(encoder.encode(tokens).values[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [VPT(depth="shallow"), VPT(), LoSA()], ids=["shallow", "deep", "losa"])
def test_checkpointing_gives_equal_gradients(method: VPT | LoSA) -> None:
    plain, other = vit(method), vit(method, checkpointing=True)
    other.load_state_dict(plain.state_dict())
    pictures = torch.randn(2, 3, 32, 32)
    for encoder in (plain, other):
        encoder.encode(encoder.embed(pictures), views=(0, 1)).values.square().sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
