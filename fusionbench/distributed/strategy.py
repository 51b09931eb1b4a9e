"""Which of Lightning's strategies a run's options ask for."""

from __future__ import annotations

import warnings

from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from fusionbench.distributed.deepspeed_config import STAGES
from fusionbench.sections import TrainerOptions


def strategy(options: TrainerOptions) -> Strategy | str:
    """Return what ``L.Trainer(strategy=...)`` takes.

    With several processes these are there already, in the process group that ``world.joined`` made, with its backend
    and patience. DDP looks for unused parameters, since a batch may leave a loss out, e.g. when none of it has a mask.

    Args:
        options: The run's; ``auto`` is DDP with several processes and nothing with one.
    """
    for message in (".*sync_dist=True.*", ".*all_gather_into_tensor.* is deprecated.*"):
        warnings.filterwarnings("ignore", message)  # what is logged is gathered already; the other is DeepSpeed's
    if options.strategy in STAGES:
        from fusionbench.distributed.zero import Zero

        return Zero(options)
    if options.processes == 1:
        return "auto"
    return DDPStrategy(cluster_environment=TorchElasticEnvironment(), find_unused_parameters=True)
