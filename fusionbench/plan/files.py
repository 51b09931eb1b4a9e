"""A plan as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from fusionbench.files import write_bytes
from fusionbench.plan.need import Need
from fusionbench.plan.parts import Part


def write(folder: Path, parts: Sequence[Part], needs: Sequence[Need]) -> list[Path]:
    """Write ``plan_parameters.csv``, ``plan_memory.csv`` (bytes) and both as ``plan.md``; return their paths."""
    parameters = pd.DataFrame([asdict(part) for part in parts])
    memory = pd.DataFrame([_row(need) for need in needs])
    text = f"{parameters.to_markdown(index=False)}\n\nBytes on each GPU; ``main`` on each node:\n\n"
    contents = {
        "plan_parameters.csv": parameters.to_csv(index=False),
        "plan_memory.csv": memory.to_csv(index=False),
        "plan.md": f"{text}{memory.to_markdown(index=False)}\n",
    }
    return [write_bytes(folder / name, content.encode()) for name, content in contents.items()]


def _row(need: Need) -> dict[str, object]:
    options = need.options
    told = {"strategy": options.strategy, "offload": options.offload, "devices": options.processes}
    values = {name: getattr(need, name) for name in ("weights", "gradients", "optimizer", "activations", "main")}
    return {**told, **values, "total": need.total}
