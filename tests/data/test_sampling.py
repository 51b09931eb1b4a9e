"""The samplers draw what early intervention draws, the same for any number of ranks."""

from collections import Counter

import numpy as np
import pytest

from fusionbench.data.sampling import EpochSampler, EvalSampler
from fusionbench.errors import UserError

DERM7PT = np.repeat([0, 1], [19, 256])  # BCC and NEV


def counts(sampler: EpochSampler) -> Counter[int]:
    return Counter(index for index, _ in sampler)


def test_balanced_repeats_as_early_intervention_does():
    drawn = counts(EpochSampler(DERM7PT, mode="balanced", seed=0))
    bcc = [drawn[index] for index in range(19)]
    assert sorted(bcc) == [13] * 10 + [14] * 9
    assert [drawn[index] for index in range(19, 275)] == [1] * 256


def test_the_remainder_is_drawn_anew_each_epoch():
    sampler = EpochSampler(DERM7PT, mode="balanced", seed=0)
    first = counts(sampler)
    sampler.set_epoch(1)
    assert counts(sampler) != first
    sampler.set_epoch(0)
    assert counts(sampler) == first


def test_multi_label_balances_each_set_of_labels():
    labels = np.array([[1, 0], [1, 0], [1, 0], [1, 1], [0, 0]])
    drawn = counts(EpochSampler(labels, mode="balanced", seed=0))
    assert drawn == {0: 1, 1: 1, 2: 1, 3: 3, 4: 3}


def test_shuffle_draws_every_case_once_in_a_new_order():
    sampler = EpochSampler(DERM7PT, mode="shuffle", seed=0)
    first = [index for index, _ in sampler]
    sampler.set_epoch(1)
    second = [index for index, _ in sampler]
    assert sorted(first) == sorted(second) == list(range(275))
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("mode", ["balanced", "shuffle"])
def test_draws_depend_on_seed_and_epoch_alone(mode):
    sampler = EpochSampler(DERM7PT, mode=mode, seed=3)
    again = EpochSampler(DERM7PT, mode=mode, seed=3)
    assert list(sampler) == list(sampler) == list(again)
    assert set(sampler).isdisjoint(EpochSampler(DERM7PT, mode=mode, seed=4))


def test_draw_seeds_differ_between_occurrences_cases_and_epochs():
    sampler = EpochSampler(DERM7PT, mode="balanced", seed=0)
    seeds = [seed for _, seed in sampler]
    sampler.set_epoch(1)
    seeds += [seed for _, seed in sampler]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("mode", ["balanced", "shuffle"])
def test_ranks_share_an_epoch_in_equal_parts(mode, world_size):
    whole = list(EpochSampler(DERM7PT, mode=mode, seed=0))
    ranks = [EpochSampler(DERM7PT, mode=mode, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [list(rank) for rank in ranks]
    assert {len(part) for part in parts} == {len(ranks[0])}
    assert set().union(*parts) == set(whole)
    assert 0 <= sum(map(len, parts)) - len(whole) < world_size


def test_mistakes_are_told():
    with pytest.raises(UserError, match="did you mean 'balanced'"):
        EpochSampler(DERM7PT, mode="balance", seed=0)
    with pytest.raises(UserError, match="no cases"):
        EpochSampler(np.array([], int), mode="shuffle", seed=0)


def test_eval_keeps_the_order():
    assert list(EvalSampler(3)) == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize(("n", "world_size"), [(7, 3), (2, 5), (6, 3), (0, 2)])
def test_eval_ranks_cover_all_cases_in_equal_parts(n, world_size):
    parts = [EvalSampler(n, rank, world_size) for rank in range(world_size)]
    assert {index for part in parts for index, _ in part} == set(range(n))
    assert {len(list(part)) for part in parts} == {len(parts[0])}
    assert len(parts[0]) == -(-n // world_size)
