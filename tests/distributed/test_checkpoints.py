"""Checkpoints that are replaced in one step, and weights that stay in their file until they are settled."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusionbench.distributed import checkpoints
from fusionbench.distributed.consolidate import ShardedState, _load, consolidate
from fusionbench.distributed.prepare import prepare_deepspeed
from fusionbench.distributed.shards import Layout
from fusionbench.errors import UserError
from fusionbench.layers import deferred, sharded
from fusionbench.layers.frozen import base_checksum, misfits, settled_checksum
from fusionbench.sections import TrainerOptions


def written(path: Path, text: str) -> None:
    """Write a folder beside a checkpoint."""
    new = checkpoints.beside(path)
    new.mkdir()
    (new / "part").write_text(text)


def content(path: Path) -> str:
    found = checkpoints.find(path)
    assert found is not None
    return (found / "part").read_text()


def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "last.ckpt", checkpoints.os.replace
    assert checkpoints.find(path) is None
    written(path, "0")
    checkpoints.replace(path)
    for moment in range(3):
        checkpoints.remove(checkpoints.beside(path))  # as the next save does
        before = content(path)
        written(path, f"new at {moment}")
        assert content(path) == before
        left = iter(range(moment))

        def killed(*arguments: object, left=left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.os, "replace", killed)
            patch.setattr(checkpoints.shutil, "rmtree", lambda path: None)
            if moment < 2:
                with pytest.raises(KeyboardInterrupt):
                    checkpoints.replace(path)
            else:
                checkpoints.replace(path)
        assert content(path) == (before if moment < 2 else "new at 2")
    checkpoints.remove(checkpoints.beside(path))
    written(path, "last")
    checkpoints.replace(path)
    assert content(path) == "last"
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_is_no_sharded_checkpoint_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no sharded checkpoint"):
        consolidate(tmp_path)
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoints.read(tmp_path / "best.ckpt")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="could not be read"):
        consolidate(tmp_path)


def parts_of(folder: Path, world: int, stage: int) -> Path:
    """Write what tells how many processes wrote a sharded checkpoint."""
    inner = folder / "checkpoint"
    inner.mkdir(parents=True)
    for rank in range(world):
        name = "mp_rank_00_model_states.pt" if stage == 2 else f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        torch.save({"dp_world_size": world}, inner / name)
        torch.save({}, inner / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", ["model", "optim"])
def test_a_missing_part_is_not_taken_for_another_number_of_processes(tmp_path: Path, stage: int, kind: str) -> None:
    path = parts_of(tmp_path / "last.ckpt", 2, stage)
    checkpoints.check_world(path, 2)
    sorted((path / "checkpoint").glob(f"*_{kind}_states.pt"))[0].unlink()
    wanted = "is no sharded checkpoint" if (stage, kind) == (2, "model") else "holds 1 of 2 parts: put the missing"
    for processes in (1, 2):
        with pytest.raises(UserError, match=wanted):
            checkpoints.check_world(path, processes)


@pytest.mark.parametrize("kind", ["model", "optim"])
def test_a_damaged_part_is_told_before_a_run_is_opened_again(tmp_path: Path, kind: str) -> None:
    path = parts_of(tmp_path / "last.ckpt", 2, 3)
    own = TrainerOptions(strategy="zero3", devices=2)
    checkpoints.check_resume(path, own)
    part = path / "checkpoint" / f"zero_pp_rank_1_mp_rank_00_{kind}_states.pt"
    part.write_bytes(part.read_bytes()[:300])
    with pytest.raises(
        UserError, match=r"last\.ckpt' could not be read: .*; fit the run again, for which '.*' must be removed first$"
    ):
        checkpoints.check_resume(path, own)


class Member:
    """Is written as Python before 3.11.4 writes a member of an enumeration."""

    def __reduce__(self) -> tuple[Any, ...]:
        prepare_deepspeed(on_gpu=False)
        from deepspeed.runtime.zero.config import ZeroStageEnum

        return getattr, (ZeroStageEnum, "weights")


def test_what_older_pythons_write_is_read_and_nothing_of_it_is_called(tmp_path: Path) -> None:
    path = parts_of(tmp_path / "last.ckpt", 1, 3)
    part = path / "checkpoint" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": {"zero_stage": Member()}}, part)
    (read,) = _load(path, part.name)
    assert type(read["optimizer_state_dict"]["zero_stage"]).__name__ == "_Unread"


def test_one_process_is_told_as_one(tmp_path: Path) -> None:
    path = parts_of(tmp_path / "last.ckpt", 1, 3)
    with pytest.raises(UserError, match="written by 1 process, and ZeRO can't go on from it with 2: give it 1 device "):
        checkpoints.check_world(path, 2)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("stage", [2, 3])
def test_parts_are_put_together_whatever_their_number(world: int, stage: int) -> None:
    values = {"a": torch.randn(3, 5), "b": torch.randn(7), "c": torch.randn(2, 2)}
    groups = [["a", "b"], ["c"]]
    keys = ("fp32_flat_groups", "optimizer_state_dict")
    if stage == 2:
        keys = ("single_partition_of_fp32_groups", "base_optimizer_state")
    parts = []
    for rank in range(world):
        flats = [flat([values[name] for name in group], rank, world, stage) for group in groups]
        states = {i: {"step": torch.tensor(4.0), "mean": f * 2} for i, f in enumerate(flats)}
        options = [{"lr": 0.1, "params": [0]}, {"lr": 0.2, "params": [1]}]
        parts.append({keys[0]: flats, keys[1]: {"state": states, "param_groups": options}})
    layout = Layout([{name: values[name].shape for name in group} for group in groups], parts)
    state = layout.optimizer_state()
    assert state["param_groups"] == [{"lr": 0.1, "params": [0, 1]}, {"lr": 0.2, "params": [2]}]
    for number, name in enumerate(layout.names):
        assert torch.equal(layout.parameter(name), values[name])
        assert torch.equal(state["state"][number]["mean"], values[name] * 2)
        assert state["state"][number]["step"] == 4


def flat(values: list[torch.Tensor], rank: int, world: int, stage: int) -> torch.Tensor:
    """Return a process's flat tensor as DeepSpeed lays it out."""
    if stage == 3:
        padded = [nn.functional.pad(v.flatten(), (0, -v.numel() % world)) for v in values]
        return torch.cat([p.chunk(world)[rank] for p in padded])
    joined = torch.cat([v.flatten() for v in values])
    return nn.functional.pad(joined, (0, -len(joined) % (2 * world))).chunk(world)[rank]


