"""Memory without ZeRO, and what is chosen among the ways of sharing the work, against sums by hand."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from fusionbench.plan.choice import Limits, first_that_fits, nearest_to_fit, overrides, ways
from fusionbench.plan.memory import Memory
from fusionbench.plan.need import Need
from fusionbench.plan.optimizer import optimizer_cost
from fusionbench.plan.sizes import Sizes
from fusionbench.sections import TrainerOptions

ADAM = torch.optim.AdamW
MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
SIZES = Sizes(4 * 10**9, 10**8, 16 * 10**9, 4 * 10**9, ((10**6,) * 1000,))


def need(activations=7, on_gpu=False, **options):
    found = TrainerOptions(**options)
    return Memory(SIZES, ADAM, on_gpu).need(found, activations)


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
    assert need(on_gpu=True).activations == pytest.approx(4e9, rel=0.05)
    assert need().activations == round(cost.one_by_one * 10**6)


def test_one_device_and_ddp_hold_everything_and_ddp_its_buckets():
    alone, shared = need(10**8), need(10**8, strategy="ddp", devices=4)
    assert (alone.weights, alone.gradients, alone.optimizer) == (16e9, 4e9, 8e9)
    assert (shared.weights, shared.gradients, shared.optimizer) == (16e9, 8e9, 8e9)
    assert shared.total == 32e9 + 1e8


def test_sizes_are_those_of_the_network_and_of_the_optimizers_groups():
    network = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20)).to(torch.bfloat16)
    network[0].requires_grad_(False)
    found = Sizes.of(network)
    buffers = 2 * 20 * 2 + 8
    assert (found.trained, found.all, found.largest, found.module) == (40, 260, 20, 220)
    assert (found.weight_bytes, found.gradient_bytes) == (260 * 2 + buffers, 80)
    assert (found.buffer_bytes, found.buffers) == (buffers, 40)
    parted = Sizes.of(network, [{"params": [network[1].bias], "lr": 1.0}, {"params": [network[1].weight]}])
    assert (found.groups, parted.groups) == (((20, 20),), ((20,), (20,)))


def test_sub_groups_are_closed_when_they_are_full_and_never_hold_two_groups():
    sizes = Sizes(0, 0, 0, 0, ((10, 11, 30, 2), (4,)))
    assert sizes.sub_groups(10, 2) == [11, 15, 1, 2]
    assert sizes.sub_groups(1000, 1) == [53, 4]


def of(total, main=0, **options):
    return Need(TrainerOptions(**options), total, 0, 0, 0, main)


EACH = [of(100, strategy="ddp"), of(80, strategy="zero2"), of(60, strategy="zero3"), of(10, 50, strategy="zero3")]


def test_the_least_communication_that_fits_is_taken():
    def first(gpu, main=1000):
        return first_that_fits(lambda cases: EACH, 4, Limits(gpu, main))

    assert first(90).need is EACH[1]
    assert first(89).need is EACH[1]
    assert first(88).need is EACH[2]
    assert first(20).need is EACH[3]
    assert first(20, math.inf).need is EACH[3]
    assert first(20, 49) is None


def test_what_is_nearest_to_fitting_tells_which_memory_is_short():
    main, gpu = Limits(20, 49), Limits(5, 1000)
    assert nearest_to_fit(EACH, main) is EACH[3]
    assert main.holds(EACH[3])
    assert nearest_to_fit(EACH, gpu) is EACH[3]
    assert not gpu.holds(EACH[3])
    more = of(9, 70, strategy="zero3")
    assert nearest_to_fit([*EACH, more], main) is EACH[3]
    assert nearest_to_fit([*EACH, more], gpu) is more


def test_a_smaller_micro_batch_is_taken_where_nothing_else_fits_and_accumulated():
    given = TrainerOptions(devices=2, accumulate=3, strategy="zero2")
    each = partial(of, strategy="ddp", devices=2, accumulate=3)
    choice = first_that_fits(lambda cases: [each(10 * cases)], 6, Limits(24, 0))
    assert (choice.cases, choice.parts) == (2, 3)
    assert overrides(choice, given, 12) == ["trainer.strategy=ddp", "trainer.accumulate=9", "data.batch_size=4"]


def test_an_epoch_of_a_limited_number_of_batches_keeps_its_cases_when_they_are_cut():
    given = TrainerOptions(limit_train_batches=10)
    cut = first_that_fits(lambda cases: [of(10 * cases, limit_train_batches=10)], 6, Limits(24))
    whole = first_that_fits(lambda cases: [of(10 * cases, limit_train_batches=10)], 6, Limits(240))
    told = overrides(cut, given, 6)
    assert told == ["trainer.accumulate=3", "trainer.limit_train_batches=30", "data.batch_size=2"]
    assert 30 * 2 == 10 * 6
    assert overrides(whole, given, 6) == []


def test_a_folder_on_a_disk_goes_with_all_that_is_offloaded_alone():
    given = TrainerOptions(strategy="zero3", offload="all", offload_folder="/fast", devices=2)
    each = ways(given)
    assert [way.offload_folder for way in each] == [None] * 5 + ["/fast"]
    told = overrides(first_that_fits(lambda cases: [of(1, **vars(each[0]))], 1, Limits(9)), given, 2)
    assert told == ["trainer.strategy=ddp", "trainer.offload=none", "trainer.offload_folder=null"]


def test_the_ways_come_in_the_order_in_which_more_is_sent():
    assert [way.strategy for way in ways(TrainerOptions())] == ["auto", "zero2", "zero3", "zero2", "zero3", "zero3"]
