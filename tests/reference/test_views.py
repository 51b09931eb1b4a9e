"""Views of one frozen backbone: a joint pass, separate passes and separate copies give the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import encoder_node, images, perturb, pool, problem
from torch import Tensor

from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.encoders.timm_vit import TimmViT
from fusionbench.errors import UserError

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
NAMES = {"primary/image0": "image0", "primary/image1": "image1", "auxiliary/image0": "image0"}


def run(views: Views, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return each view's vector."""
    return views.pool(views.encode(views.embed(inputs)))


def adapted(method: str = "mor", modalities: dict[str, str] | None = None) -> Views:
    """Return views on two image modalities whose adapters do something."""
    return perturb(pool(images(2), method).views(modalities or NAMES))


def pictures(names: dict[str, str], size: int = 32) -> dict[str, Tensor]:
    """Return random pictures for each view."""
    return {view: torch.randn(2, 3, size, size) for view in names}


@pytest.mark.parametrize("method", ["mor", "lora", "lora_moe", "frozen", "full"])
def test_a_joint_pass_equals_view_by_view(method: str) -> None:
    views = adapted(method)
    inputs = pictures(NAMES)
    joint = run(views, inputs)
    for view, value in inputs.items():
        torch.testing.assert_close(joint[view], run(views, {view: value})[view], **CLOSE)


