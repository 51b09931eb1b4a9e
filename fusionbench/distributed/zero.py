"""ZeRO by DeepSpeed, as a strategy of Lightning that also runs on a CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.utils.hooks import RemovableHandle

from fusionbench.distributed import called_again, on_disk
from fusionbench.distributed.checkpoints import beside, check_world, remove, replace
from fusionbench.distributed.consolidate import TAG
from fusionbench.distributed.deepspeed_config import deepspeed_config, fitted
from fusionbench.distributed.precision import ZeroPrecision
from fusionbench.distributed.prepare import prepare_deepspeed
from fusionbench.distributed.release import let_go
from fusionbench.layers import sharded
from fusionbench.sections import TrainerOptions


class Zero(DeepSpeedStrategy):
    """ZeRO stage 2 or 3 (arXiv 1910.02054) through DeepSpeed; stage 3 is also FSDP's way of doing it.

    Beside what Lightning's does: it runs on a CPU by gloo; it joins a process group that is there; the network is built
    as in one process and parted afterwards, parameter by parameter, so that whatever starts at random is the same;
    checkpoints appear whole or not at all.

    Args:
        options: The run's.

    Attributes:
        own_folder: This process's own on a disk, for parameters that are offloaded there, once there are any.
    """

    own_folder: Path | None = None

    def __init__(self, options: TrainerOptions) -> None:
        self._watched: list[RemovableHandle] = []
        self.on_gpu = options.accelerator != "cpu" and torch.cuda.is_available()
        prepare_deepspeed(self.on_gpu)
        config = deepspeed_config(options)
        del config["gradient_accumulation_steps"]  # Lightning puts it in again, out of the Trainer's option
        super().__init__(
            config=config,
            cluster_environment=TorchElasticEnvironment() if options.processes > 1 else None,
            precision_plugin=ZeroPrecision(options.precision),
            logging_level=logging.ERROR,
            exclude_frozen_parameters=True,
        )

    @property
    def root_device(self) -> torch.device:
        """The process's device; on a CPU it has the index that DeepSpeed asks for."""
        return super().root_device if self.on_gpu else torch.device("cpu", self.local_rank)

    def _configure_launcher(self) -> None:
        """Launch nothing: the processes are there."""

    def setup_environment(self) -> None:
        """Do what DDP does, since Lightning's ZeRO refuses a CPU."""
        if self.on_gpu:
            super().setup_environment()
        else:
            super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """Join the process group, or take the one that is there."""
        import deepspeed

        reset_seed()
        self.set_world_ranks()
        if not dist.is_initialized():
            alone: dict[str, Any] = {"store": HashStore(), "rank": 0, "world_size": 1}
            backend = "cpu:gloo,cuda:nccl" if self.on_gpu else "gloo"
            dist.init_process_group(backend, **(alone if self.world_size == 1 else {}))
        os.environ.setdefault("LOCAL_RANK", str(self.local_rank))  # DeepSpeed reads it
        deepspeed.init_distributed("nccl" if self.on_gpu else "gloo")

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Let the network that is built in here be parted by stage 3, each parameter when all of it is known."""
        if not self.zero_stage_3:
            yield
            return
        import deepspeed

        self._init_config_if_needed()
        if not deepspeed.comm.is_initialized():
            self.setup_environment()  # a run that goes on behind its fit builds before any of Lightning's loops
        with sharded.building(self._partition(), self._announced):
            yield

    def _announced(self, largest: int, together: int) -> None:
        """Make room on a disk for parameters that are offloaded there, and buffers for those that are gathered."""
        told: dict[str, Any] = self.config  # type: ignore[assignment]
        if on_disk.offloads(told) and self.own_folder is None:
            self.config, self.own_folder = on_disk.config_for(told, -(-largest // self.world_size), together)

    def _partition(self) -> Callable[[nn.Parameter], None]:
        """Return what takes a process's part of a parameter, in the type that the run's precision asks for."""
        import deepspeed

        precision: Any = self.precision_plugin
        converted: list[Any] = []

        def part(parameter: nn.Parameter) -> None:
            # A copy, because DeepSpeed broadcasts into it, which would make a file's pages this process's own.
            parameter.data = parameter.data.to(self.root_device, precision.held, copy=True).contiguous()
            if converted:
                converted[0].convert_to_zero_parameters(param_list=[parameter])
                return
            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=self.config)
            converted.append(parameter)

        return part

    def setup(self, trainer: Trainer) -> None:
        """Put buffers where the parameters are, which DeepSpeed does for a network built within its own context."""
        assert self.model is not None
        self.model.to(self.root_device)
        trained = sum(sharded.numel(p) for p in self.model.parameters() if p.requires_grad)
        self.config = fitted(self.config, trained)  # type: ignore[arg-type]
        super().setup(trainer)
        engine: Any = self.model
        if self.zero_stage_3 and trainer.training:
            offload = engine.optimizer.parameter_offload
            self._watched = called_again.watch(engine.module, offload.post_sub_module_backward_function)

    def place(self, module: nn.Module) -> None:
        """Bring a network that no fit has set up to where a fit leaves it, with the hooks that gather its parts."""
        if self.model is not None:
            return
        self.precision_plugin.convert_module(module).to(self.root_device)
        if self.zero_stage_3:
            self._initialize_deepspeed_inference(module)

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Whether DeepSpeed may go on summing gradients; not behind an epoch's last batch, where Lightning steps."""
        return not self._in_last_batch()

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Tell DeepSpeed whether the batch ends in a step as Lightning counts; it would not end one with the epoch."""
        full = (batch_idx + 1) % self.lightning_module.trainer.accumulate_grad_batches == 0  # type: ignore[union-attr]
        self.deepspeed_engine.set_gradient_accumulation_boundary(full or self._in_last_batch())

    def _in_last_batch(self) -> bool:
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        progress = trainer.fit_loop.epoch_loop.batch_progress
        return progress.is_last_batch or progress.current.ready == trainer.num_training_batches

    def release(self) -> None:
        """Let network, states and hooks go once nothing is run any more; a process may train many, one by one."""
        for handle in self._watched:
            handle.remove()
        let_go([self.model, *self.optimizers])
        self.optimizers = []
        self.remove_own_folder()

    def remove_own_folder(self) -> None:
        """Remove the parameters that were offloaded to a disk."""
        if self.own_folder is not None:
            on_disk.remove(self.own_folder)
            self.own_folder = None

    def teardown(self) -> None:
        """Give torch its own linear layer back, which stage 3 replaces in the whole process.

        The network stays where it is, for predictions follow: Lightning's would take what is not parted away from the
        parts into main memory, and the optimizer's states too.
        """
        module, optimizers = self._lightning_module, self.optimizers
        self._lightning_module, self.optimizers = None, []
        super().teardown()
        self._lightning_module, self.optimizers = module, optimizers
        if self.zero_stage_3:
            from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Patch

            torch.nn.functional.linear = getattr(Patch, "linear_bk", torch.nn.functional.linear)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: object = None) -> None:
        """Write each process's part of what is trained into a folder beside the checkpoint, then put it in its place.

        Args:
            checkpoint: Lightning's; tensors are left to DeepSpeed.
            filepath: A folder afterwards.
            storage_options: There are none.
        """
        path = Path(self.broadcast(str(filepath)))
        if self.is_global_zero:
            remove(beside(path))
        self.barrier()
        told = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        self.deepspeed_engine.save_checkpoint(
            str(beside(path)), client_state=told, tag=TAG, exclude_frozen_parameters=True
        )
        self.barrier()
        if self.is_global_zero:
            replace(path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load each process's part.

        Args:
            checkpoint_path: The folder.
            weights_only: Not asked: DeepSpeed unpickles what the run itself has written.

        Raises:
            UserError: It is of another number of processes.
        """
        check_world(Path(checkpoint_path), self.world_size)
        return super().load_checkpoint(checkpoint_path, weights_only)
