"""``make bench``: what our shortcuts gain, as ratios against a stated baseline measured in the same run.

Nothing here is asserted by a test: times depend on the machine. One line each: name, baseline, ratio.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from benchmarks.integrity import first_check, second_check
from benchmarks.verdicts import bootstrap
from fusionbench.adapt.feature_table import FeatureTable, Layout, compute
from fusionbench.adapt.frozen import Frozen
from fusionbench.adapt.mor import MoR
from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.encoders.timm_vit import TimmViT
from fusionbench.layers.rank_mixture import RankMixtureLinear, ViewSelector
from fusionbench.types import ModalitySpec

NODE = {"model": "vit_small_patch14_dinov2", "weights": "random"}


def seconds(function: Callable[[], object]) -> float:
    """Return the median time of a call."""
    return float(Timer("f()", globals={"f": function}).blocked_autorange(min_run_time=2).median)


def views(count: int, adaptation: MoR | Frozen) -> Views:
    """Return views of one ViT-S, all on pictures of 98 px."""
    names = [f"m{i}" for i in range(count)]
    pool = EncoderPool(
        dict.fromkeys(names, ModalitySpec("image", 98)), dict.fromkeys(names, (TimmViT, NODE)), adaptation
    )
    return pool.views({name: name for name in names}).eval()


def stacked_experts() -> tuple[float, float]:
    """Time MoR's two matrix products against one loop over the experts."""
    layer = RankMixtureLinear(nn.Linear(384, 1536), 1, ViewSelector(), ranks=(2, 4, 8), routed=True, bypass=True)
    nn.init.normal_(layer.up)
    rows = torch.randn(16, 50, 384)
    starts = [0, 2, 6, 14]

    def loop() -> Tensor:
        out: Tensor = layer.base(rows)
        weights = (rows @ layer.route_weight[0].mT + layer.route_bias[0]).softmax(-1)
        for k in range(3):
            part = slice(starts[k], starts[k + 1])
            out = out + weights[..., k + 1 : k + 2] * 2.0 * (rows @ layer.down[0, part].mT) @ layer.up[0, :, part].mT
        return out

    with torch.no_grad():
        torch.testing.assert_close(loop(), layer(rows), rtol=1e-4, atol=1e-4)
        return seconds(lambda: layer(rows)), seconds(loop)


def one_pass() -> tuple[float, float]:
    """Time six views (three modalities, two roles) in one pass against one after the other."""
    model = views(6, MoR())
    inputs = {name: torch.randn(2, 3, 98, 98) for name in model.address}
    with torch.no_grad():
        tokens = model.embed(inputs)
        alone = [{name: value} for name, value in tokens.items()]
        return seconds(lambda: model.encode(tokens)), seconds(lambda: [model.encode(part) for part in alone])


def adapted() -> tuple[float, float]:
    """Time a forward pass with MoR against the frozen encoder's."""
    inputs = {"m0": torch.randn(16, 3, 98, 98)}
    plain, with_mor = views(1, Frozen()), views(1, MoR())
    with torch.no_grad():
        return (
            seconds(lambda: with_mor.encode(with_mor.embed(inputs))),
            seconds(lambda: plain.encode(plain.embed(inputs))),
        )


def training() -> tuple[float, float]:
    """Time a step through a frozen base with MoR against one that trains the base."""
    images = torch.randn(8, 3, 98, 98)
    frozen = views(1, MoR()).train()
    full = copy.deepcopy(views(1, Frozen())).train().requires_grad_(True)

    def step(model: Views) -> None:
        model.pool(model.encode(model.embed({"m0": images})))["m0"].sum().backward()

    return seconds(lambda: step(frozen)), seconds(lambda: step(full))


def stored_features() -> tuple[float, float]:
    """Time an epoch of a linear head on features of a frozen ViT that are stored against one that computes them."""
    model, head = views(1, Frozen()), nn.Linear(384, 4)
    batches, layout = torch.randn(64, 3, 98, 98).split(16), Layout(3 * 98 * 98)
    table = compute(lambda x: model.encode(model.embed({"m0": x}))["m0"], batches, layout, 64)

    def epoch() -> None:
        for pictures in batches:
            head(model.pool(model.features({"m0": pictures}))["m0"]).sum().backward()

    live = seconds(epoch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.safetensors"
        table.write(path)
        model.tables["m0"] = FeatureTable.read(path)
        return seconds(epoch), live


def main() -> None:
    """Print the table."""
    table = Table("what", "baseline", "ms", "baseline ms", "ratio")
    rows = [
        ("MoR, fc1 of a ViT-S, 16 x 50 tokens", "a loop over the experts", stacked_experts),
        ("6 views of a ViT-S in one pass", "one view after the other", one_pass),
        ("ViT-S with MoR, forward", "the frozen ViT-S, forward", adapted),
        ("ViT-S with MoR, forward + backward", "the ViT-S trained whole", training),
        ("a verdict's 2,000 resamples of 12 methods", "a loop over scikit-learn", bootstrap),
        ("integrity gate, 1,000 pictures of 448 px", "decoding each once", first_check),
        ("integrity gate once more, from its cache", "its first time", second_check),
        ("linear head on stored features, an epoch", "the frozen ViT-S each time", stored_features),
    ]
    for name, baseline, measure in rows:
        ours, theirs = measure()
        table.add_row(name, baseline, f"{ours * 1e3:.2f}", f"{theirs * 1e3:.2f}", f"{ours / theirs:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
