"""ZeRO in two processes against DDP in two and against one: losses, weights, parts, checkpoints, predictions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pairs import run_pair
from zero_trials import CASES, MADE, loader, options, shown, train

from fusionbench.distributed import checkpoints
from fusionbench.distributed.consolidate import consolidate
from fusionbench.distributed.deepspeed_config import deepspeed_config, fitted
from fusionbench.errors import UserError
from fusionbench.layers import sharded
from fusionbench.layers.frozen import base_checksum, trained_state
from fusionbench.sections import TrainerOptions

NAMES = ("ei", "llama", "mdf")
THIRDS = {"accumulate": 3, "count": 2}  # of four batches an epoch: a step behind the third and one behind the fourth
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
pytestmark = pytest.mark.filterwarnings("ignore:.*sync_dist.*")


def in_two_processes(folder: Path) -> dict[str, Any]:
    """Train everything and return what the tests here look at."""
    found: dict[str, Any] = {}
    for name in NAMES:
        for kind in ("ddp", "zero3"):
            done = train(name, kind, folder / name / kind)
            found[f"{name} {kind}"] = shown(done)
            if (name, kind) == ("ei", "zero3"):
                found |= afterwards(done, folder / name)
    found["cut off"] = shown(train("ei", "zero3", folder / "cut", last_epoch=0))
    keep(folder / "cut", folder / "cut before")
    found["gone on"] = shown(train("ei", "zero3", folder / "cut"))
    found["zero2"] = shown(train("ei", "zero2", folder / "zero2", last_epoch=0))
    keep(folder / "zero2", folder / "zero2 before")
    found["zero2 on"] = shown(train("ei", "zero2", folder / "zero2"))
    for kind in ("zero2", "zero3"):
        found[f"thirds {kind}"] = shown(train("llama", kind, folder / "thirds" / kind, **THIRDS))
    for name in ("cnn", "mdf"):
        found[f"{name} mixed"] = shown(train(name, "zero3", folder / name / "mixed", 0, precision="bf16-mixed"))
    return found


def keep(source: Path, copy: Path) -> None:
    """Keep a run's checkpoints as they are now."""
    if dist.get_rank() == 0:
        shutil.copytree(source, copy)
    dist.barrier()


