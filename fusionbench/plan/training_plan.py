"""A config's plan: everything of a training that can be told from its data and from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from torch.nn import Parameter

from fusionbench import build
from fusionbench.config import Config
from fusionbench.data.module import FusionData
from fusionbench.fusion.base import Strategy
from fusionbench.layers.skeleton import skeleton
from fusionbench.optim.groups import Groups, parameter_groups
from fusionbench.plan.activations import Rehearsal
from fusionbench.plan.batch import micro_batch, share
from fusionbench.plan.choice import Choice, Limits, first_that_fits, ways
from fusionbench.plan.memory import Memory
from fusionbench.plan.need import Need
from fusionbench.plan.parts import Part, parts
from fusionbench.plan.sizes import Sizes
from fusionbench.preflight import one_sentence


@dataclass(frozen=True)
class Steps:
    """How long a training is at most.

    Attributes:
        cases: Cases an epoch, repeated ones counted as often as they come.
        steps: Optimizer steps an epoch.
        epochs: Epochs at most.
    """

    cases: int
    steps: int
    epochs: int


class TrainingPlan:
    """What a config needs.

    Args:
        config: The run's; ``trainer.devices`` is planned for.
        source: Its data.
        on_gpu: Whether the devices are GPUs; else they are processes on a CPU.

    Attributes:
        cases: Of a micro-batch on each device.

    Raises:
        UserError: The batch cannot be shared out equally.
    """

    def __init__(self, config: Config, source: FusionData, *, on_gpu: bool) -> None:
        self.config, self.source, self.on_gpu = config, source, on_gpu
        self.cases = share(source.batch_size, config.trainer.processes)
        self._peaks: dict[tuple[str, int], int] = {}
        self._rehearsals: dict[str, Rehearsal] = {}

    def parts(self) -> list[Part]:
        """Return the parameters by part."""
        nodes = build.encoder_nodes(self.config, self.source.problem.modalities)
        encoders = {modality: node["name"] for modality, node in nodes.items()}
        whole = made = self._rehearsal(self._held).network
        if made.needs_unimodal:  # what stage 1 trains is no parameter any more, and counts as frozen here
            left = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
            whole = network(self.config, self.source, settled=False)
            for name, parameter in whole.named_parameters():
                parameter.requires_grad_(name in left)
        return parts(whole, self.config.fusion["name"], encoders, self.config.adapt["name"])

    def needs(self, cases: int) -> list[Need]:
        """Return what each way of sharing the work needs, the one with the least communication first.

        Args:
            cases: Of a micro-batch on each device.
        """
        found = []
        for options in ways(self.config.trainer):
            held = self._half if options.strategy in ("zero2", "zero3") else self._held
            found.append(self._memory.need(options, self._activations(held, cases)))
        return found

    def choice(self, limits: Limits) -> Choice | None:
        """Return what fits, with less of a micro-batch if need be; None if nothing does.

        Args:
            limits: What there is.
        """
        return first_that_fits(self.needs, self.cases, limits)

    def steps(self) -> Steps:
        """Count cases and steps."""
        trainer, together = self.config.trainer, self.source.batch_size
        cases = len(self.source.train_dataloader().sampler)  # type: ignore[arg-type]
        batches = min(math.ceil(cases / together), trainer.limit_train_batches or cases)
        return Steps(min(cases, batches * together), math.ceil(batches / trainer.accumulate), trainer.max_epochs)

    @property
    def _held(self) -> str:
        """The precision without ZeRO."""
        return self.config.trainer.precision

    @property
    def _half(self) -> str:
        """The precision with ZeRO, which holds in half precision what autocast would cast."""
        return "32-true" if self._held == "32-true" else "bf16-true"

    @cached_property
    def _memory(self) -> Memory:
        made = self._rehearsal(self._held).network
        sizes = Sizes.of(made, _groups(self.config, made))
        return Memory(sizes, build.task(self.config, self.source).make_optimizer, self.on_gpu)

    def _rehearsal(self, precision: str) -> Rehearsal:
        if precision not in self._rehearsals:
            criterion = build.criterion(self.config, self.source)
            self._rehearsals[precision] = Rehearsal(network(self.config, self.source), criterion, precision)
        return self._rehearsals[precision]

    def _activations(self, precision: str, cases: int) -> int:
        """Return the bytes of a micro-batch's activations; of one smaller than the config's by the line through two."""
        own = self._peak(precision, self.cases)
        if cases == self.cases:
            return own
        more = self._peak(precision, 2 * self.cases) - own
        return round(own - more * (1 - cases / self.cases))

    def _peak(self, precision: str, cases: int) -> int:
        if (precision, cases) not in self._peaks:
            batch = micro_batch(self.source, cases)
            self._peaks[precision, cases] = self._rehearsal(precision).activations(batch)
        return self._peaks[precision, cases]


def network(config: Config, source: FusionData, *, settled: bool = True) -> Strategy:
    """Return a config's strategy of shapes alone.

    Args:
        config: The run's.
        source: Its data.
        settled: As it is trained, without what stage-1 runs alone train.

    Raises:
        UserError: It cannot be built.
    """
    with one_sentence("fusion, encoder or adapt"), skeleton():
        made = build.strategy(config, source.problem)
        if settled:
            made.settle()
    _groups(config, made)
    return made


def _groups(config: Config, made: Strategy) -> list[Parameter] | Groups:
    """Return what the optimizer takes; a part that the strategy does not have is refused."""
    return parameter_groups(made.parameters(), made.parts(), parts=config.optimizer.get("parts"))
