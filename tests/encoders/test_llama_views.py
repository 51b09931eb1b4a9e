"""Decoders under views: one frozen backbone for pictures and text, stems of their own, precision, the full size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import LLAMA, adaptation, perturb, trained
from torch import Tensor

from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.encoders.llama import Llama
from fusionbench.types import ModalitySpec

TEXT, PICTURE = ModalitySpec("text"), ModalitySpec("image", size=16)
NODE = (Llama, {"weights": "random", "config": {**LLAMA, "num_hidden_layers": 3}, "patch": 8})
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def views(method: str = "lora", **options: Any) -> Views:
    """Return two views of pictures and one of text under a tuning method."""
    node = (Llama, {**NODE[1], **options})
    specs = {"eye": PICTURE, "skin": ModalitySpec("image", size=24), "report": TEXT}
    return EncoderPool(specs, dict.fromkeys(specs, node), adaptation(method)).views({n: n for n in specs})


def inputs() -> dict[str, Tensor]:
    return {
        "eye": torch.randn(2, 3, 16, 16),
        "skin": torch.randn(2, 3, 24, 24),
        "report": torch.randint(1, 100, (2, 7)),
    }


@pytest.mark.parametrize(
    ("method", "family"), [("frozen", "llama"), ("lora", "llama"), ("bitfit", "qwen2"), ("rlrr", "llama")]
)  # of the families, Qwen 2 has biases
def test_pictures_and_text_share_one_backbone_and_each_picture_has_a_stem(method: str, family: str) -> None:
    made, given = perturb(views(method, config={**NODE[1]["config"], "model_type": family})), inputs()
    assert len(made.backbones) == 1
    encoder = made.encoder("eye")
    assert encoder.sequence is None
    tokens = made.embed(given)
    assert {name: t.values.shape[1] for name, t in tokens.items()} == {"eye": 4, "skin": 9, "report": 7}
    stems: Any = encoder.stem.each
    torch.testing.assert_close(tokens["skin"].values, stems[1](given["skin"]))
    assert {k for k in made.adapter("report") if k.startswith("stem")} == set()
    assert {k for k in made.adapter("eye") if k.startswith("stem")} == {f"stem.{k}" for k in stems[0].state_dict()}
    sum(v.square().sum() for v in made.pool(made.encode(tokens)).values()).backward()
    assert all(p.grad is not None for p in stems.parameters())
    assert not any(p.requires_grad for p in encoder.net.embed_tokens.parameters())


def test_pictures_of_one_size_go_through_in_one_pass_with_their_own_stems() -> None:
    specs = {"eye": PICTURE, "skin": PICTURE}
    made = perturb(EncoderPool(specs, dict.fromkeys(specs, NODE), adaptation("lora")).views({n: n for n in specs}))
    assert made.encoder("eye").sequence == 4
    given = dict.fromkeys(specs, torch.randn(2, 3, 16, 16))
    both = made.pool(made.encode(made.embed(given)))
    for name in specs:
        alone = made.pool(made.encode(made.embed({name: given[name]})))[name]
        torch.testing.assert_close(both[name], alone, **CLOSE)
    assert (both["eye"] - both["skin"]).abs().max() > 1e-3


def test_a_frozen_random_base_does_not_depend_on_the_order_of_modalities() -> None:
    names = ("eye", "skin", "report")
    specs = dict(zip(names, (PICTURE, PICTURE, TEXT), strict=True))
    bases = []
    for order in (names, names[::-1], ("eye", "report", "skin"), ("report",)):
        pool = EncoderPool({n: specs[n] for n in order}, dict.fromkeys(order, NODE), adaptation("lora"))
        encoder = pool.views({n: n for n in order}).encoder("report")
        bases.append({n: p for n, p in encoder.named_parameters() if not p.requires_grad})
    for base in bases[1:]:
        assert base.keys() == bases[0].keys()
        assert all(torch.equal(value, bases[0][name]) for name, value in base.items())


@pytest.mark.parametrize("method", ["lora", "mor", "full", "vpt"])
@pytest.mark.parametrize("how", ["plain", "mixed", "true"])
def test_bfloat16_holds_what_is_frozen_and_trains_in_float32(method: str, how: str) -> None:
    made, given = perturb(views(method, dtype="bfloat16")), inputs()
    kinds = {(p.requires_grad, p.dtype) for name, p in made.named_parameters() if not name.endswith("net.norm.weight")}
    assert kinds == {(True, torch.float32)} | ({(False, torch.bfloat16)} if method != "full" else set())
    if how == "true":
        made = made.bfloat16()
        given = {name: x.bfloat16() if x.is_floating_point() else x for name, x in given.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "mixed"):
        out = made.pool(made.encode(made.embed(given)))
    assert {v.dtype for v in out.values()} == {torch.bfloat16 if how == "true" else torch.float32}
    sum(v.square().sum() for v in out.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in trained(made))


def test_llama_2_7b_has_its_size_without_memory() -> None:
    config = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
    node = (Llama, {"weights": "random", "config": config, "layers": [0, 1, 2], "patch": 32})
    specs = {"xray": ModalitySpec("image", size=256), "report": TEXT}
    with torch.device("meta"):
        made = EncoderPool(specs, dict.fromkeys(specs, node), adaptation("frozen")).views({n: n for n in specs})
        whole = Llama(TEXT, weights="random", config=config)
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096  # q, k, v, o; gate, up, down; two norms
    words, norm = 32000 * 4096, 4096
    stem = (3 * 32 * 32 * 4096 + 4096) + 2 * 4096 + 64 * 4096  # convolution, LayerNorm, 8 x 8 positions
    assert sum(p.numel() for p in made.parameters()) == 3 * layer + words + norm + stem == 751_083_520
    assert sum(p.numel() for _, p in trained(made)) == stem == 12_857_344
    assert sum(p.numel() for p in whole.parameters()) == 32 * layer + words + norm == 6_738_415_616 - words
