"""Memory under each way of sharing the work, against sums by hand."""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from fusionbench.plan.choice import first_that_fits, overrides, ways
from fusionbench.plan.memory import Memory, Need, Sizes
from fusionbench.plan.optimizer import optimizer_cost
from fusionbench.sections import TrainerOptions

ADAM = torch.optim.AdamW
MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
BUCKET, GATHERED = 50_000_000, 1_050_000_000  # in numbers


def sizes(trained=1_000_000_000, frozen=3_000_000_000):
    return Sizes(trained, trained + frozen, 10**8, 10**8, 4 * (trained + frozen), 4 * trained)


def needs(activations=7, optimizer=ADAM, on_gpu=False, **options):
    memory = Memory(dataclasses.replace(sizes(), largest=0), optimizer, on_gpu)
    found = {}
    for way in ways(TrainerOptions(**options)):
        found[way.strategy, way.offload] = memory.need(way, activations)
    return found


@pytest.mark.parametrize(
    ("make", "dtype", "states"),
    [
        (ADAM, torch.float32, 8),
        (ADAM, torch.bfloat16, 4),
        (MOMENTUM, torch.float32, 4),
        (partial(torch.optim.SGD, lr=0.1), torch.float32, 0),
    ],
)
def test_states_are_counted_from_the_optimizer_itself(make, dtype, states):
    cost = optimizer_cost(make, dtype)
    assert cost.states == states
    assert cost.at_once >= 0


def test_stepping_together_needs_room_for_all_and_one_by_one_for_the_largest():
    cost = optimizer_cost(ADAM, torch.float32)
    assert cost.at_once == pytest.approx(4, abs=0.1)
    assert 4 <= cost.one_by_one <= 12
    assert needs(on_gpu=True)["auto", "none"].activations == pytest.approx(4e9, rel=0.05)
    assert needs()["auto", "none"].activations == 7


def test_one_device_and_ddp_hold_everything_and_ddp_its_buckets():
    alone, shared = needs()["auto", "none"], needs(devices=4)["ddp", "none"]
    assert (alone.weights, alone.gradients, alone.optimizer) == (16e9, 4e9, 8e9)
    assert (shared.weights, shared.gradients, shared.optimizer) == (16e9, 8e9, 8e9)
    assert shared.total == 32e9 + 7


def test_zero_shares_out_gradients_states_and_in_stage_3_parameters():
    """In half precision: 2 bytes of weights and gradients, a copy of 4 and AdamW's 8 of what is trained."""
    found = needs(devices=4, precision="bf16-true")
    two, three = found["zero2", "none"], found["zero3", "none"]
    assert two.weights == 8e9
    assert two.optimizer == three.optimizer == 12e9 / 4
    assert two.gradients == 2e9 / 4 + 2 * BUCKET * 2
    assert three.gradients == 2e9 / 4 + BUCKET * 2
    assert three.weights == 8e9 / 4 + 2 * GATHERED
    assert two.main == three.main == 0


def test_offload_moves_states_and_parameters_to_the_main_memory_of_a_node():
    found = needs(devices=4, num_nodes=2, precision="bf16-true")
    states, whole = found["zero3", "optimizer"], found["zero3", "all"]
    assert states.optimizer == whole.optimizer == 0
    assert states.main == 4 * (12e9 + 2e9 + 4e9) / 8
    assert whole.main == states.main + 4 * 8e9 / 8
    assert whole.weights == 2 * GATHERED
    assert states.weights == 8e9 / 8 + 2 * GATHERED


def test_a_small_model_is_gathered_once_and_no_more():
    small = Memory(sizes(trained=10**6, frozen=10**6), ADAM, on_gpu=False)
    need = small.need(TrainerOptions(strategy="zero3", devices=2), 0)
    assert need.weights == 4 * 2 * 10**6 + 4 * 10**6


def test_float32_needs_no_copy_in_stage_3():
    found = needs(devices=4)
    assert found["zero3", "none"].optimizer == 8e9 / 4
    assert found["zero2", "none"].optimizer == 12e9 / 4


def test_sizes_are_those_of_the_network():
    network = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20)).to(torch.bfloat16)
    network[0].requires_grad_(False)
    found = Sizes.of(network)
    buffers = 2 * 20 * 2 + 8
    assert (found.trained, found.all, found.largest, found.module) == (40, 260, 20, 220)
    assert (found.weight_bytes, found.gradient_bytes) == (260 * 2 + buffers, 80)


def of(total, main=0, **options):
    return Need(TrainerOptions(**options), total, 0, 0, 0, main)


def test_the_least_communication_that_fits_is_taken():
    each = [of(100, strategy="ddp"), of(80, strategy="zero2"), of(60, strategy="zero3"), of(10, 50, strategy="zero3")]
    assert first_that_fits(lambda cases: each, 4, 90, 1000).need is each[1]
    assert first_that_fits(lambda cases: each, 4, 89, 1000).need is each[1]
    assert first_that_fits(lambda cases: each, 4, 88, 1000).need is each[2]
    assert first_that_fits(lambda cases: each, 4, 20, 1000).need is each[3]
    assert first_that_fits(lambda cases: each, 4, 20, 49) is None


def test_a_smaller_micro_batch_is_taken_where_nothing_else_fits_and_accumulated():
    given = TrainerOptions(devices=2, accumulate=3, strategy="zero2")
    choice = first_that_fits(lambda cases: [of(10 * cases, strategy="ddp", devices=2, accumulate=3)], 6, 24, 0)
    assert (choice.cases, choice.parts) == (2, 3)
    assert overrides(choice, given, 12) == ["trainer.strategy=ddp", "trainer.accumulate=9", "data.batch_size=4"]
