"""What of an encoder's node can change a result: its options without those that cannot, files by their content."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionbench.data.images import file_digest
from fusionbench.encoders.weights import weights_path
from fusionbench.layers.skeleton import is_skeleton

NO_EFFECT = frozenset({"checkpointing", "fallback"})
"""Options that change no result."""
_FILES = ("weights", "tokenizer")
# What lies beside weights and is never read. All else counts: a file that counts in vain costs a run, and one that is
# missed a wrong result.
_ASIDE = ("license", "notice", "readme", "use_policy")
_PICTURES_AND_TEXTS = {".html", ".jpeg", ".jpg", ".md", ".pdf", ".png", ".rst", ".svg"}


def identity(encoder: type, options: Mapping[str, Any]) -> str:
    """Return the name of an encoder's class and effective options; one that is left out counts as its default."""
    defaults = {name: option.default for name, option in inspect.signature(encoder).parameters.items()}
    told = {k: v for k, v in effective(options).items() if k not in defaults or v != _plain(k, defaults[k])}
    text = json.dumps([encoder.__name__, told], sort_keys=True, default=str)
    return f"{encoder.__name__}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def effective(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's options as far as they can change a result, also inside an option such as ``vision``.

    Weights and tokenizers that are files become a digest of their content, so that it does not matter where they lie;
    not in a skeleton, which opens none.

    Raises:
        UserError: A file cannot be read, or an asset not be had.
    """
    return {key: _plain(key, value) for key, value in options.items() if key not in NO_EFFECT}


def _plain(key: str, value: object) -> object:
    """Return one option's value."""
    if isinstance(value, Mapping):
        return effective(value)
    if isinstance(value, tuple):
        return list(value)
    if key not in _FILES or not isinstance(value, str) or value in ("hub", "random") or is_skeleton():
        return value
    if value.startswith("asset:") or Path(value).expanduser().exists():
        return content(weights_path(value) or Path(value))
    return value


def content(path: Path) -> str:
    """Return the digest of a file, or of a folder's files but for hidden ones and what is written there for people."""
    inside = sorted(p for p in path.rglob("*") if p.is_file() and _counts(p.relative_to(path)))
    files = inside if path.is_dir() else [path]
    return hashlib.sha256("".join(file_digest(p) for p in files).encode()).hexdigest()


def _counts(path: Path) -> bool:
    """Whether a file of a weights folder may be read."""
    hidden = any(part.startswith(".") for part in path.parts)
    return not (hidden or path.suffix.lower() in _PICTURES_AND_TEXTS or path.name.lower().startswith(_ASIDE))
