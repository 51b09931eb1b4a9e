"""The closed sections of a config: what they hold, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class TaskOptions:
    """The loss around any strategy.

    Args:
        label_smoothing: Share of the target spread over all classes; multi-class only.
        class_weights: ``balanced`` weighs a class by N / (K · N_c), on top of any sampling.
    """

    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"


@dataclass(frozen=True)
class TextOptions:
    """What is read of each text, ``data.text``; ``data/texts.py`` says how.

    Args:
        content: ``full`` is all of it, ``findings`` leaves the impression out, ``label_free`` leaves the words of class
            names out. Two controls: ``shuffled`` is another patient's text, ``shuffled_words`` has no word order.
    """

    content: Literal["full", "findings", "label_free", "shuffled", "shuffled_words"] = "full"


@dataclass(frozen=True)
class TrainerOptions:
    """How long, on what, and when to stop.

    Args:
        max_epochs: Epochs at most.
        patience: Validations without improvement after which training stops; 0: never.
        stop: ``whole`` by ``monitor``; ``per_part`` freezes each part of the strategy at the best weights of its own
            metric and ends when all are frozen; ``part_stopping.py`` says how.
        monitor: Validation metric that selects the checkpoint and stops; highest, or for ECE lowest, is best.
        precision: Lightning's name, e.g. ``32-true``, ``bf16-mixed``, ``bf16-true``.
        accelerator: ``auto``, ``cpu`` or ``gpu``; a run is one process on each device.
        strategy: How several devices share the work: ``ddp`` holds everything on each, ``zero2`` shares out gradients
            and optimizer states, ``zero3`` the parameters too (DeepSpeed); ``auto`` is ``ddp``, or none on one device.
        devices: GPUs on each node, or on a CPU processes; ``data.batch_size`` is shared out among all.
        num_nodes: Nodes; more than one are started by torchrun or SLURM, as ``docs/clusters.md`` says.
        offload: With ZeRO, what lies in main memory: ``optimizer`` states, or ``all``, parameters too (``zero3``).
        offload_folder: A folder on a fast local disk (NVMe) for the parameters that ``offload: all`` moves out, instead
            of main memory.
        checkpointing: Recompute layers in the backward pass to save memory, in every encoder that can.
        accumulate: Batches whose gradients are added up before a step.
        gradient_clip: Largest norm of the gradient; null: none.
        limit_train_batches: Batches an epoch at most, for trials; null: all.
        progress: Show a progress bar.
    """

    max_epochs: int = 200
    patience: int = 10
    stop: Literal["whole", "per_part"] = "whole"
    monitor: str = "mAP"
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    strategy: Literal["auto", "ddp", "zero2", "zero3"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    offload: Literal["none", "optimizer", "all"] = "none"
    offload_folder: str | None = None
    checkpointing: bool = False
    accumulate: int = 1
    gradient_clip: float | None = None
    limit_train_batches: int | None = None
    progress: bool = True

    @property
    def processes(self) -> int:
        """Processes of a run, on all nodes together."""
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class TrackingOptions:
    """Where runs are kept.

    Args:
        folder: Folder of the local store: ``mlflow.db``, artifacts, work in progress.
        uri: MLflow server or store; null: ``$MLFLOW_TRACKING_URI`` or SQLite in ``folder``.
        experiment: Name of the MLflow experiment.
        run_name: Name of the run; null: made from strategy, dataset and seed.
        log_every: Steps between two logged training losses.
    """

    folder: str = "runs"
    uri: str | None = None
    experiment: str = "fusionbench"
    run_name: str | None = None
    log_every: int = 10


@dataclass(frozen=True)
class InitOptions:
    """What a run starts from.

    Args:
        stage1: ``unimodal`` trains each modality alone first (tracked, reused when nothing it depends on changed).
        overrides: Config of the stage-1 runs where it differs, e.g. ``{trainer: {max_epochs: 50}}``.
        runs: Stage-1 runs given by hand, modality to MLflow run id.
    """

    stage1: Literal["none", "unimodal"] = "none"
    overrides: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)


def form(section: type) -> str:
    """Return a section's keys with the words that each takes, as yaml: ``{content: full|findings}``; ``...`` is any."""
    kinds = get_type_hints(section)
    told = {key: "|".join(get_args(kind)) if get_origin(kind) is Literal else "..." for key, kind in kinds.items()}
    return "{" + ", ".join(f"{key}: {words}" for key, words in told.items()) + "}"
