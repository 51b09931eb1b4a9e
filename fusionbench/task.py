"""FusionTask, the one LightningModule: loss, metrics, optimizer and per-case predictions around any strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from fusionbench import metrics
from fusionbench.errors import UserError
from fusionbench.fusion.answers import answering_of
from fusionbench.fusion.base import Strategy
from fusionbench.fusion.criterion import BinaryCrossEntropy, CrossEntropy
from fusionbench.layers import sharded
from fusionbench.layers.frozen import misfits, settled_checksum
from fusionbench.layers.sync_batch_norm import synchronise
from fusionbench.optim.groups import parameter_groups
from fusionbench.types import Batch, Output, Problem

Rows = dict[str, list[Any]]


class FusionTask(L.LightningModule):
    """Trains and scores a strategy.

    Args:
        problem: Modalities and classes.
        build: Makes the strategy; called in ``configure_model``, so that a sharded context can build it piece by piece.
        optimizer: Takes the trainable parameters, or groups of them.
        scheduler: Takes the optimizer, the steps an epoch and the number of epochs; steps once a batch.
        criterion: The loss on logits.
        rates: Learning rate of each part of the strategy that has one of its own.

    Attributes:
        strategy: The network.
        stopped: Parameters that are trained no more, though they were (``trainer.stop: per_part``); checkpoints hold
            them still.
    """

    strategy: Strategy

    def __init__(
        self,
        problem: Problem,
        build: Callable[[], Strategy],
        optimizer: Callable[[Any], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer, int, int], torch.optim.lr_scheduler.LRScheduler],
        criterion: CrossEntropy | BinaryCrossEntropy,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.problem, self.criterion = problem, criterion
        self._build, self.make_optimizer, self.make_scheduler = build, optimizer, scheduler
        self.rates = dict(rates or {})
        self.stopped: list[Parameter] = []
        self.rows: Rows = {}
        self._base = ""
        self.strict_loading = False

    def configure_model(self) -> None:
        """Build the strategy once, whichever of fit, validate and test comes first.

        It is built whole and as ever, but weights that are read from files stay there, mapped, so that in a sharded
        context the network is never whole in a process's own memory: what starts at random is small, or is trained.
        """
        if hasattr(self, "strategy"):
            return
        # Built in float32 whatever the precision, so that what starts at random is the same; cast afterwards.
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            self.strategy = self._build()
        finally:
            torch.set_default_dtype(default)
        self._base = settled_checksum(self.strategy)
        synchronise(self.strategy)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own type
        """Give the optimizer what is trained, and step the schedule once a batch."""
        trainer = self.trainer
        members = self.strategy.parts() if self.rates else {}
        optimizer = self.make_optimizer(parameter_groups(self.strategy.parameters(), members, parts=self.rates))
        steps = max(1, int(trainer.estimated_stepping_batches) // max(1, trainer.max_epochs or 1))
        schedule = self.make_scheduler(optimizer, steps, trainer.max_epochs or 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def forward(self, batch: Batch) -> Output:
        """Predict a batch."""
        # Not ``strategy(...)``: so ZeRO-3 gathers what the strategy reads beside its modules for the whole step, the
        # way back included. Of a module whose output is no tensor it does not see when the way back begins.
        return self.strategy.forward(batch.inputs, batch.present)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the strategy's losses, each logged by name.

        Raises:
            UserError: The loss is not finite; names the cases of the batch.
        """
        output = self(batch)
        terms = self.strategy.losses(output, batch, self.criterion)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise UserError(self._not_finite(terms, batch))
        values = {"train/loss": loss.detach()} | {f"train/loss/{k}": v.detach() for k, v in terms.items()}
        values |= {f"train/{k}": v for k, v in output.diagnostics.items()}
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=len(batch.case_id), sync_dist=True)
        return loss

    def _not_finite(self, terms: dict[str, Tensor], batch: Batch) -> str:
        bad = [name for name, value in terms.items() if not torch.isfinite(value)]
        return (
            f"the loss is not finite in epoch {self.current_epoch}, step {self.global_step} (terms: {', '.join(bad)}; "
            f"cases: {', '.join(batch.case_id)}): look at these, lower optimizer.lr or set trainer.gradient_clip"
        )

    def on_validation_epoch_start(self) -> None:
        """Forget the rows of the epoch before."""
        self.rows = {}

    on_predict_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep each case's prediction."""
        output = self(batch)
        rows = {
            "case": list(batch.case_id),
            "group": list(batch.group_id),
            "target": batch.target.cpu().tolist(),
            "present": batch.present.cpu().tolist(),
            "logits": output.logits.float().cpu().tolist(),
        }
        rows |= {f"branch.{name}": z.float().cpu().tolist() for name, z in output.branches.items()}
        if output.weights is not None:
            rows["weights"] = output.weights.float().cpu().tolist()
        if output.answers is not None:
            rows["answer"] = output.answers.classes.cpu().tolist()
            rows |= {"answer_named": output.answers.named, "answer_text": output.answers.texts}
        rows |= {f"score.{name}": values for name, values in self._case_scores(output, batch).items()}
        for key, values in rows.items():
            self.rows.setdefault(key, []).extend(values)

    def _case_scores(self, output: Output, batch: Batch) -> dict[str, list[float]]:
        """Return the strategy's own scores of each case, nan where it returned none for the batch."""
        names, found = self.strategy.score_names, self.strategy.scores(output, batch)
        if not set(found) <= set(names):
            raise ValueError(f"{type(self.strategy).__name__}.score_names must name {', '.join(found)}")
        missing = torch.full((len(batch.case_id),), float("nan"))
        return {name: found.get(name, missing).float().cpu().tolist() for name in names}

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Keep each case's prediction; return a tensor, since Lightning warns of None and DeepSpeed takes no bool."""
        self.validation_step(batch, batch_idx)
        return batch.present

    def on_validation_epoch_end(self) -> None:
        """Score all cases, each once, whatever the number of ranks and the padding of their last batch.

        ``val/loss`` is the loss of the scored logits as it is trained: what ``train/loss/fused`` is in training, or
        ``train/loss/answer`` where a language model answers.
        """
        rows = self.gathered()
        if self.trainer.sanity_checking:
            return
        logits, target = self._tensors(rows)
        self._check_finite(rows, logits)
        scores = self.score(rows)
        self.log_dict({f"val/{name}": value for name, value in scores.items()}, rank_zero_only=False)
        answering, criterion = answering_of(self.strategy), self.criterion.cpu()
        loss = criterion(logits, target) if answering is None else answering.loss(logits, target, criterion)
        self.log("val/loss", loss)
        self.criterion.to(self.device)

    def _check_finite(self, rows: Rows, logits: Tensor) -> None:
        bad = [case for case, row in zip(rows["case"], logits, strict=True) if not torch.isfinite(row).all()]
        if bad:
            raise UserError(
                f"predictions are not finite in the validation of epoch {self.current_epoch} (cases: "
                f"{', '.join(bad[:8])}): look at these, lower optimizer.lr or set trainer.gradient_clip"
            )

    def gathered(self) -> Rows:
        """Return the rows of all ranks, sorted by case id, repeats dropped."""
        parts: list[Rows | None] = [self.rows]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self.rows)
        joined: Rows = {}
        for part in parts:
            for key, values in (part or {}).items():
                joined.setdefault(key, []).extend(values)
        first = {case: i for i, case in reversed(list(enumerate(joined.get("case", []))))}
        order = [first[case] for case in sorted(first)]
        return {key: [values[i] for i in order] for key, values in joined.items()}

    def score(self, rows: Rows) -> dict[str, float]:
        """Return every metric of the fused prediction, and the means of further scores over the cases with one."""
        logits, target = self._tensors(rows)
        own = metrics.evaluate(self.probabilities(logits), target, self.problem.classes, self.problem.multilabel)
        further = {key.removeprefix("score."): torch.tensor(v) for key, v in rows.items() if key.startswith("score.")}
        if "answer" in rows:
            further |= metrics.answer_values(torch.tensor(rows["answer"]), target)
        return own | {name: values.double().nanmean().item() for name, values in further.items()}

    def _tensors(self, rows: Rows) -> tuple[Tensor, Tensor]:
        dtype = torch.float32 if self.problem.multilabel else torch.int64
        return torch.tensor(rows["logits"]), torch.tensor(rows["target"], dtype=dtype)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (N, K) into probabilities: sigmoid when multi-label, else softmax."""
        return logits.sigmoid() if self.problem.multilabel else logits.softmax(dim=-1)

    def base_checksum(self) -> str:
        """Return the checksum of the frozen base as it was loaded, before any cast."""
        self.configure_model()
        return self._base

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hold what was trained, and of the frozen base its checksum."""
        checkpoint["state_dict"] = self._without_base(checkpoint["state_dict"])
        checkpoint["frozen_base"] = self.base_checksum()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on over another frozen base, or with part of what was trained; loading itself is not strict.

        A sharded checkpoint comes without its tensors, which DeepSpeed has loaded by then.

        Raises:
            UserError: The encoder weights are not those that the checkpoint was trained on, or its tensors are not
                those that are trained now.
        """
        self.configure_model()
        if checkpoint["frozen_base"] != self.base_checksum():
            raise UserError("the checkpoint was trained on other encoder weights than those found now; restore them")
        wrong = misfits(self._trained_shapes(), checkpoint["state_dict"]) if "state_dict" in checkpoint else []
        if wrong:
            raise UserError(
                f"the checkpoint does not fit this {type(self.strategy).__name__}: {len(wrong)} trained tensors differ "
                f"(first '{wrong[0]}'); give the config that it was trained with, or fit the run anew"
            )

    def _without_base(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a state without the frozen parameters."""
        trained = {id(parameter) for parameter in self.stopped}
        frozen = {name for name, p in self.named_parameters() if not (p.requires_grad or id(p) in trained)}
        return {name: value for name, value in state.items() if name not in frozen}

    def _trained_shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of what checkpoints hold, of the whole parameters where processes have parts."""
        own = dict(self.named_parameters())
        return {name: sharded.shape(own.get(name, t)) for name, t in self._without_base(self.state_dict()).items()}
