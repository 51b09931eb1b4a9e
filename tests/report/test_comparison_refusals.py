"""What can't be compared: other cases, other labels, fewer cases, options that make no sense."""

from dataclasses import replace

import pytest
from contestants import contestants

from fusionbench.errors import UserError
from fusionbench.report.comparison import compare

ABC = ["a", "b", "c"]


def changed(method, **columns):
    """Return a method whose first two cases say something else."""
    table = method.runs[0].copy()
    for name, value in columns.items():
        table.loc[:1, name] = value
    return replace(method, name="b", runs=(table,))


def test_methods_must_share_cases_labels_and_groups():
    first = contestants({"a": 1.0})[0]
    names = first.runs[0]["case"].replace({f"case000{n}": f"other{n}" for n in range(4)})
    others = {
        r"not tested on the same cases: 4 cases \(such as 'case0000', 'case0001', 'case0002'\) only in the former, "
        r"4 cases \(such as 'other0', 'other1', 'other2'\) only in the latter": replace(
            first, name="b", runs=(first.runs[0].assign(case=names),)
        ),
        r"'a' and b \(seed 0\) disagree on the group of 2 cases": replace(
            first, name="b", runs=(changed(first, group="x").runs[0].iloc[:50],)
        ),
        r"disagree on the group of 2 cases \(such as 'case0000', 'case0001'\)": changed(first, group="x"),
        r"'a' and b \(seed 0\) disagree on the label of 1 case \(such as": changed(
            first, target=[first.runs[0]["target"][0], (first.runs[0]["target"][1] + 1) % 3]
        ),
        r"predicts case 'x' twice": changed(first, case="x"),
        r"2 methods are called 'a'": first,
        r"one run for each seed": replace(first, name="b", seeds=(0, 1)),
    }
    for said, other in others.items():
        with pytest.raises(UserError, match=said):
            compare([first, other], ABC, False)


def test_a_method_that_saw_fewer_cases_stands_in_no_pair():
    first, second, third = contestants({"a": 1.0, "b": 2.0, "c": 9.0})
    fewer = replace(third, runs=(third.runs[0].iloc[4:],))
    found = compare([fewer, first, second], ABC, False)
    assert found.pairs == compare([first, second], ABC, False).pairs
    assert list(found.scores) == ["a", "b"]
    score, low, high = compare([fewer], ABC, False).scores["c"]
    assert (
        f"c (mAP {score:.3f} [{low:.3f}, {high:.3f}]) saw 56 of the 60 cases: it stands in no pair" in found.notes[-1]
    )
    with pytest.raises(UserError, match="'c' was tested on 56 of the cases only"):
        compare([fewer, first, second], ABC, False, pairs=[("a", "c")])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "mAPP"}, "did you mean 'mAP'"),
        ({"margin": -0.1}, "'margin' must be at least 0"),
        ({"level": 95}, "'level'"),
        ({"resamples": 10}, "'resamples' must be at least 100"),
        ({"pairs": [("a", "bb")]}, "no method 'bb' to compare; did you mean 'b'"),
    ],
)
def test_refuses(options, said):
    with pytest.raises(UserError, match=said):
        compare(contestants({"a": 1.0, "b": 1.0}), ABC, False, **options)
    with pytest.raises(UserError, match="no method to compare"):
        compare([], ABC, False)
