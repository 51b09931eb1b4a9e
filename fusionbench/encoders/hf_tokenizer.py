"""The tokenizers of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionbench.encoders.weights import weights_path
from fusionbench.errors import UserError


class HFTokenizer:
    """A transformers tokenizer in the shape that the DataModule asks for.

    Args:
        options: Of an encoder node: ``weights``, ``model`` and ``tokenizer`` say where it lies.

    Attributes:
        pad_id: Id of the padding token.
        size: One more than the highest token id, added tokens included.

    Raises:
        UserError: There is none, or it has no padding token.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        from transformers import AutoTokenizer

        named = options.get("tokenizer") or options["weights"]
        if named == "random":
            raise UserError("an encoder with random weights has no tokenizer of its own: give encoder.tokenizer=PATH")
        source = options.get("model") if named == "hub" else named
        try:
            local = weights_path(str(source)) if _is_local(str(source)) else None
            self._tokenizer = AutoTokenizer.from_pretrained(str(local or source), trust_remote_code=False)
        except (OSError, ValueError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"no tokenizer could be read from '{source}'; give encoder.tokenizer=PATH") from None
        if self._tokenizer.pad_token_id is None:
            raise UserError(
                f"the tokenizer of '{source}' has no padding token, so it is not of a BERT-like encoder; give the "
                "model's own by encoder.tokenizer=PATH"
            )
        self.pad_id = int(self._tokenizer.pad_token_id)
        self.size = max(self._tokenizer.get_vocab().values()) + 1

    def __call__(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Return token ids with the special tokens, cut to ``max_length``."""
        ids: list[list[int]] = self._tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        return ids


def _is_local(source: str) -> bool:
    return source.startswith("asset:") or Path(source).expanduser().exists() or source.startswith((".", "/", "~"))
