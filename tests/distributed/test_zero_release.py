"""A process that trains one network after another by ZeRO holds none of those before."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from pairs import run_pair
from zero_trials import train

KINDS = ("zero2", "zero3")
pytestmark = pytest.mark.filterwarnings("ignore:.*sync_dist.*")


def train_twice(folder: Path) -> dict[str, list[str]]:
    """Train twice in each way; return what of it is still there, by way."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    engines: list[weakref.ref[Any]] = []
    made = DeepSpeedEngine.__init__

    def watched(engine: Any, *args: Any, **kwargs: Any) -> None:
        engines.append(weakref.ref(engine))
        made(engine, *args, **kwargs)

    found = {}
    with mock.patch.object(DeepSpeedEngine, "__init__", watched):
        for kind in KINDS:
            engines.clear()
            others = [ref for number in range(2) for ref in train_once(kind, folder / f"{kind}{number}")]
            gc.collect()
            found[kind] = [type(ref()).__name__ for ref in (*engines, *others) if ref() is not None]
            assert len(engines) >= 2
    return found


def train_once(kind: str, folder: Path) -> list[weakref.ref[Any]]:
    """Train, predict and let go; return weak references to network, optimizer and one trained parameter."""
    done = train("ei", kind, folder, last_epoch=0)
    strategy, task = done["trainer"].strategy, done["task"]
    optimizer = strategy.optimizers[0]
    held = [task, optimizer, optimizer.optimizer, next(p for p in task.parameters() if p.requires_grad)]
    strategy.release()
    return [weakref.ref(each) for each in held]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return run_pair(train_twice, tmp_path_factory.mktemp("release"))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_training_is_left_once_it_is_released(left: dict[str, list[str]], kind: str) -> None:
    assert left[kind] == []
