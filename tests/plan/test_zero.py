"""Memory under ZeRO against sums by hand; AdamW keeps 8 bytes a number and on a GPU takes 4 more in a step."""

import dataclasses

import pytest

from fusionbench.plan.optimizer import OptimizerCost
from fusionbench.plan.sizes import Sizes
from fusionbench.plan.zero import Zero
from fusionbench.sections import TrainerOptions

COST = OptimizerCost(states=8, at_once=4, one_by_one=6)
BUCKET, GATHERED = 50_000_000, 1_050_000_000  # in numbers
# Ten thousand million numbers in parameters of a hundred million: 2.5e9 numbers for each of four processes.
LARGE = Sizes(10**10, 10**8, 4 * 10**10, 4 * 10**10, ((10**8,) * 100,))
HALVES = Sizes(10**10, 10**8, 4 * 10**10, 4 * 10**10, ((10**8,) * 50, (10**8,) * 50))
FROZEN = Sizes(4 * 10**9, 10**8, 16 * 10**9, 4 * 10**9, ((10**6,) * 1000,))
SMALL = Sizes(2 * 10**6, 10**6, 8 * 10**6, 4 * 10**6, ((10**6,),))


def need(sizes, activations=0, on_gpu=True, **options):
    given = {"devices": 4, "precision": "bf16-mixed", **options}
    return Zero(TrainerOptions(**given), sizes, COST, on_gpu).need(activations)


def test_stage_3_steps_one_sub_group_after_the_other():
    """Sub-groups of 1e9, 1e9 and 5e8 numbers: a step takes 8e9 bytes at most, 7.45 GiB, not 20e9 for 2.5e9 numbers.

    Of 1e9 numbers: a float32 gradient of 4e9 and AdamW's 4e9; laying the gradient flat takes 2e9 + 4e9 before.
    Always: parameters 2 · 1e10 / 4, copy and states 12 · 2.5e9, gradients 2 · 2.5e9, a bucket 2 · 5e7.
    """
    found = need(LARGE, 3 * 10**9, strategy="zero3")
    backward = 2 * GATHERED + 3e9 + 2 * 10**8  # and the gradient of a parameter too large for a bucket
    assert found.optimizer == 30e9
    assert found.gradients == 5e9 + 2 * BUCKET
    assert backward < 8e9
    assert found.total == 5e9 + 30e9 + 5e9 + 2 * BUCKET + 8e9
    gone = 5 * 10**7  # of activations of 1e10 when 5e7 of 1e10 gradients are there
    assert need(LARGE, 10**10, strategy="zero3").total == found.total - 8e9 + backward + 7e9 - gone


def test_stage_2_steps_a_whole_group_of_the_optimizer_at_once():
    """All in one group: gradients of 5e9 and 2.5e9 · (2 + 4), then 2.5e9 · (4 + 4); in two, each half of it.

    Of two, the first steps while the gradients of both are still there: 5e9 + 1.25e9 · 8. Buckets are gone.
    """
    always = 2e10 + 30e9
    assert need(LARGE, 3 * 10**9, strategy="zero2").total == always + 20e9
    assert need(HALVES, 3 * 10**9, strategy="zero2").total == always + 15e9


def test_stage_2_has_two_buckets_and_what_is_sent_beside_the_activations():
    """A gradient of 1e8 numbers is larger than a bucket, so it is what is sent; 1.5e8 bytes of activations are gone."""
    found = need(LARGE, 3 * 10**10, strategy="zero2")
    assert found.gradients == 5e9 + 2 * 2 * BUCKET
    assert found.total == 2e10 + 30e9 + 5e9 + 4 * BUCKET + 3e10 + 2e8 - 1.5e8
    summed = need(LARGE, 3 * 10**10, strategy="zero2", accumulate=2)
    assert summed.total == found.total + 5e9


def test_zero_shares_out_gradients_states_and_in_stage_3_parameters():
    two, three = (need(FROZEN, strategy=f"zero{stage}") for stage in (2, 3))
    assert two.weights == 8e9
    assert two.optimizer == three.optimizer == 12e9 / 4
    assert two.gradients == 2e9 / 4 + 2 * BUCKET * 2
    assert three.gradients == 2e9 / 4 + BUCKET * 2
    assert three.weights == 8e9 / 4 + 2 * GATHERED
    assert two.main == three.main == 0


