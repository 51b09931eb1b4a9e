"""Parts that end at their own best while the others train on, with scripted validation metrics."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fusionbench import training
from fusionbench.callbacks import EpochSeed
from fusionbench.errors import UserError
from fusionbench.fusion.base import Strategy
from fusionbench.fusion.criterion import CrossEntropy
from fusionbench.layers.frozen import parameter_counts
from fusionbench.optim.optimizers.sgd import sgd
from fusionbench.optim.schedulers.constant import constant
from fusionbench.part_stopping import PartStopping
from fusionbench.task import FusionTask
from fusionbench.types import Batch, ModalitySpec, Output, Problem

PROBLEM = Problem({"labs": ModalitySpec("table", columns=("a", "b", "c"))}, ("ill", "well"), complete=True)
# eyes are best in epoch 1 and frozen after 3, the voice in 3 and after 5; the neck has no metric.
DICE = [0.5, 0.6, 0.4, 0.3, 0.9, 0.9, 0.9, 0.9]
MAP = [0.1, 0.2, 0.3, 0.4, 0.35, 0.3, 0.9, 0.9]
EYES, VOICE = ("norm.weight", "norm.running_mean", "eyes.weight"), ("voice.weight",)


class Twins(Strategy):
    """Two parts on one table, one with running statistics, and a third parameter."""

    score_names = ("dice",)
    part_metrics = {"eyes": "dice", "voice": "<monitor>"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(PROBLEM)
        torch.manual_seed(0)
        self.norm, self.eyes, self.voice = nn.BatchNorm1d(3), nn.Linear(3, 2), nn.Linear(3, 2)
        self.neck = nn.Parameter(torch.zeros(2))

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> Output:
        return Output(self.eyes(self.norm(inputs["labs"])) + self.voice(inputs["labs"]) + self.neck)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        own = {"eyes": [*self.norm.parameters(), *self.eyes.parameters()], "voice": list(self.voice.parameters())}
        own["neck"] = [self.neck]
        return {name: [p for p in members if p.requires_grad] for name, members in own.items()}


class Scripted(FusionTask):
    """A task whose validation metrics are written down, and which keeps the network of every validation."""

    def __init__(self, dice: list[float]) -> None:
        optimizer = lambda groups: sgd(groups, lr=0.1, momentum=0.9)  # noqa: E731
        super().__init__(PROBLEM, Twins, optimizer, constant, CrossEntropy(), {"eyes": 0.05})
        self.dice, self.seen = dice, {}

    def score(self, rows: dict) -> dict[str, float]:
        epoch = self.current_epoch
        self.seen[epoch] = {name: value.clone() for name, value in self.strategy.state_dict().items()}
        return {"mAP": MAP[epoch], "dice": self.dice[epoch]}


@dataclass
class Run:
    """What PartStopping needs of a tracked run."""

    folder: Path
    logged: dict[str, float] = field(default_factory=dict)

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.logged |= values


def loader() -> DataLoader:
    torch.manual_seed(3)
    here, names = torch.ones(4, 1, dtype=torch.bool), list("abcd")
    batches = [Batch({"labs": torch.randn(4, 3)}, here, torch.tensor([0, 1, 1, 0]), names, names, {}) for _ in range(2)]
    return DataLoader(batches, batch_size=None)


def fit(folder: Path, epochs: int = 8, patience: int = 2, resume: bool = False, dice: list[float] = DICE):
    """Fit, and return task, run and what was said."""
    training.quiet()
    task, run, said = Scripted(dice), Run(folder), []
    keep = {"dirpath": folder / "checkpoints", "save_on_train_epoch_end": True, "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor="val/mAP", mode="max", **keep)
    stopping = PartStopping(run, "mAP", patience, said.append)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[EpochSeed(0), stopping, best, ModelCheckpoint(filename="last", every_n_epochs=1, **keep)],
    )
    last = folder / "checkpoints" / "last.ckpt" if resume else None
    trainer.fit(task, loader(), loader(), ckpt_path=last, weights_only=True)
    return task, run, said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"))


def test_a_part_goes_back_to_its_own_best_and_stays_there(whole):
    task, run, said = whole
    assert sorted(task.seen) == [0, 1, 2, 3, 4, 5], "training ends with the last part"
    assert run.logged == {"stopped/eyes": 3.0, "stopped/voice": 5.0}
    assert re.match(
        r"part 'eyes' is frozen after epoch 3: its val/dice has not improved on 0\.600, of epoch 1", said[0]
    )
    for name in EYES:
        assert not torch.equal(task.seen[3][name], task.seen[1][name]), "it trained on meanwhile"
        assert torch.equal(task.seen[4][name], task.seen[1][name])
        assert torch.equal(task.seen[5][name], task.seen[1][name])
    assert not torch.equal(task.seen[5]["voice.weight"], task.seen[4]["voice.weight"])
    assert not torch.equal(task.seen[5]["neck"], task.seen[4]["neck"])


def test_what_was_stopped_still_counts_as_trained(whole):
    task, _, _ = whole
    counts = parameter_counts(task.strategy)
    assert counts["trainable"] == counts["total"]
    assert task.stopped == []


def test_the_tested_model_has_each_part_at_its_best(whole):
    task, run, _ = whole
    fresh = Scripted(DICE)
    fresh.configure_model()
    run.run_id = "r"
    training.load_best(fresh, run)
    state = fresh.strategy.state_dict()
    assert all(torch.equal(state[name], task.seen[1][name]) for name in EYES)
    assert all(torch.equal(state[name], task.seen[3][name]) for name in (*VOICE, "neck"))


def copied(run, folder):
    """Return the run with copies of its checkpoints."""
    shutil.copytree(run.folder / "checkpoints", folder / "checkpoints")
    made, fresh = Run(folder), Scripted(DICE)
    made.run_id = "r"
    return made, fresh, folder / "checkpoints"


def test_a_checkpoint_that_lacks_what_is_trained_is_refused(whole, tmp_path):
    run, fresh, folder = copied(whole[1], tmp_path)
    best = torch.load(folder / "best.ckpt", weights_only=True)
    best["state_dict"]["strategy.mouth.weight"] = best["state_dict"].pop("strategy.voice.weight")
    torch.save(best, folder / "best.ckpt")
    with pytest.raises(UserError, match=r"does not fit this Twins: 2 trained tensors differ \(first 'strategy\.mouth"):
        training.load_best(fresh, run)


def test_a_parts_file_that_lacks_what_is_trained_is_refused(whole, tmp_path):
    run, fresh, folder = copied(whole[1], tmp_path)
    state = load_file(folder / "best-eyes.safetensors")
    save_file({name: value for name, value in state.items() if name != "eyes.weight"}, folder / "best-eyes.safetensors")
    with pytest.raises(
        UserError, match=r"best-eyes\.safetensors' does not fit this Twins: 1 tensors differ \(first 'eyes"
    ):
        training.load_best(fresh, run)


def test_a_file_of_no_part_is_refused(whole, tmp_path):
    run, fresh, folder = copied(whole[1], tmp_path)
    (folder / "best-eyes.safetensors").rename(folder / "best-ears.safetensors")
    with pytest.raises(UserError, match=r"best-ears\.safetensors' does not fit"):
        training.load_best(fresh, run)


@pytest.mark.parametrize("epochs", [1, 2, 4, 5, 6])
def test_a_run_that_was_cut_off_ends_as_if_nothing_had_happened(whole, tmp_path, epochs):
    fit(tmp_path, epochs)
    task, run, _ = fit(tmp_path, resume=True)
    assert sorted(task.seen) == list(range(epochs, 6))
    last = {k: v for k, v in task.strategy.state_dict().items()}
    assert all(torch.equal(value, whole[0].strategy.state_dict()[k]) for k, value in last.items())
    for number in task.seen:
        assert all(torch.equal(value, whole[0].seen[number][k]) for k, value in task.seen[number].items())
    kept = [torch.load(r.folder / "checkpoints" / "last.ckpt", weights_only=True) for r in (run, whole[1])]
    moments = [c["optimizer_states"][0]["state"] for c in kept]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(moments[0][k]["momentum_buffer"], v["momentum_buffer"]) for k, v in moments[1].items())


def test_a_frozen_part_lies_in_the_checkpoint(whole):
    state = torch.load(whole[1].folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {f"strategy.{name}" for name in (*EYES, *VOICE)} <= set(state)


def test_without_patience_no_part_is_frozen(tmp_path):
    task, run, _ = fit(tmp_path, epochs=7, patience=0)
    assert len(task.seen) == 7
    assert run.logged == {}


def test_a_metric_that_no_case_has_is_refused(tmp_path):
    with pytest.raises(UserError, match="no validation case has the metric 'dice' of part 'eyes'"):
        fit(tmp_path, dice=[float("nan")] * 8)


def test_nothing_to_stop_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Twins, "part_metrics", {"tail": "dice", "fin": "dice"})
    with pytest.raises(UserError, match="no part with a metric is trained"):
        fit(tmp_path)
