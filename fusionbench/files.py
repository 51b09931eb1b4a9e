"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside a file's own, to be written to; then move it into place, or drop it at an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name beside its own, then move it into place; return its path."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def link(path: Path, other: Path) -> bool:
    """Give a file a second name, at once in place of what had that name; say whether the disk could."""
    other.parent.mkdir(parents=True, exist_ok=True)
    temporary = other.with_name(f".{other.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
        temporary.replace(other)
    except OSError:  # another disk, or one without such names
        return False
    finally:
        temporary.unlink(missing_ok=True)  # still there where both were the same file already
    return True


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file the same way, out of the tensors' own memory; return its path.

    Args:
        path: Where to.
        tensors: By name, in main memory and contiguous.
        metadata: What else the file's head says.
    """
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, None if metadata is None else dict(metadata))
    return path


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    """Write a value as JSON; keys keep their order, which for modalities means something."""
    write_bytes(path, (json.dumps(value, indent=1, default=str) + "\n").encode())
