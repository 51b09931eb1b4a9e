"""At which layers skips come in: the paper's at its size, the same relative places elsewhere, and bad input."""

from __future__ import annotations

import pytest

from fusionbench.errors import UserError
from fusionbench.fusion.depths import fused_layers

LLAMA = (3, 8, 13, 18, 23, 28, 33, 38)


def test_the_default_is_the_papers_and_elsewhere_the_same_relative_places() -> None:
    assert fused_layers(LLAMA, 4, None) == (3, 18, 28, 38)
    assert fused_layers(range(5), 4, None) == (0, 2, 3, 4)
    assert fused_layers(range(36), 4, None) == (0, 15, 25, 35)
    assert fused_layers((1, 3), 4, None) == (1, 3)
    for count in range(4, 50):
        chosen = fused_layers(range(count), 4, None)
        assert sorted(set(chosen)) == list(chosen)
        assert (len(chosen), chosen[0], chosen[-1]) == (4, 0, count - 1)


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ([4], r"names layer 4, but pictures are read by layers \[3, 8,"),
        ([], "must name 1 to 4 layers"),
        ([8, 3], r"each once and rising, not \[8, 3\]"),
        ([3, 3], "each once and rising"),
        ([3, 8, 13, 18, 23], "must name 1 to 4 layers"),
    ],
)
def test_other_layers_are_refused(chosen: list[int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fused_layers(LLAMA, 4, chosen)
    assert fused_layers(LLAMA, 4, [38]) == (38,)