def afterwards(done: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Load other weights into the live network and predict again; take stock of it."""
    made, fitted = done["task"], done["trainer"]
    spoilt = {name: value + 1 for name, value in done["state"].items() if value.is_floating_point()}
    sharded.load_state(made, spoilt)
    changed = {name: value.clone() for name, value in trained_state(made).items()}
    last = checkpoints.read(folder / "zero3" / "last.ckpt")
    made.on_load_checkpoint(last)
    sharded.load_state(made, last["state_dict"])
    fitted.predict(made, loader(MADE["ei"], False), return_predictions=False)
    return {
        "spoilt": {"wanted": spoilt, "found": {name: changed[name] for name in spoilt}},
        "back": {"state": trained_state(made), "logits": torch.tensor(made.gathered()["logits"])},
        "base again": base_checksum(made.strategy),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return run_pair(in_two_processes, folder)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[str, Any]]:
    found = {name: train(name, "auto", folder / name / "auto") for name in NAMES}
    return found | {"thirds": train("llama", "auto", folder / "thirds" / "auto", **THIRDS)}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_parted_frozen_ones_too(ranks: list[dict[str, Any]], name: str) -> None:
    parts = ranks[0][f"{name} zero3"]["parts"]
    whole, own = (sum(each[i] for each in parts.values()) for i in (0, 1))
    assert whole == ranks[0][f"{name} zero3"]["counts"]["total"]
    assert whole / 2 <= own <= whole / 2 + len(parts)
    assert {trained for _, _, trained in parts.values()} == {True, False}
    assert not ranks[0][f"{name} ddp"]["parts"]


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_weights_are_those_of_ddp(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        zero, ddp = rank[f"{name} zero3"], rank[f"{name} ddp"]
        assert zero["losses"] == pytest.approx(ddp["losses"], rel=1e-6)
        torch.testing.assert_close(zero["state"], ddp["state"], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(zero["logits"], ddp["logits"], **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_weights_are_those_of_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, dict[str, Any]], name: str
) -> None:
    zero, one = ranks[0][f"{name} zero3"], alone[name]
    assert len(one["losses"]) == 4
    assert zero["losses"] == pytest.approx(one["losses"], rel=1e-5)
    torch.testing.assert_close(zero["state"], one["state"], rtol=1e-4, atol=1e-5)
    assert zero["base"] == one["base"] == base_checksum(one["task"].strategy)
    assert zero["counts"] == one["counts"]


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_an_epoch_that_is_no_multiple_of_accumulate_ends_in_a_step(
    ranks: list[dict[str, Any]], alone: dict[str, dict[str, Any]], kind: str
) -> None:
    zero, one = ranks[0][f"thirds {kind}"], alone["thirds"]
    assert zero["steps"] == one["steps"] == 4
    assert zero["rates"] == one["rates"]
    assert zero["losses"] == pytest.approx(one["losses"], rel=1e-5)
    torch.testing.assert_close(zero["state"], one["state"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "mdf"])
def test_mixed_precision_holds_all_but_statistics_in_half_precision(ranks: list[dict[str, Any]], name: str) -> None:
    mixed = ranks[0][f"{name} mixed"]
    assert mixed["held"] == {"torch.bfloat16"}
    assert mixed["statistics"] == {"torch.float32"}
    assert len(mixed["losses"]) == 2
    if name in NAMES:
        assert mixed["losses"] == pytest.approx(ranks[0][f"{name} zero3"]["losses"][:2], rel=0.05)


def test_the_network_stays_on_its_device(ranks: list[dict[str, Any]]) -> None:
    assert all(rank[key]["home"] for rank in ranks for key in ("ei zero3", "cut off", "mdf mixed"))


@pytest.mark.parametrize(("trained", "size"), [(0, 2), (1, 2), (7, 8), (8, 8), (10**9 + 1, 50_000_000)])
def test_buckets_are_even_and_no_larger_than_needed(trained: int, size: int) -> None:
    section = fitted(deepspeed_config(TrainerOptions(strategy="zero2", devices=2)), trained)["zero_optimization"]
    assert (section["reduce_bucket_size"], section["allgather_bucket_size"]) == (size, size)


def test_each_case_is_predicted_once(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for kind in ("ddp", "zero3"):
            assert rank[f"ei {kind}"]["cases"] == sorted(str(i) for i in range(CASES))


def test_a_state_is_loaded_into_a_live_parted_network_and_used(ranks: list[dict[str, Any]]) -> None:
    first = ranks[0]
    torch.testing.assert_close(first["spoilt"]["found"], first["spoilt"]["wanted"], rtol=0, atol=0)
    torch.testing.assert_close(first["back"]["state"], first["ei zero3"]["state"], rtol=0, atol=0)
    torch.testing.assert_close(first["back"]["logits"], first["ei zero3"]["logits"], rtol=0, atol=0)
    assert first["base again"] == first["ei zero3"]["base"]


@pytest.mark.parametrize(
    ("whole", "cut", "on"), [("ei zero3", "cut off", "gone on"), ("ei zero3", "zero2", "zero2 on")]
)
def test_going_on_is_exact(ranks: list[dict[str, Any]], whole: str, cut: str, on: str) -> None:
    first = ranks[0]
    assert len(first[cut]["losses"]) == len(first[on]["losses"]) == 2
    assert first[cut]["losses"] + first[on]["losses"] == first[whole]["losses"]
    torch.testing.assert_close(first[on]["state"], first[whole]["state"], rtol=1e-6, atol=1e-7)


def test_checkpoints_hold_what_was_trained_and_that_exactly(ranks: list[dict[str, Any]], folder: Path) -> None:
    last = consolidate(folder / "ei" / "zero3" / "last.ckpt")
    wanted = ranks[0]["ei zero3"]["state"]
    assert set(last["state_dict"]) == set(wanted)
    torch.testing.assert_close({name: last["state_dict"][name] for name in wanted}, wanted, rtol=0, atol=0)
    size = sum(path.stat().st_size for path in (folder / "ei" / "zero3" / "last.ckpt").rglob("*.pt"))
    trained = sum(value.numel() * 4 for value in wanted.values())
    assert size < 3 * trained + 300_000  # values and two means of AdamW; the base is as large as what is trained


@pytest.mark.parametrize(("cut", "kind"), [("cut", "cut off"), ("zero2", "zero2")])
def test_one_process_goes_on_from_the_parts_of_two(
    ranks: list[dict[str, Any]], alone: dict[str, dict[str, Any]], folder: Path, cut: str, kind: str
) -> None:
    shutil.rmtree(folder / cut)
    shutil.copytree(folder / f"{cut} before", folder / cut)
    on = train("ei", "auto", folder / cut)
    assert (folder / cut / "last.ckpt").is_file()
    assert (folder / cut / "best.ckpt").is_file()
    assert ranks[0][kind]["losses"] + on["losses"] == pytest.approx(alone["ei"]["losses"], rel=1e-5)
    torch.testing.assert_close(on["state"], alone["ei"]["state"], rtol=1e-4, atol=1e-5)
    reached = checkpoints.read(folder / cut / "last.ckpt", optimizer=True)
    plain = checkpoints.read(folder / "ei" / "auto" / "last.ckpt", optimizer=True)
    assert reached["lr_schedulers"] == plain["lr_schedulers"]
    assert reached["optimizer_states"][0]["param_groups"] == plain["optimizer_states"][0]["param_groups"]
    for number, own in plain["optimizer_states"][0]["state"].items():
        torch.testing.assert_close(reached["optimizer_states"][0]["state"][number], own, rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("ranks")
def test_another_number_of_processes_is_refused_in_one_sentence(folder: Path) -> None:
    last = folder / "ei" / "zero3" / "last.ckpt"
    with pytest.raises(
        UserError, match="written by 2 processes, and ZeRO can't go on from it with 3: give it 2 devices"
    ):
        checkpoints.to_resume(last, TrainerOptions(strategy="zero3", devices=3), 3)
    assert checkpoints.to_resume(last, TrainerOptions(strategy="zero3", devices=2), 2) == last


def test_the_file_of_a_plain_run_is_refused_by_zero(alone: dict[str, dict[str, Any]], folder: Path) -> None:
    with pytest.raises(UserError, match="written without ZeRO"):
        checkpoints.to_resume(folder / "ei" / "auto" / "last.ckpt", options("zero3"), 1)
