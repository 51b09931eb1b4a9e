"""Tensors read by name from each format that a file of weights has had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fusionbench.encoders.checkpoint import Checkpoint
from fusionbench.errors import UserError


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_are_read_in_the_old_format_too(tmp_path: Path, zipped: bool) -> None:
    state = {"norm.weight": torch.randn(3), "layers.0.weight": torch.randn(2, 3)}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    found = Checkpoint("x", tmp_path).read({"own": ("layers.0.weight", torch.Size((2, 3)))}, torch.float32)
    assert found.keys() == {"own"}
    assert torch.equal(found["own"], state["layers.0.weight"])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_something_else_is_not_run(tmp_path: Path, zipped: bool) -> None:
    torch.save({"norm.weight": Path()}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="could not be read: Weights only load failed"):
        Checkpoint("x", tmp_path).read({"own": ("norm.weight", torch.Size((3,)))}, torch.float32)
