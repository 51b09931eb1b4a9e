"""What a run is said to cost."""

import pytest
import torch
from layouts import CSV_MODALITIES, make_csv
from program import VIT

from fusionbench import build, config, inference, logger
from fusionbench.logger import Costs


class Clock:
    """Time that passes when told."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        """Return the time."""
        return self.now


class Run:
    """Keeps what is logged."""

    def __init__(self):
        self.values = {}

    def log_metrics(self, values, step=0):
        """Keep it."""
        self.values |= values

    def flush(self):
        """Do nothing."""


class Trainer:
    """What the callback asks of a trainer."""

    global_step, log_every_n_steps, is_global_zero, current_epoch = 1, 2, True, 0


@pytest.fixture
def clock(monkeypatch):
    """Put a clock in place of the machine's."""
    made = Clock()
    monkeypatch.setattr(logger, "time", made)
    return made


def test_epoch_seconds_are_training_alone(clock):
    run = Run()
    costs = Costs(run)
    for hook, passes in (
        (costs.on_train_epoch_start, 3),
        (costs.on_validation_start, 5),
        (costs.on_validation_end, 2),
    ):
        hook(Trainer, None)
        clock.now += passes
    costs.on_train_epoch_end(Trainer, None)
    assert run.values["cost/epoch_seconds"] == 3 + 2


def test_peak_memory_is_a_run_of_its_own(monkeypatch):
    samples = iter([5.0, 2.0, 1.0, 2.5, 1.5])
    monkeypatch.setattr(logger, "memory_gb", lambda: next(samples))
    peaks = []
    for steps in (1, 1):
        run = Run()
        costs = Costs(run)
        costs.on_train_epoch_start(Trainer, None)
        for _ in range(steps):
            costs.on_before_backward(Trainer, None, torch.zeros(()))
            costs.on_train_batch_end(Trainer, None)
        costs.on_train_epoch_end(Trainer, None)
        peaks.append(run.values["cost/peak_memory_GB"])
    assert peaks == [5.0, 2.5], "the second run's peak is not the first's"


def test_gflops_of_a_case_are_those_of_its_pictures_and_the_strategy_is_left_as_it_was(tmp_path):
    path = make_csv(tmp_path, patients=16)
    tree = {
        "data": {
            "name": "csv",
            "path": str(path),
            "modalities": {"scan": CSV_MODALITIES["scan"]},
            "size": 32,
            "cache": str(tmp_path / "cache"),
        },
        "encoder": {"scan": VIT},
        "adapt": {"name": "frozen"},
        "fusion": {"name": "unimodal"},
    }
    loaded = config.from_dict(tree)
    source = build.data(loaded)
    task = build.task(loaded, source)
    task.configure_model()
    task.train()
    encoder = task.strategy.views.encoder("scan")
    width, hidden, depth = encoder.width, encoder.net.blocks[0].mlp.fc1.out_features, encoder.depth
    patch, slices, tokens = (
        encoder.net.patch_embed.patch_size[0],
        2,
        1 + (32 // encoder.net.patch_embed.patch_size[0]) ** 2,
    )
    block = 2 * tokens * width * (4 * width + 2 * hidden) + 2 * 2 * tokens * tokens * width
    embedding = 2 * (tokens - 1) * width * 3 * patch**2
    head = 2 * width * len(source.problem.classes)
    expected = slices * (embedding + depth * block) + head
    task.strategy.views.tables["scan"] = None  # would be asked, were it not put aside
    assert inference.gflops_per_case(task, source) == pytest.approx(expected / 1e9)
    assert "scan" in task.strategy.views.tables
    assert task.strategy.training
