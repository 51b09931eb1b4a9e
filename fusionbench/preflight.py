"""What can be found before anything trains by building everything once."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import nn

from fusionbench import build, world
from fusionbench.config import Config
from fusionbench.data.module import FusionData
from fusionbench.distributed.checks import check as check_devices
from fusionbench.distributed.checks import held_bytes
from fusionbench.errors import UserError, nearest
from fusionbench.fusion.answers import Answering, answering_of
from fusionbench.fusion.base import Strategy
from fusionbench.fusion.unimodel import UniModel, too_long
from fusionbench.layers.skeleton import skeleton
from fusionbench.metrics import HEADLINE, evaluate
from fusionbench.optim.groups import parameter_groups
from fusionbench.tracking import metric_name


def check(config: Config, source: FusionData) -> None:
    """Build strategy, optimizer and schedule once and let them go again.

    Raises:
        UserError: An option that only their constructors can judge, a device that is not there, texts that an encoder
            has no positions for, class names that cannot be tracked, masks or scores that the data do not
            have, or stage-1 runs that are needed and not asked for.
    """
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator is gpu, but torch finds none here; use auto or cpu")
    _check_classes(source.problem.classes)
    # What is shared out among devices may be too large for one process, and is read in parts when it trains.
    in_parts = config.trainer.strategy == "zero3"
    with one_sentence("fusion, encoder or adapt"), skeleton() if in_parts else nullcontext():
        made = build.strategy(config, source.problem)
        made.settle()
    parameter_groups(made.parameters(), made.parts(), parts=config.optimizer.get("parts"))
    _check_devices(config, source, made)
    _check_mask(made, source)
    _check_smoothing(config, made)
    _check_scores(config, made, source)
    check_monitor(config.trainer.monitor, source)
    task = build.task(config, source)
    with one_sentence("optimizer or scheduler"):
        optimizer = task.make_optimizer(iter([nn.Parameter(torch.zeros(1))]))
        task.make_scheduler(optimizer, 10, config.trainer.max_epochs)
    _check_texts(made, source)
    _check_joined(made, source)
    _check_stage_one(config, source, made)


def _check_devices(config: Config, source: FusionData, made: Strategy) -> None:
    """Refuse devices that are not there, a batch that they cannot share, and offload without space."""
    held = held_bytes(config.trainer, made.parameters())
    trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
    check_devices(config.trainer, source.batch_size, trained, held, world.current().size)


@contextmanager
def one_sentence(what: str) -> Iterator[None]:
    """Tell what a library says of an impossible option in one sentence."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the options of {what} do not work: {reason}") from error


def _check_classes(classes: tuple[str, ...]) -> None:
    names = [metric_name(label) for label in classes]
    for label, name in zip(classes, names, strict=True):
        if names.count(name) > 1 or not name.strip("./ ") or len(name) > 100 or name != name.strip("/"):
            raise UserError(
                f"the class name '{label[:100]}' cannot be tracked (or not told from another): rename it, with letters "
                "or digits that no other class has in this order"
            )


def _check_mask(made: Strategy, source: FusionData) -> None:
    """Refuse a mask that is not read, or that no training case has."""
    name, read = getattr(made, "mask", None), source.data.masks
    if name is None:
        return
    if name in source.dataset.lacking:
        raise UserError(f"'fusion.mask' is '{name}', but {source.dataset.lacking[name]}")
    if name not in read:
        raise UserError(f"'fusion.mask' is '{name}', {_unread(name, read, source.dataset.masks)}")
    if not _with_mask(source, name, "train"):
        raise UserError(
            f"no training case has the mask '{name}', which fusion.mask is to learn: check its files, or set "
            "fusion.mask=null and segment=false of the U-Net"
        )


def _unread(name: str, read: Collection[str], offered: Collection[str]) -> str:
    """Say why a mask is not read, and what to do."""
    if name in offered:
        named = f"data.masks names {', '.join(read)} alone" if read else "data.masks names none"
        return f"but {named}: set data.masks=[{', '.join([*read, name])}]"
    if not offered:
        return "but the data have no masks: set fusion.mask=null and segment=false of the U-Net"
    return f"but data.masks has none of that name{nearest(name, offered)}"


