"""Files appear whole or not at all, whatever writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fusionbench.files import replacing, write_bytes, write_tensors


def interrupted(path: Path) -> None:
    """Write half a file."""
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt


def test_tensors_are_written_with_what_the_head_says(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1, dtype=torch.bfloat16)}
    path = write_tensors(tmp_path / "new" / "some.safetensors", tensors, {"view": "left"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"view": "left"}
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_error_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "kept", b"before")
    with pytest.raises(ValueError, match="contiguous"):
        write_tensors(path, {"a": torch.ones(2, 3).T})
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
