"""LoRA by peft: equal to ours where both have it, several views in one pass, dropout, counts and refusals."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from tiny import perturb, trained
from torch import Tensor, nn
from tuned import CLOSE, READS, bare, inputs, vectors, views

from fusionbench.adapt.base import adapter_state, load_adapter_state
from fusionbench.adapt.late_lora import LateLoRA
from fusionbench.adapt.lora import LoRA
from fusionbench.adapt.peft_lora import PeftLoRA
from fusionbench.adapt.views import Views
from fusionbench.encoders.timm_vit import TimmViT
from fusionbench.errors import UserError
from fusionbench.layers.peft_views import PeftLinear, PeftParts
from fusionbench.layers.rank_mixture import RankMixtureLinear
from fusionbench.types import ModalitySpec


def loss(values: Tensor) -> Tensor:
    """Return a scalar; not the sum of squares, which is the same whatever enters a final norm."""
    return values.pow(3).sum()


def updates(layer: nn.Module, view: int) -> Tensor:
    """Return one view's ``B A``, without the scale."""
    if isinstance(layer, PeftLinear):
        return layer.lora_B[view].weight @ layer.lora_A[view].weight
    assert isinstance(layer, RankMixtureLinear)
    return layer.up[view] @ layer.down[view]


@pytest.mark.parametrize(
    ("name", "method", "ours"),
    [
        ("hf_text", PeftLoRA(rank=3, alpha=6, dropout=0.0, sites=("q", "fc1")), LoRA(rank=3, sites=("q", "fc1"))),
        ("timm_vit", PeftLoRA(rank=3, alpha=6, dropout=0.0, sites=("fc2",)), LoRA(rank=3, sites=("fc2",))),
    ],
)
def test_two_views_equal_our_lora(name: str, method: PeftLoRA, ours: LoRA) -> None:
    first = bare(name)
    second = copy.deepcopy(first)
    method.apply(first, 2)
    ours.apply(second, 2)
    perturb(first)
    layers = {n: m for n, m in first.named_modules() if isinstance(m, PeftLinear)}
    assert len(layers) == first.depth * len(ours.sites)
    for key, layer in layers.items():
        own = second.get_submodule(key)
        for view in range(2):
            own.down.data[view], own.up.data[view] = layer.lora_A[view].weight, layer.lora_B[view].weight
            torch.testing.assert_close(updates(layer, view), updates(own, view))
    rows = torch.cat([inputs(name), inputs(name)])
    a, b = vectors(first, rows, (0, 1)), vectors(second, rows, (0, 1))
    torch.testing.assert_close(a, b, **CLOSE)
    assert (a[:3] - a[3:]).abs().max() > 1e-4
    loss(a).backward()
    loss(b).backward()
    for key, layer in layers.items():
        own = second.get_submodule(key)
        for view in range(2):
            torch.testing.assert_close(layer.lora_A[view].weight.grad, own.down.grad[view], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer.lora_B[view].weight.grad, own.up.grad[view], rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for _, p in trained(first)) == sum(p.numel() for _, p in trained(second))


def test_any_order_and_subset_of_views_gives_what_each_gives_alone() -> None:
    encoder = bare("hf_text")
    PeftLoRA().apply(encoder, 3)
    perturb(encoder)
    rows = inputs("hf_text")
    alone = {view: vectors(encoder, rows, (view,)) for view in range(3)}
    torch.testing.assert_close(vectors(encoder, rows.repeat(2, 1), (2, 0)), torch.cat([alone[2], alone[0]]), **CLOSE)


def test_parts_of_a_fused_layer_equal_our_late_lora() -> None:
    first = bare("timm_vit")
    second = copy.deepcopy(first)
    PeftLoRA(rank=4, alpha=8, dropout=0.0).apply(first, 1)
    LateLoRA(last=first.depth).apply(second, 1)
    second.load_state_dict(perturb(first).state_dict())
    rows = inputs("timm_vit")
    assert torch.equal(vectors(first, rows), vectors(second, rows))


def forward(made: Views, rows: Tensor) -> dict[str, Tensor]:
    """Return each view's vectors of the same input."""
    return made.pool(made.encode(made.embed(dict.fromkeys(made.address, rows))))


def test_dropout_acts_in_training_alone() -> None:
    made, rows = views("hf_text", PeftLoRA(dropout=0.5)), inputs("hf_text")

    def run() -> Tensor:
        return torch.cat(list(forward(made, rows).values()))

    torch.manual_seed(0)
    first, other = run(), run()
    torch.manual_seed(0)
    assert torch.equal(run(), first)
    assert not torch.equal(first, other)
    made.eval()
    assert torch.equal(run(), run())