def test_shapes_of_parts_are_compared_without_putting_them_together(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"a": torch.Size((3, 5)), "b": torch.Size((7,))}
    part = {"fp32_flat_groups": [torch.zeros(22)], "optimizer_state_dict": {"state": {}, "param_groups": []}}
    state = ShardedState(Layout([shapes], [part]), {"mean": torch.zeros(2)})
    monkeypatch.setattr(Layout, "parameter", None)
    assert misfits({**shapes, "mean": torch.Size((2,))}, state) == []
    assert misfits({**shapes, "a": torch.Size((5, 3)), "mean": torch.Size((3,))}, state) == ["a", "mean"]
    assert misfits({"a": shapes["a"]}, state) == ["b", "mean"]


def test_weights_stay_in_their_file_until_they_are_settled() -> None:
    source = torch.randn(4, 3, dtype=torch.float16)
    assert type(deferred.held_as(source, torch.bfloat16)) is torch.Tensor
    with deferred.deferring():
        held = deferred.held_as(source, torch.bfloat16)
    layer = nn.Linear(3, 4, bias=False, device="meta", dtype=torch.bfloat16)
    layer.load_state_dict({"weight": held}, assign=True)
    weight = layer.weight
    assert (weight.shape, weight.dtype, weight.is_leaf) == (source.shape, torch.bfloat16, True)
    assert weight.isnan().all()
    assert weight.untyped_storage().nbytes() == 2
    copied, cast, widened = deepcopy(layer), deepcopy(layer).float(), deepcopy(layer)
    deferred.widen(widened.weight, torch.float32)
    assert widened.weight.untyped_storage().nbytes() == 4
    for made, dtype in (
        (layer, torch.bfloat16),
        (copied, torch.bfloat16),
        *((m, torch.float32) for m in (cast, widened)),
    ):
        deferred.settle(made.weight)
        assert type(made.weight) is nn.Parameter
        assert torch.equal(made.weight, source.bfloat16().to(dtype))
    assert layer.weight is weight


def test_other_values_may_be_loaded_before_those_of_the_file_are() -> None:
    layer = nn.Linear(3, 4, dtype=torch.bfloat16)
    source, start = torch.ones(4, 3, dtype=torch.float16), torch.randn(4, 3)
    with deferred.deferring():
        layer.weight = deferred.held_as(source, torch.bfloat16)
    deferred.widen(layer.weight, torch.float32)
    assert torch.equal(sharded.value(layer.weight), source.float())
    sharded.load_state(layer, {"weight": start, "bias": torch.ones(4)})
    assert layer.weight.isnan().all()
    assert torch.equal(sharded.value(layer.weight), start)
    assert torch.equal(deferred.settle(layer.weight), start)  # not by way of bfloat16
    assert torch.equal(layer.bias, torch.ones(4, dtype=torch.bfloat16))


def test_a_checksum_parts_each_parameter_once_its_values_are_known() -> None:
    source = torch.randn(4, 3, dtype=torch.float16)
    layer = nn.Sequential(nn.Linear(3, 4, dtype=torch.bfloat16), nn.Linear(4, 2))
    layer[1].requires_grad_(False)
    plain = deepcopy(layer)
    plain[0].weight.data = source.bfloat16()
    seen: list[nn.Parameter] = []
    with sharded.building(seen.append):
        layer[0].weight = deferred.held_as(source, torch.bfloat16)
        layer[0].weight.requires_grad_(False)
        plain[0].weight.requires_grad_(False)
        found = settled_checksum(layer)
    assert found == base_checksum(plain)
    assert [id(p) for p in seen] == [id(p) for _, p in sorted(layer.named_parameters())]
    assert settled_checksum(plain) == found
    assert len(seen) == 4
