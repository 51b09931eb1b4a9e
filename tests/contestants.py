"""Methods with made-up predictions whose quality is known, for the tests of comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fusionbench.report.methods import Aligned, Method


def predictions(
    scores: np.ndarray, target: np.ndarray, groups: Sequence[object], classes: Sequence[str] = "abcdefghi"
) -> pd.DataFrame:
    """Return a table as a run leaves it: probabilities (N, K), and a target (N,) or, when multi-label, (N, K)."""
    used = classes[: scores.shape[1]]
    columns: dict[str, object] = {
        "case": [f"case{number:04d}" for number in range(len(scores))],
        "group": [f"patient{group}" for group in groups],
        "split": "test",
    }
    if target.ndim == 1:
        columns["target"] = target
    else:
        columns |= {f"target.{label}": target[:, k] for k, label in enumerate(used)}
    return pd.DataFrame(columns | {f"prob.{label}": scores[:, k] for k, label in enumerate(used)})


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (N, K)."""
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


def contestants(
    qualities: dict[str, float],
    *,
    cases: int = 60,
    groups: int = 30,
    classes: int = 3,
    seeds: Sequence[int] = (0,),
    draw: int = 0,
) -> list[Method]:
    """Return methods on the same cases, the better the higher their quality."""
    generator = np.random.default_rng(draw)
    member = np.arange(cases) % groups
    target = generator.permutation(cases) % classes
    truth = np.eye(classes)[target]
    made = []
    for name, quality in qualities.items():
        runs = [softmax(quality * truth + generator.normal(size=truth.shape)) for _ in seeds]
        made.append(Method(name, tuple(predictions(run, target, member) for run in runs), tuple(seeds)))
    return made


def tied_pair(draw: int, *, seeds: int = 1, training: float = 0.0, cases: int = 79, groups: int = 60) -> Aligned:
    """Return two methods with the same expected score on a test split drawn anew.

    Patients have one class each and weigh on all of their cases; half of what goes wrong is common to both methods,
    and with several seeds half of the rest is the seed's.

    Args:
        draw: Number of the draw.
        seeds: Trained models of each method.
        training: Spread of quality from seed to seed.
        cases: Test cases.
        groups: Patients.
    """
    generator = np.random.default_rng(draw)
    member = np.concatenate([np.arange(groups), generator.integers(0, groups, cases - groups)])
    target = generator.integers(0, 4, groups)[member]

    def noise() -> np.ndarray:
        return (generator.normal(size=(groups, 4))[member] + generator.normal(size=(cases, 4))) / np.sqrt(2)

    shared = noise()
    probabilities = {}
    for name in ("a", "b"):
        own, runs = noise(), []
        for _ in range(seeds):
            quality = 1.5 + training * generator.normal()
            rest = own if seeds == 1 else (own + generator.normal(size=own.shape)) / np.sqrt(2)
            runs.append(softmax(quality * np.eye(4)[target] + np.sqrt(0.5) * (shared + rest)))
        probabilities[name] = tuple(runs)
    return Aligned(target, tuple(map(str, member)), probabilities, dict.fromkeys(probabilities, tuple(range(seeds))))
