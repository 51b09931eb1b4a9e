"""What must hold of every tuning method that puts adapter sets into a frozen base; they are found in their folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import adaptation, batch, encoder_node, images, perturb, pool, problem, strategy, trained
from torch import Tensor

from fusionbench import registry
from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.peft_lora import PeftLoRA
from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.adapt.vpt import VPT
from fusionbench.errors import UserError
from fusionbench.layers.frozen import base_checksum, trained_state

NAMES = {"primary/a": "image0", "primary/b": "image1", "auxiliary/a": "image0"}
MAKERS: dict[str, Callable[[], Adaptation]] = {
    name: lambda name=name: adaptation(name) for name in registry.names("adapt") if name not in ("full", "frozen")
} | {
    "vpt shallow": lambda: VPT(depth="shallow"),
    "peft_lora": lambda: PeftLoRA(dropout=0.0),  # two passes in training are compared
}


@pytest.fixture(params=MAKERS)
def method(request: pytest.FixtureRequest) -> Adaptation:
    """Go through the tuning methods with adapter sets."""
    return MAKERS[request.param]()


def build(method: Adaptation, kind: str = "timm_vit") -> Views:
    """Return three views, of two modalities, of one tiny encoder."""
    if kind == "hf_text":
        made = problem(("report",))
        return EncoderPool(made.modalities, {"report": encoder_node(kind)}, method).views(
            dict.fromkeys(NAMES, "report")
        )
    made = images(2)
    return EncoderPool(made.modalities, dict.fromkeys(made.modalities, encoder_node(kind)), method).views(NAMES)


def inputs(kind: str = "timm_vit") -> dict[str, Tensor]:
    """Return each view's input."""
    if kind == "hf_text":
        return {view: batch(problem(("report",)), 3).inputs["report"] for view in NAMES}
    return {view: torch.randn(2, 3, 32, 32) for view in NAMES}


