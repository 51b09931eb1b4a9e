"""The one DeepSpeed config, made from the plain options of ``trainer``."""

from __future__ import annotations

from typing import Any

from fusionbench.sections import TrainerOptions

STAGES = {"zero2": 2, "zero3": 3}
# Numbers in a bucket, which is allocated in full: DeepSpeed's default is ten times as large, up to 4 GB a device. A
# model of which less is trained has smaller ones (``fitted``).
BUCKET = 50_000_000
SPARE_BUFFERS = 4  # for parameters on a disk that a module reads of another one, our choice


def deepspeed_config(options: TrainerOptions) -> dict[str, Any]:
    """Return what ``deepspeed.initialize`` takes, empty for strategies without DeepSpeed.

    The optimizer is the config's own, by torch, since one of DeepSpeed's would be another method under the same name;
    hence ``zero_force_ds_cpu_optimizer`` is off, and offloaded states are stepped by torch. What is not named here is
    DeepSpeed's default.

    Args:
        options: The run's.
    """
    if options.strategy not in STAGES:
        return {}
    config = {
        "zero_optimization": _zero(options),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_accumulation_steps": options.accumulate,
        "gradient_clipping": options.gradient_clip or 0.0,
        "train_micro_batch_size_per_gpu": 1,  # enters nothing but DeepSpeed's own report of throughput, which is off
        "steps_per_print": 2**62,
    }
    return config | _precision(options.precision)


def fitted(config: dict[str, Any], trained: int) -> dict[str, Any]:
    """Return a config whose buckets are no larger than all that is trained, and even, as ZeRO-2 wants them.

    Args:
        config: What ``deepspeed_config`` returned.
        trained: Numbers of parameters.
    """
    section = dict(config["zero_optimization"])
    for name in ("reduce_bucket_size", "allgather_bucket_size"):
        section[name] = max(2, min(section[name], trained + trained % 2))
    return {**config, "zero_optimization": section}


def _zero(options: TrainerOptions) -> dict[str, Any]:
    """Return the section of ZeRO: the stage, and what is offloaded where.

    A folder takes parameters alone, since checkpoints hold the optimizer's states. What is read from it is let go of as
    soon as its module is done, and nothing is read ahead: each parameter that is there holds one of a few buffers, and
    DeepSpeed fails when it finds none (its issue 3062).
    """
    section: dict[str, Any] = {"stage": STAGES[options.strategy], "contiguous_gradients": True, "overlap_comm": True}
    section |= {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    memory: dict[str, Any] = {"device": "cpu", "pin_memory": options.accelerator != "cpu"}
    disk: dict[str, Any] = {**memory, "device": "nvme", "nvme_path": options.offload_folder}
    if options.offload != "none":
        section["offload_optimizer"] = memory
    if options.offload == "all":
        section["offload_param"] = dict(memory) if options.offload_folder is None else disk
    if options.offload == "all" and options.offload_folder is not None:
        section |= {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
    return section


def _precision(name: str) -> dict[str, Any]:
    """Return the section of the type in which the network is held; DeepSpeed keeps what is trained in float32 too."""
    if name.startswith("bf16"):
        return {"bf16": {"enabled": True}}
    return {"fp16": {"enabled": True}} if name.startswith("16") else {}