def test_gradients_of_a_joint_pass_equal_view_by_view() -> None:
    views = adapted()
    inputs = pictures(NAMES)
    parameters = [p for p in views.parameters() if p.requires_grad]
    together = sum(v.square().sum() for v in run(views, inputs).values())
    apart = sum(run(views, {view: value})[view].square().sum() for view, value in inputs.items())
    for a, b in zip(torch.autograd.grad(together, parameters), torch.autograd.grad(apart, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_views_of_other_sizes_go_alone() -> None:
    views = adapted()
    inputs = pictures(NAMES) | {"primary/image1": torch.randn(2, 3, 48, 64)}
    joint = run(views, inputs)
    for view, value in inputs.items():
        torch.testing.assert_close(joint[view], run(views, {view: value})[view], **CLOSE)


def test_order_of_the_views_does_not_matter() -> None:
    views = adapted()
    inputs = pictures(NAMES)
    turned = dict(reversed(inputs.items()))
    a, b = run(views, inputs), run(views, turned)
    assert all(torch.equal(a[view], b[view]) for view in NAMES)


def test_views_differ_by_their_adapters_alone() -> None:
    views = adapted()
    one = torch.randn(2, 3, 32, 32)
    out = run(views, dict.fromkeys(NAMES, one))
    assert not torch.allclose(out["primary/image0"], out["primary/image1"])
    for view in NAMES:
        views.load_adapter(view, views.adapter("primary/image0"))
    out = run(views, dict.fromkeys(NAMES, one))
    torch.testing.assert_close(out["primary/image0"], out["primary/image1"], **CLOSE)


@pytest.mark.parametrize("method", ["frozen", "mor", "lora", "lora_moe"])
def test_fresh_shared_views_equal_copies_of_the_backbone(method: str, tmp_path: Path) -> None:
    made = images(2)
    spec = made.modalities["image0"]
    start = TimmViT(spec, model="test_vit", weights="random")
    torch.save(next(start.children()).state_dict(), tmp_path / "vit.pth")
    node = (TimmViT, {"model": "test_vit", "weights": str(tmp_path / "vit.pth")})
    nodes = dict.fromkeys(made.modalities, node)
    shared, copies = (
        EncoderPool(made.modalities, nodes, pool(made, how).adaptation).views(NAMES).eval() for how in (method, "full")
    )
    assert (len(shared.backbones), len(copies.backbones)) == (1, 3)
    inputs = pictures(NAMES)
    a, b = run(shared, inputs), run(copies, inputs)
    for view in NAMES:
        torch.testing.assert_close(a[view], b[view], **CLOSE)


def test_adapters_round_trip_through_safetensors(tmp_path: Path) -> None:
    views, others = adapted(), adapted()
    others.backbones.load_state_dict(
        {k: v for k, v in views.backbones.state_dict().items() if not k.endswith(("down", "up", "weight_", "bias_"))},
        strict=False,
    )
    perturb(others)
    paths = views.save_adapters(tmp_path)
    assert len(paths) == len(NAMES)
    inputs = pictures(NAMES)
    assert not torch.allclose(run(views, inputs)["primary/image0"], run(others, inputs)["primary/image0"])
    for view in NAMES:
        path = next(p for p in paths if p.stem == view.replace("/", "_"))
        others.load_adapter(view, load_file(path))
    a, b = run(views, inputs), run(others, inputs)
    assert all(torch.equal(a[view], b[view]) for view in NAMES)


def test_an_adapter_of_another_kind_is_refused_in_a_sentence() -> None:
    views, others = adapted(), adapted("lora")
    with pytest.raises(UserError, match="does not fit"):
        views.load_adapter("primary/image0", others.adapter("primary/image0"))


@pytest.mark.parametrize("kind", ["timm_cnn", "hf_text"])
def test_a_frozen_backbone_is_in_evaluation_mode_from_the_start(kind: str) -> None:
    """Lightning keeps the modes that it finds: else running statistics would move and dropout would act."""
    node = encoder_node(kind)
    name = "report" if kind == "hf_text" else "picture"
    made = problem((name,))
    views = EncoderPool(made.modalities, {name: node}, pool(made, "frozen").adaptation).views({name: name})
    assert not any(module.training for module in views.encoder(name).modules())
    views.train()
    assert not any(module.training for module in views.encoder(name).modules())


def test_a_trained_backbone_follows_the_mode() -> None:
    made = problem(("report",))
    views = pool(made, "full").views({"report": "report"})
    assert all(module.training for module in views.encoder("report").modules())
    assert not any(module.training for module in views.eval().modules())


def test_encoders_without_pretrained_weights_are_trained_whatever_the_method() -> None:
    made = problem(("picture", "record"))
    views = pool(made, "frozen").views({"picture": "picture", "record": "record"})
    assert all(p.requires_grad for p in views.encoder("record").parameters())
    assert not any(p.requires_grad for p in views.encoder("picture").parameters())


def test_checkpointing_with_several_views_gives_equal_gradients() -> None:
    node = {"model": "test_vit", "weights": "random"}
    made = images(2)
    grads = []
    plain = None
    inputs = pictures(NAMES)
    for checkpointing in (False, True):
        nodes = dict.fromkeys(made.modalities, (TimmViT, {**node, "checkpointing": checkpointing}))
        views = EncoderPool(made.modalities, nodes, pool(made).adaptation).views(NAMES)
        views = perturb(views) if plain is None else views
        key = next(iter(views.backbones))
        if plain is not None:
            views.backbones[key].load_state_dict(plain)
        plain = views.backbones[key].state_dict()
        views.backbones[key].train()
        sum(v.square().sum() for v in run(views, inputs).values()).backward()
        grads.append({name: p.grad for name, p in views.backbones[key].named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}")


def test_checkpointing_acts_on_a_frozen_backbone_in_training() -> None:
    """A frozen backbone stays in evaluation mode, yet its adapters' activations are what fills the memory."""
    made = images(1)
    node = (TimmViT, {"model": "test_vit", "weights": "random", "checkpointing": True})
    views = EncoderPool(made.modalities, {"image0": node}, pool(made).adaptation).views({"image0": "image0"}).train()
    calls = 0
    layer = views.encoder("image0").layer

    def count(*args: object) -> Tensor:
        nonlocal calls
        calls += 1
        return layer(*args)

    views.encoder("image0").layer = count
    run(views, {"image0": torch.randn(1, 3, 32, 32)})["image0"].sum().backward()
    assert calls == 2 * views.depth("image0")