def run(views: Views, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return each view's vector."""
    return views.pool(views.encode(views.embed(given)))


@pytest.mark.parametrize("kind", ["timm_vit", "hf_text"])
def test_the_start_is_the_frozen_encoder_bit_for_bit(method: Adaptation, kind: str) -> None:
    if not method.starts_as_frozen:
        pytest.skip("prompts act from the start")
    given = inputs(kind)
    fresh, frozen = run(build(method, kind), given), run(build(adaptation("frozen"), kind), given)
    assert all(torch.equal(fresh[view], frozen[view]) for view in given)


@pytest.mark.parametrize("kind", ["timm_vit", "hf_text"])
def test_a_joint_pass_equals_view_by_view_in_values_and_gradients(method: Adaptation, kind: str) -> None:
    views, given = perturb(build(method, kind)), inputs(kind)
    parameters = [p for _, p in trained(views)]
    joint = run(views, given)
    apart = {view: run(views, {view: value})[view] for view, value in given.items()}
    for view, value in apart.items():
        torch.testing.assert_close(joint[view], value, rtol=1e-5, atol=1e-5)
    a, b = (torch.autograd.grad(sum(v.square().sum() for v in x.values()), parameters) for x in (joint, apart))
    for mine, theirs in zip(a, b, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_views_that_read_one_tensor_differ_by_their_adapters(method: Adaptation) -> None:
    views = perturb(build(method))
    given = dict.fromkeys(NAMES, torch.randn(2, 3, 32, 32))
    out = run(views, given)
    assert not torch.allclose(out["primary/a"], out["primary/b"])
    for view in NAMES:
        views.load_adapter(view, views.adapter("primary/a"))
    out = run(views, given)
    torch.testing.assert_close(out["primary/a"], out["primary/b"], rtol=1e-5, atol=1e-5)


def test_what_is_trained_is_each_views_adapter_set_and_no_more(method: Adaptation) -> None:
    views = build(method)
    for _, parameter in trained(views):
        assert parameter.shape[0] == len(NAMES)
    held = sum(value.numel() for view in NAMES for value in views.adapter(view).values())
    assert held == sum(p.numel() for _, p in trained(views))


def test_a_joint_pass_trains_every_views_whole_set(method: Adaptation) -> None:
    views = perturb(build(method))
    sum(value.square().sum() for value in run(views, inputs()).values()).backward()
    for name, parameter in trained(views):
        assert all(grad.any() for grad in parameter.grad), name


def test_what_a_model_file_holds_is_the_model(method: Adaptation) -> None:
    first, second = perturb(build(method)), build(method)
    assert base_checksum(first) == base_checksum(second)
    second.load_state_dict(trained_state(first), strict=False)
    given = inputs()
    a, b = run(first, given), run(second, given)
    assert all(torch.equal(a[view], b[view]) for view in given)


def test_training_leaves_the_frozen_base_as_it_was(method: Adaptation) -> None:
    views = build(method)
    before = base_checksum(views)
    plain = build(adaptation("frozen"))
    assert sum(p.numel() for p in views.parameters() if not p.requires_grad) == sum(
        p.numel() for p in plain.parameters()
    )
    perturb(views)
    assert base_checksum(views) == before
    assert set(trained_state(views)).isdisjoint(n for n, p in views.named_parameters() if not p.requires_grad)


def test_layers_run_in_parts_as_in_one(method: Adaptation) -> None:
    views, given = perturb(build(method)), inputs()
    embedded = views.embed(given)
    parts = views.pool(views.encode(views.encode(embedded, 0, 1), 1))
    whole = views.pool(views.encode(embedded))
    assert all(torch.equal(parts[view], whole[view]) for view in given)
    assert views.encode(embedded)["primary/a"].values.shape == embedded["primary/a"].values.shape


def test_masked_tokens_that_a_strategy_appends_do_not_act_and_open_ones_do(method: Adaptation) -> None:
    views, given = perturb(build(method)), inputs()
    started = views.encode(views.embed(given), 0, 1)
    width = views.width("primary/a")

    def end(mask: bool) -> Tensor:
        extra, open_ = torch.full((2, 1, width), 2.0), torch.full((2, 1), mask)
        tokens = {view: value.append(extra, open_) for view, value in started.items()}
        return views.pool(views.encode(tokens, 1))["primary/a"]

    plain = views.pool(views.encode(started, 1))["primary/a"]
    torch.testing.assert_close(end(False), plain, rtol=1e-4, atol=1e-5)
    assert (end(True) - plain).abs().max() > 1e-4


def test_padding_of_a_text_does_not_act(method: Adaptation) -> None:
    views = perturb(build(method, "hf_text")).eval()
    text = torch.randint(1, 100, (2, 5))
    padded = torch.cat([text, torch.zeros(2, 3, dtype=torch.int64)], dim=1)
    a, b = (run(views, {"primary/a": value})["primary/a"] for value in (text, padded))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["autocast", "cast"])
def test_bfloat16_gives_nearly_the_same(method: Adaptation, how: str) -> None:
    views, given = perturb(build(method)), inputs()
    full = run(views, given)
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            half = run(views, given)
    else:
        half = run(views.to(torch.bfloat16), {view: value.bfloat16() for view, value in given.items()})
        assert all(value.dtype == torch.bfloat16 for value in half.values())
    sum(value.float().square().sum() for value in half.values()).backward()
    assert all(p.grad.isfinite().all() for _, p in trained(views))
    for view, value in half.items():
        torch.testing.assert_close(value.float(), full[view], rtol=0.1, atol=0.2)


@pytest.mark.parametrize("arguments", [{}, {"insert_layer": 1}, {"acquire_layer": 1}])
def test_early_intervention_trains_every_parameter(method: Adaptation, arguments: dict[str, int]) -> None:
    made = images(2)
    source = pool(made, "frozen")
    source.adaptation = method
    network = strategy("early_intervention", made, source, prior="image0", **arguments)
    cases = batch(made, 2)
    output = network(cases.inputs, cases.present)
    (output.logits.square().sum() + sum(b.square().sum() for b in output.branches.values())).backward()
    for name, parameter in trained(network):
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("name", sorted({*registry.names("adapt")} - {"full", "frozen", "bitfit"}))
def test_an_encoder_without_a_site_is_refused_in_a_sentence(name: str) -> None:
    for kind in ("timm_cnn", "table_mlp"):
        encoder, options = encoder_node(kind)
        spec = problem(("record" if kind == "table_mlp" else "picture",)).modalities.popitem()[1]
        with pytest.raises(UserError) as caught:
            adaptation(name).apply(encoder(spec, **options), 1)
        assert "\n" not in str(caught.value)
        assert encoder.__name__ in str(caught.value)