def test_buffers_are_whole_in_each_process():
    bytes_ = 4 * 10**8
    sizes = dataclasses.replace(FROZEN, weight_bytes=FROZEN.weight_bytes + bytes_, buffer_bytes=bytes_, buffers=10**8)
    for precision, each in (("bf16-mixed", 2 * 10**8), ("32-true", 4 * 10**8)):
        for strategy, offload in (("zero2", "none"), ("zero3", "none"), ("zero3", "all")):
            options = {"precision": precision, "strategy": strategy, "offload": offload}
            assert need(sizes, **options).weights - need(FROZEN, **options).weights == each


def test_float32_needs_no_copy_in_stage_3():
    two, three = (need(FROZEN, strategy=f"zero{stage}", precision="32-true") for stage in (2, 3))
    assert three.optimizer == 8e9 / 4
    assert two.optimizer == 12e9 / 4


def test_a_small_model_is_gathered_whole_beside_the_buffer_it_comes_in():
    """Before the only bucket is sent, activations are gone."""
    found = need(SMALL, 10**9, strategy="zero3", devices=2, precision="32-true")
    assert found.weights == 4 * 10**6 + 2 * 8 * 10**6
    assert found.gradients == 2 * 10**6 + 4 * 10**6
    assert found.activations == 10**9


def test_one_process_gathers_nothing():
    alone = need(SMALL, 10**9, strategy="zero3", devices=1)
    assert alone.weights == 2 * 2 * 10**6
    moved = need(SMALL, 10**9, strategy="zero3", devices=1, offload="all")
    assert moved.weights == 2 * 2 * 10**6


def test_a_bucket_that_nothing_is_written_to_takes_memory_on_a_gpu_alone():
    kinds = [need(SMALL, strategy="zero2", on_gpu=on_gpu).gradients for on_gpu in (True, False)]
    assert kinds[0] - kinds[1] == 2 * 10**6


def test_offload_moves_states_and_parameters_to_the_main_memory_of_a_node():
    """Of each process: copy and states 12, gradients 2 and, in float32, 4; a step by the CPU takes 6 of a sub-group."""
    states, whole = (
        need(FROZEN, strategy="zero3", offload=offload, num_nodes=2, on_gpu=False) for offload in ("optimizer", "all")
    )
    own = 10**9 / 8
    assert states.optimizer == whole.optimizer == 0
    assert states.main == 4 * own * (12 + 2 + 4 + 6)
    assert whole.main == states.main + 4 * 8e9 / 8
    assert whole.weights == 2 * GATHERED
    assert states.weights == 8e9 / 8 + 2 * GATHERED
    assert states.gradients == 2 * BUCKET


def test_stage_2_offloads_the_same_with_a_buffer_for_the_largest_gradient():
    own = 10**9 / 4
    found = need(FROZEN, strategy="zero2", offload="optimizer", on_gpu=False)
    assert found.gradients == 2 * 2 * BUCKET + 2 * 10**6
    assert found.main == 4 * (own * (12 + 2 + 4 + 6) + 2 * 10**6)
    summed = need(FROZEN, strategy="zero2", offload="optimizer", on_gpu=False, accumulate=2)
    assert summed.main == found.main + 4 * own * 2


def test_torch_rounds_page_locked_memory_up_to_a_power_of_two():
    """5e8 bytes of gradients and 1e9 of them in float32, on each of four processes."""
    options = {"strategy": "zero3", "offload": "optimizer"}
    loose, locked = (need(FROZEN, **options, on_gpu=on_gpu).main for on_gpu in (False, True))
    assert locked - loose == 4 * (2**29 - 5 * 10**8 + 2**30 - 10**9)


def test_parameters_on_a_disk_leave_buffers_in_main_memory():
    kept, moved = (
        need(FROZEN, strategy="zero3", offload=offload, offload_folder=folder, on_gpu=False).main
        for offload, folder in (("optimizer", None), ("all", "/fast"))
    )
    assert moved - kept == pytest.approx(4 * 2 * (10**9 / 4 + (1 + 4) * 10**8 / 4))


def test_on_a_cpu_a_second_bucket_takes_what_of_it_is_written():
    kinds = [need(Sizes(6 * 10**7, 0, 0, 0, ((10**6,) * 60,)), strategy="zero2", on_gpu=on_gpu) for on_gpu in (1, 0)]
    assert [kind.gradients for kind in kinds] == [2 * (15 * 10**6 + 2 * BUCKET), 2 * (15 * 10**6 + 60 * 10**6)]
