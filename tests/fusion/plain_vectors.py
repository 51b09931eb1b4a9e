"""What the plain loops of late-fusion strategies share: each image of a case through its encoder, one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fusionbench import registry
from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.timm_vit import TimmViT
from fusionbench.fusion.base import Strategy
from fusionbench.types import Batch, ModalitySpec, Problem

MISSING = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0]], dtype=torch.bool)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
MOR = 1_474_656  # of one ViT-B
EI_DATASETS = ((2, 4, 448), (2, 5, 512), (3, 3, 256))  # modalities, classes and size of MMC-AMD, Derm7pt, MRNet


def vectors(network: Strategy, batch: Batch, case: int, view: str) -> list[Tensor]:
    """Return the vector (D,) of each of a case's images in a view, or that of its one text or table."""
    name = view.split("/")[-1]
    value = batch.inputs[name][case]
    single = list(value) if network.problem.modalities[name].is_image else [value]
    views = network.views
    return [views.pool(views.encode(views.embed({view: one[None]})))[view][0] for one in single]


def average(values: list[Tensor]) -> Tensor:
    """Return the mean of tensors."""
    return sum(values[1:], values[0]) / len(values)


def affine(layer: nn.Module, x_D: Tensor) -> Tensor:
    """Return Wx + b."""
    return layer.weight @ x_D + layer.bias


def softmax(scores: list[Tensor | None]) -> list[Tensor]:
    """Return the softmax over what is not None, and 0 for the rest."""
    powers = [torch.zeros(()) if s is None else s.exp() for s in scores]
    return [p / sum(powers) for p in powers]


def cross_entropy(logits: list[Tensor], batch: Batch, cases: list[int]) -> Tensor:
    """Average -log p over the given cases, or binary cross-entropy over cases and classes."""
    losses = []
    for z_K, case in zip(logits, cases, strict=True):
        y = batch.target[case]
        if y.ndim == 0:
            losses.append(-torch.log(z_K[y].exp() / z_K.exp().sum()))
        else:
            p_K = 1 / (1 + (-z_K).exp())
            losses.append(-(y * p_K.log() + (1 - y) * (1 - p_K).log()).sum() / len(y))
    return average(losses)


def check_gradients(network: Strategy, got: Tensor, wanted: Tensor) -> None:
    """Compare the gradients of all that is trained."""
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    mine = torch.autograd.grad(got, list(named.values()))
    theirs = torch.autograd.grad(wanted, list(named.values()))
    for name, a, b in zip(named, mine, theirs, strict=True):
        torch.testing.assert_close(a, b, **CLOSE, msg=lambda text, n=name: f"{n}: {text}")


def vit_base(fusion: str, modalities: int, classes: int, adapt: str = "mor") -> Strategy:
    """Build a strategy on ViT-B/16 without memory (``meta``)."""
    made = Problem({f"m{i}": ModalitySpec("image") for i in range(modalities)}, tuple("abcdef"[:classes]))
    node = (TimmViT, {"model": "vit_base_patch16_224", "weights": "random"})
    with torch.device("meta"):
        pool = EncoderPool(
            made.modalities, dict.fromkeys(made.modalities, node), registry.describe("adapt", adapt).load()()
        )
        return registry.describe("fusion", fusion).load()(made, pool)


def trainable(module: nn.Module) -> int:
    """Count what is trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def clip(size: int) -> int:
    """Return the parameters of CLIP's ViT-B/16 whose positions were resampled to a picture's size, as EI has it."""
    return 85_648_128 + ((size // 16) ** 2 + 1) * 768


def dinov2(size: int) -> int:
    """Return the parameters of DINOv2's ViT-B/14 with registers, whatever the size."""
    return 86_583_552


def millions(fusion: str, encoder: Callable[[int], int], encoders_a_modality: int = 1) -> float:
    """Return the trainable parameters, the mean of the datasets to one decimal, as EI's Table 3 prints them."""
    counts = []
    for modalities, classes, size in EI_DATASETS:
        network = vit_base(fusion, modalities, classes)
        beside = trainable(network) - trainable(network.views)
        counts.append(beside + encoders_a_modality * modalities * encoder(size))
    return round(sum(counts) / len(counts) / 1e6, 1)
