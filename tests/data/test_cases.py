import numpy as np
import pytest
import torch

from fusionbench.data.cases import CaseData, Cases, choose_images, choose_slices, collate, join_pictures
from fusionbench.types import ModalitySpec


@pytest.mark.parametrize(("count", "wanted"), [(5, 4), (24, 4), (4, 4), (2, 4), (1, 4), (61, 3), (30, 1)])
def test_slices_lie_at_equal_steps_by_the_printed_formula(count, wanted):
    step = (count - 1) / wanted
    plain = [round(step / 2 + i * step) for i in range(wanted)]
    assert choose_slices(count, wanted, None).tolist() == plain


def test_jitter_moves_each_slice_by_up_to_half_a_step_and_reaches_it():
    drawn = np.stack([choose_slices(41, 4, np.random.default_rng(seed)) for seed in range(300)])
    for i, column in enumerate(drawn.T):
        assert set(column) == set(range(10 * i, 10 * (i + 1) + 1))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_jittered_slices_stay_in_the_volume(count):
    drawn = np.stack([choose_slices(count, 4, np.random.default_rng(seed)) for seed in range(100)])
    assert drawn.min() >= 0
    assert drawn.max() <= count - 1


def test_evaluation_takes_the_first_pictures_and_training_any():
    assert choose_images(3, 1, None).tolist() == [0]
    assert choose_images(2, 5, None).tolist() == [0, 1, 0, 1, 0]
    drawn = [choose_images(3, 2, np.random.default_rng(seed)).tolist() for seed in range(60)]
    assert {first for first, _ in drawn} == {0, 1, 2}
    assert all(first != second for first, second in drawn)


def test_a_grey_picture_beside_a_colour_one_gets_three_equal_channels():
    grey, colour = np.full((1, 2, 2, 1), 7, np.uint8), np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    joined = join_pictures([grey, colour])
    assert joined.shape == (2, 2, 2, 3)
    assert (joined[0] == 7).all()
    assert np.array_equal(joined[1], colour[0])
    assert join_pictures([grey, grey]).shape == (2, 2, 2, 1)


PICTURES = {name: np.full((1, 4, 4, 3), value, np.uint8) for name, value in {"a": 10, "b": 20, "c": 30}.items()}
VOLUME = np.arange(9, dtype=np.uint8).repeat(16).reshape(9, 4, 4, 1)


def to_tensor(pictures, seed):
    """Stand in for the transform: the values and the seed, seen in the result."""
    return torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)


def make(train=False, rows=(0, 1)):
    specs = {
        "photo": ModalitySpec("image", size=4, instances=2),
        "scan": ModalitySpec("slices", size=4, instances=2),
        "notes": ModalitySpec("text"),
        "labs": ModalitySpec("table", columns=("age", "crp")),
    }
    cells = {
        "photo": [("a", "b", "c"), ()],
        "scan": [("volume",), ()],
        "notes": [[2, 7, 8, 3], [2, 9, 9, 9, 3]],
        "labs": [np.array([0.5, -1], np.float32), None],
    }
    present = np.array([[True, True, True, True], [False, False, False, False]])
    data = CaseData(
        *(specs, cells, present, np.array([1, 0]), ["c0", "c1"], ["p0", "p1"]),
        lambda name, item: VOLUME if item == "volume" else PICTURES[item],
        {"notes": 5},
    )
    return Cases(data, np.array(rows), {"photo": to_tensor, "scan": to_tensor}, train)


def test_a_case_holds_its_pictures_slices_tokens_and_columns():
    case = make()[0, 0]
    assert case.inputs["photo"][:, 0, 0, 0].tolist() == [10, 20]
    assert case.inputs["scan"][:, 0, 0, 0].tolist() == choose_slices(9, 2, None).tolist()
    assert case.inputs["notes"].tolist() == [2, 7, 8, 3]
    assert case.inputs["labs"].tolist() == [0.5, -1]
    assert (case.case_id, case.group_id, case.target.item()) == (["c0"], ["p0"], 1)


def test_a_case_may_hold_a_grey_picture_and_a_colour_one(monkeypatch):
    monkeypatch.setitem(PICTURES, "b", np.full((1, 4, 4, 1), 99, np.uint8))
    assert make()[0, 0].inputs["photo"][:, :, 0, 0].tolist() == [[10] * 3, [99] * 3]


def test_what_is_absent_is_zeros_of_the_right_shape():
    case = make()[1, 0]
    assert case.present.tolist() == [False] * 4
    assert case.inputs["photo"].shape == case.inputs["scan"].shape == (2, 3, 4, 4)
    assert not case.inputs["photo"].any()
    assert not case.inputs["scan"].any()
    assert case.inputs["notes"].tolist() == [5]
    assert case.inputs["labs"].tolist() == [0, 0]


def test_positions_count_within_the_split():
    assert make(rows=(1,))[0, 0].case_id == ["c1"]
    assert len(make(rows=(1,))) == 1


def test_in_training_the_seed_alone_says_which_pictures():
    cases = make(train=True)
    drawn = [cases[0, seed].inputs["photo"][:, 0, 0, 0].tolist() for seed in range(20)]
    assert drawn == [cases[0, seed].inputs["photo"][:, 0, 0, 0].tolist() for seed in range(20)]
    assert len({tuple(pair) for pair in drawn}) > 3
    still = make(train=False)
    assert len({tuple(still[0, seed].inputs["photo"][:, 0, 0, 0].tolist()) for seed in range(20)}) == 1


def test_a_batch_pads_its_texts_to_the_longest_with_the_pad_token():
    cases = make()
    cases.data.present[1, 2] = True
    batch = collate({"notes": 5})([cases[0, 0], cases[1, 0]])
    assert batch.inputs["notes"].tolist() == [[2, 7, 8, 3, 5], [2, 9, 9, 9, 3]]
    assert batch.inputs["photo"].shape == (2, 2, 3, 4, 4)
    assert batch.inputs["labs"].dtype == torch.float32
    assert batch.present.tolist() == [[True] * 4, [False, False, True, False]]
    assert (batch.case_id, batch.group_id, batch.target.tolist()) == (["c0", "c1"], ["p0", "p1"], [1, 0])