@pytest.mark.parametrize(("name", "kind"), [("hf_text", PeftLinear), ("timm_vit", PeftParts)])
def test_dropout_scales_what_it_keeps(name: str, kind: type[PeftLinear | PeftParts]) -> None:
    encoder = bare(name)
    PeftLoRA(dropout=0.5, alpha=1).apply(encoder, 1)
    layer = next(m for m in perturb(encoder).modules() if isinstance(m, kind))
    rows = torch.randn(1, 1, layer.base.in_features).expand(1, 20_000, -1)
    plain = layer(rows)[0, 0]
    layer.training = True
    dropped = layer(rows)[0]
    torch.testing.assert_close(
        dropped.mean(dim=0), plain, rtol=0, atol=6 * dropped.std(dim=0).max().item() / 20_000**0.5
    )
    assert dropped.std(dim=0).max() > 1e-3


@pytest.mark.parametrize("name", READS)
def test_checkpointing_changes_nothing(name: str) -> None:
    made, rows = views(name, PeftLoRA(dropout=0.3)), inputs(name)
    encoder, grads = made.encoder("primary/x"), []
    for encoder.checkpointing in (False, True):
        made.zero_grad()
        torch.manual_seed(2)
        loss(torch.cat(list(forward(made, rows).values()))).backward()
        grads.append([p.grad for _, p in trained(made)])
    assert grads[0]
    assert all(gradient.abs().max() > 1e-3 for gradient in grads[0])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", READS)
def test_adapters_beside_a_base_of_half_precision_are_float32(name: str) -> None:
    encoder = bare(name).to(torch.bfloat16)
    PeftLoRA().apply(encoder, 2)
    perturb(encoder)
    rows = inputs(name)
    out = vectors(encoder, rows if rows.dtype == torch.int64 else rows.bfloat16())
    assert out.dtype == torch.bfloat16
    loss(out.float()).backward()
    assert {p.dtype for _, p in trained(encoder)} == {torch.float32}
    assert {p.dtype for p in encoder.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_one_view_s_state_goes_into_another() -> None:
    encoder = bare("hf_text")
    PeftLoRA().apply(encoder, 2)
    perturb(encoder)
    state = adapter_state(encoder, 0)
    assert {key.split("lora_")[-1] for key in state} == {"A.weight", "B.weight"}
    load_adapter_state(encoder, 1, state)
    rows = inputs("hf_text")
    assert torch.equal(vectors(encoder, rows, (0,)), vectors(encoder, rows, (1,)))


@pytest.mark.parametrize("sites", [("q",), ("q", "v"), ("q", "k", "v", "proj")])
def test_a_total_rank_keeps_the_count_equal_where_layers_are_square(sites: tuple[str, ...]) -> None:
    encoder = bare("hf_text")
    PeftLoRA(total_rank=8, sites=sites).apply(encoder, 1)
    assert sum(p.numel() for _, p in trained(encoder)) == encoder.depth * 8 * 2 * encoder.width


def test_the_count_on_a_vit_b_is_the_published_one() -> None:
    with torch.device("meta"):
        encoder = TimmViT(ModalitySpec("image", size=224), model="vit_base_patch16_clip_224.openai", weights="random")
        PeftLoRA(rank=4, sites=("fc1", "fc2")).apply(encoder, 1)
    assert sum(p.numel() for _, p in trained(encoder)) == 12 * 2 * 4 * (768 + 3072) == 368_640


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "'adapt.rank' must be at least 1, not 0"),
        ({"total_rank": 0}, "'adapt.total_rank' must be at least 1, not 0"),
        ({"total_rank": 5}, "'adapt.total_rank' 5 can't be shared equally by 2 sites; give a multiple of 2"),
        ({"alpha": 0}, "'adapt.alpha' must be above 0, not 0"),
        ({"dropout": 1.0}, "'adapt.dropout' must be at least 0 and below 1, not 1.0"),
        ({"sites": []}, "'adapt.sites' must name one or more layers, each once"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        PeftLoRA(**options)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("name", "sites", "said"),
    [
        ("hf_text", ("qkv",), "HFText has no linear layers 'qkv' to adapt; possible are: fc1, fc2, k, proj, q, v"),
        ("timm_vit", ("q", "qkv"), "'adapt.sites' names qkv and, within it, q; give either"),
    ],
)
def test_sites_that_are_not_there_are_refused(name: str, sites: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as caught:
        PeftLoRA(sites=sites).apply(bare(name), 1)
    assert str(caught.value) == said


def test_it_is_shown_without_torch_or_peft() -> None:
    code = (
        "import sys; from fusionbench import registry; c = registry.describe('adapt', 'peft_lora');"
        "assert c.options['total_rank'].default is None; assert not {'torch', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
