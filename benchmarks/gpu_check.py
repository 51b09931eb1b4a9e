"""``make gpu-check``: all that wants a GPU to be tried, through the real command line, on whatever GPUs there are.

EI, LLaMA-II and MDF with small real weights train some steps on one device, by DDP and by ZeRO-3, in float32 and in
bfloat16 (by ZeRO-3 under mixed precision too). Printed, also as markdown for docs/log.md: the peak of memory on a
device beside what ``fusionbench plan`` said, cases a second in the last epoch, the last loss. Checked: every run ends
well, in float32 the losses under ZeRO-3 are those under DDP (on a single GPU: those without either), and the plan is
within 15 % of the peak that torch counted (``torch.cuda.max_memory_allocated``). Status 0 if so, 1 if not, 2 without a
GPU.

With ``--cpu`` the same goes small through two processes on the CPU; there the memory is that of a whole process, with
all its libraries, so it is printed beside the plan and not judged.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fusionbench import config
from fusionbench.errors import UserError
from fusionbench.sections import TrackingOptions
from fusionbench.tracking import Store

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
MODELS = {"EI": "demo.yaml", "LLaMA-II": "llama2_early_lidc.yaml", "MDF": "mdf_lidc.yaml"}
EPOCHS = 2  # the first warms up
CLOSE = 1e-3  # relative: sums of GPU kernels differ in their order
WITHIN = 0.15  # of the measured peak, our choice
GB = 2**30
COLUMNS = (
    *("model", "strategy", "precision", "devices", "planned GB", "measured GB", "off"),
    *("cases/s", "last loss", "result"),
)


@dataclass(frozen=True)
class Way:
    """How a model is trained.

    Attributes:
        strategy: ``trainer.strategy``.
        precision: ``trainer.precision``.
        devices: ``trainer.devices``.
    """

    strategy: str
    precision: str
    devices: int


@dataclass(frozen=True)
class Row:
    """What a run gave.

    Attributes:
        model: A key of ``MODELS``.
        way: How it was trained.
        planned: Bytes that ``fusionbench plan`` said.
        peak: Bytes on the first device.
        rate: Cases a second in the last epoch.
        losses: Of every step, on the first device.
        error: The last line of what the command said, if it failed.
    """

    model: str
    way: Way
    planned: float = float("nan")
    peak: float = float("nan")
    rate: float = float("nan")
    losses: tuple[float, ...] = ()
    error: str = ""

    @property
    def off(self) -> float:
        """By what share of the measured peak the plan is above it, or below."""
        return self.planned / self.peak - 1


def ways(devices: int) -> list[Way]:
    """Return how each model is trained: alone and by ZeRO-3 in each precision, by DDP if there are several devices."""
    found = [Way("auto", precision, 1) for precision in ("32-true", "bf16-true")]
    if devices > 1:
        found.append(Way("ddp", "32-true", devices))
    return found + [Way("zero3", precision, devices) for precision in ("32-true", "bf16-true", "bf16-mixed")]


class Check:
    """Trains the models in a folder.

    Args:
        folder: For the tracking store and the plans.
        devices: GPUs, or processes on the CPU.
        steps: Of an epoch, at most.
        on_cpu: Small, on the CPU.
    """

    def __init__(self, folder: Path, devices: int, steps: int, on_cpu: bool) -> None:
        self.folder, self.devices, self.steps, self.on_cpu = folder, devices, steps, on_cpu

    def row(self, model: str, way: Way) -> Row:
        """Train a model one way, and plan it."""
        overrides = [*self._overrides(model), *_overrides_of(way)]
        name = f"{model} {way.strategy} {way.precision} {way.devices}"
        try:
            planned = self._planned(model, way, overrides)
            tracking = [f"tracking.folder={self.folder / 'runs'}", f"tracking.run_name={name}", "tracking.log_every=1"]
            _fusionbench("fit", "--config", EXPERIMENTS / MODELS[model], *overrides, *tracking)
        except subprocess.CalledProcessError as error:
            return Row(model, way, error=(error.stderr.strip() or "no word").splitlines()[-1])
        return self._read(model, way, name, planned)

    def _overrides(self, model: str) -> list[str]:
        """Return what makes a run short, its batch one that every number of devices shares out equally."""
        batch = 4 if self.on_cpu else int(config.load(EXPERIMENTS / MODELS[model]).data["batch_size"])
        own = [
            f"trainer.limit_train_batches={self.steps}",
            f"data.batch_size={-(-batch // self.devices) * self.devices}",
        ]
        own += [f"trainer.max_epochs={EPOCHS}", "trainer.progress=false", "init.overrides={trainer: {max_epochs: 1}}"]
        return [*own, "trainer.accelerator=cpu", "data.max_cases=60"] if self.on_cpu else own

    def _planned(self, model: str, way: Way, overrides: Sequence[str]) -> float:
        """Return the bytes of a device, as planned."""
        folder = self.folder / "plans" / f"{model}-{way.devices}-{way.precision}"
        path = folder / "plan_memory.csv"
        if not path.exists():
            command = ("plan", "--config", EXPERIMENTS / MODELS[model], "--gpus", way.devices, "--out", folder)
            _fusionbench(*command, *overrides)
        table = pd.read_csv(path)
        wanted = "ddp" if way.strategy == "auto" and "auto" not in set(table["strategy"]) else way.strategy
        return float(table[(table["strategy"] == wanted) & (table["offload"] == "none")]["total"].iloc[0])

    def _read(self, model: str, way: Way, name: str, planned: float) -> Row:
        """Return what the tracked run says."""
        run = Store(TrackingOptions(folder=str(self.folder / "runs"))).open(name)
        history = run.store.client.get_metric_history(run.run_id, "train/loss")
        losses = tuple(point.value for point in sorted(history, key=lambda point: point.step))
        values, batch = run.metrics(), int(self._overrides(model)[1].partition("=")[2])
        rate = len(losses) / EPOCHS * batch / values["cost/epoch_seconds"]
        return Row(model, way, planned, values["cost/peak_memory_GB"] * 1e9, rate, losses)


def _overrides_of(way: Way) -> list[str]:
    return [f"trainer.strategy={way.strategy}", f"trainer.devices={way.devices}", f"trainer.precision={way.precision}"]


def _fusionbench(*arguments: object) -> None:
    """Run a command; its words are kept for the case that it fails."""
    command = [sys.executable, "-m", "fusionbench", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    subprocess.run(command, check=True, capture_output=True, text=True, env={**environment, "COLUMNS": "200"})


def disagreement(rows: Sequence[Row], model: str) -> float:
    """Return by how much the losses under ZeRO-3 differ in float32 from those without, at most and as a share."""
    exact = {row.way.strategy: row for row in rows if row.model == model and row.way.precision == "32-true"}
    own, other = exact["zero3"], exact.get("ddp", exact["auto"])
    if own.error or other.error or len(own.losses) != len(other.losses):
        return float("nan")
    ours, theirs = torch.tensor(own.losses), torch.tensor(other.losses)
    return float(((ours - theirs).abs() / theirs.abs()).max())


def cells(row: Row) -> list[str]:
    """Return a row of the table."""
    way = row.way
    memory = [f"{row.planned / GB:.2f}", f"{row.peak / GB:.2f}", f"{row.off:+.0%}"]
    numbers = [*memory, f"{row.rate:.1f}", f"{(row.losses or (0,))[-1]:.4f}"]
    told = [*(["-"] * len(numbers)), row.error] if row.error else [*numbers, "ok"]
    return [row.model, way.strategy, way.precision, str(way.devices), *told]


def verdicts(rows: Sequence[Row], models: Sequence[str], on_cpu: bool) -> Iterator[tuple[bool, str]]:
    """Yield whether each check holds, with its sentence.

    Args:
        rows: What the runs gave.
        models: Which were trained.
        on_cpu: On the CPU, where the measured memory is not what is planned.
    """
    for row in rows:
        name = f"{row.model} {row.way.strategy} {row.way.precision}"
        if row.error:
            yield False, f"{name} failed: {row.error}"
        elif not on_cpu:
            memory = f"planned {row.planned / GB:.2f} GB, measured {row.peak / GB:.2f}: {row.off:+.0%}"
            yield abs(row.off) <= WITHIN, f"{name}: {memory}, and {WITHIN:.0%} either way is allowed"
    for model in models:
        share = disagreement(rows, model)
        yield share <= CLOSE, f"{model}: losses under zero3 differ by {share:.1e} of theirs at most (float32)"


def show(rows: Sequence[Row], told: Sequence[str], machine: str, console: Console) -> None:
    """Print the table, and the same as markdown."""
    table = Table(*COLUMNS, title=machine)
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    frame = pd.DataFrame([cells(row) for row in rows], columns=list(COLUMNS))
    console.print(
        f"**`make gpu-check`**, {machine}\n\n{frame.to_markdown(index=False)}\n", markup=False, soft_wrap=True
    )
    for line in told:
        console.print(f"* {line}", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check list and return its status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="the same, small, on two processes of the CPU")
    parser.add_argument("--steps", type=int, default=10, help="steps an epoch (10)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which of them (all)")
    options = parser.parse_args(arguments)
    if not options.cpu and not torch.cuda.is_available():
        print("error: there is no GPU here; take a machine with one, or give --cpu", file=sys.stderr)
        return 2
    devices = 2 if options.cpu else torch.cuda.device_count()
    machine = f"{devices} processes on the CPU" if options.cpu else f"{devices} x {torch.cuda.get_device_name()}"
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder), devices, options.steps, options.cpu)
        todo = [(model, way) for model in options.models for way in ways(devices)]
        rows = [check.row(*one) for one in track(todo, "training", console=Console(stderr=True))]
    found = list(verdicts(rows, options.models, options.cpu))
    told = [f"{'holds' if holds else 'FAILS'}: {text}" for holds, text in found]
    show(rows, told, machine, Console(highlight=False, width=160))
    return 0 if all(holds for holds, _ in found) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