def _check_scores(config: Config, made: Strategy, source: FusionData) -> None:
    """Refuse to select or to stop by a score of masks that no validation case will have."""
    options, mask = config.trainer, getattr(made, "mask", None)
    asked = {options.monitor: f"trainer.monitor is {options.monitor}"}
    if options.stop == "per_part":
        trained = {part for part, members in made.parts().items() if members}
        own = {metric: part for part, metric in made.part_metrics.items() if part in trained}
        asked |= {metric: f"trainer.stop is per_part and judges '{part}' by {metric}" for metric, part in own.items()}
    for why in (asked[name] for name in made.score_names if name in asked and hasattr(made, "mask")):
        remedy = f"set trainer.{'stop=whole' if 'per_part' in why else 'monitor=mAP'}"
        if mask is None:
            raise UserError(f"{why}, but fusion.mask is null, so nothing has that score: {remedy}, or name a mask")
        if not _with_mask(source, mask, "val"):
            raise UserError(f"{why}, but no validation case has the mask '{mask}': {remedy}, or add such masks")


def check_monitor(monitor: str, source: FusionData) -> None:
    """Refuse a metric that the validation cases' labels leave undefined.

    Args:
        monitor: Its name; what is no headline metric is let pass.
        source: The run's data.

    Raises:
        UserError: Classes are missing there.
    """
    target = torch.from_numpy(source.data.target[(source.table["split"] == "val").to_numpy()])
    if monitor not in HEADLINE or not len(target):
        return
    even = torch.full((len(target), len(source.problem.classes)), 1 / len(source.problem.classes))
    if math.isnan(evaluate(even, target, source.problem.classes, source.problem.multilabel)[monitor]):
        raise UserError(
            f"trainer.monitor is {monitor}, which the validation cases' labels leave undefined, since classes are "
            "missing there: add cases of them to val, or set trainer.monitor=accuracy"
        )


def _check_smoothing(config: Config, made: Strategy) -> None:
    """Refuse smoothed labels where they have no part in the loss."""
    if config.task.label_smoothing and answering_of(made) is not None:
        raise UserError(
            f"task.label_smoothing is {config.task.label_smoothing}, but fusion '{config.fusion['name']}' answers in "
            "words, whose loss is that of the true answer alone; set task.label_smoothing=0"
        )


def _with_mask(source: FusionData, name: str, split: str) -> int:
    """Return how many cases of a split have a mask."""
    items, splits = source.data.masks[name].items, source.table["split"]
    return sum(bool(item) and own == split for item, own in zip(items, splits, strict=True))


def _check_texts(made: Strategy, source: FusionData) -> None:
    """Refuse a tokenizer that is not the encoder's, and texts that the encoder has no positions for."""
    for view in made.views.address:
        name, encoder = view.rsplit("/", 1)[-1], made.views.encoder(view)
        if name not in source.tokenizers:
            continue
        check_tokenizer: Any = getattr(encoder, "check_tokenizer", None)
        if check_tokenizer is not None:
            check_tokenizer(source.tokenizers[name])
        most: Any = getattr(encoder, "longest", None)
        found = max(len(ids) for ids in source.data.cells[name])  # type: ignore[arg-type]
        around = _around(made)
        if most is not None and found + around > most:
            _too_long(name, found, around, most)


def _check_joined(made: Strategy, source: FusionData) -> None:
    """Refuse modalities that have no room in the one sequence that a strategy makes of them."""
    if isinstance(made, UniModel):
        cells: Any = source.data.cells
        count, most = made.joined({name: max(map(len, cells[name])) for name in source.tokenizers})
        if most is not None and count > most:
            raise too_long(count, most)


def _around(made: Strategy) -> int:
    """Return how many tokens a strategy puts around a text: its prompt, and the answer that is read or written."""
    answering = getattr(made, "answering", None)
    if not isinstance(answering, Answering):
        return 0
    wording = answering.wording
    written = answering.max_new_tokens - 1 if answering.writes else 0  # the last token written is not read
    return len(wording.prefix_P) + len(wording.suffix_P) + max(wording.names_KL.shape[1], written)


def _too_long(name: str, found: int, around: int, most: int) -> NoReturn:
    if not around:
        raise UserError(f"a text of '{name}' has {found} tokens, its encoder takes {most}; set data.text_length")
    left = most - around
    remedy = f"set data.text_length={left}" if left > 0 else "shorten 'fusion.prompt' or take another language model"
    raise UserError(
        f"a text of '{name}' has {found} tokens, prompt and answer around it {around}, and the language model takes "
        f"{most} in all; {remedy}"
    )


def _check_stage_one(config: Config, source: FusionData, made: Strategy) -> None:
    names = source.problem.modalities
    for name in config.init.runs:
        if name not in names:
            raise UserError(f"init.runs names '{name}', no modality of the run{nearest(name, names)}")
    covered = set(names) if config.init.stage1 == "unimodal" else set(config.init.runs)
    if made.needs_unimodal and not covered >= set(names):
        raise UserError(
            f"fusion '{config.fusion['name']}' with these options needs the stage-1 runs of each modality: set "
            f"init.stage1=unimodal, or options that do without (see 'fusionbench show fusion {config.fusion['name']}')"
        )
