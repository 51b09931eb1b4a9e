"""A table of frozen features: the tokens that leave an encoder's last layer, found by the content of its input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from fusionbench.encoders.base import Tokens
from fusionbench.files import write_tensors

MOST_BYTES = 4_000_000_000
"""Largest table that is made; a run over more encodes as it goes."""
_WORD = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TooLarge(Exception):
    """A table would take more than ``MOST_BYTES``.

    Attributes:
        size: How many bytes it would take.
    """

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


@dataclass(frozen=True)
class Layout:
    """How the inputs of one table look.

    Attributes:
        length: Numbers in one input, C · H · W of a picture, or of a text the most token ids there are.
        pad_id: Of a text, whose tail of it counts for nothing, so that a text is the same in any batch; None: no text.
    """

    length: int
    pad_id: int | None = None


class FeatureTable:
    """Features by content: an input that is in the table need not be encoded.

    Args:
        layout: How inputs look.
        keys_K2: Each input's key, int64.
        values_KND: Each input's tokens, in main memory or mapped from a file.
        mask_KN: Which tokens may be attended to; None: all.
    """

    def __init__(self, layout: Layout, keys_K2: Tensor, values_KND: Tensor, mask_KN: Tensor | None) -> None:
        self.layout, self.keys_K2, self.values_KND, self.mask_KN = layout, keys_K2, values_KND, mask_KN
        self._first_K, self._order_K = torch.sort(keys_K2[:, 0], stable=True)
        self._second_K = keys_K2[:, 1][self._order_K]

    def lookup(self, inputs: Tensor) -> Tokens | None:
        """Return the stored tokens of pictures (B, C, H, W) or token ids (B, L); None if any of them is not there."""
        length, is_text = inputs[0].numel(), self.layout.pad_id is not None
        if length > self.layout.length or (length < self.layout.length and not is_text):
            return None
        self._move(inputs.device)
        keys_B2 = content_keys(inputs, self.layout)
        place_B = torch.searchsorted(self._first_K, keys_B2[:, 0].contiguous()).clamp(max=len(self._first_K) - 1)
        found = (self._first_K[place_B] == keys_B2[:, 0]) & (self._second_K[place_B] == keys_B2[:, 1])
        if not bool(found.all()):
            return None
        rows = self._order_K[place_B].cpu()
        kept = slice(length if is_text else None)
        mask = None if self.mask_KN is None else self.mask_KN[rows, kept].to(inputs.device)
        return Tokens(self.values_KND[rows, kept].to(inputs.device), mask)

    def _move(self, device: torch.device) -> None:
        """Keep what is searched on the device of the inputs."""
        if self._first_K.device != device:
            self._first_K, self._second_K = self._first_K.to(device), self._second_K.to(device)
            self._order_K = self._order_K.to(device)

    def write(self, path: Path) -> None:
        """Write the table as safetensors, whole or not at all."""
        tensors = {"keys": self.keys_K2, "values": self.values_KND}
        if self.mask_KN is not None:
            tensors["mask"] = self.mask_KN
        pad = "" if self.layout.pad_id is None else str(self.layout.pad_id)
        write_tensors(path, tensors, {"length": str(self.layout.length), "pad_id": pad})

    @classmethod
    def read(cls, path: Path) -> FeatureTable:
        """Open a table's file; the tokens are mapped into memory and read as they are asked for."""
        with safe_open(path, framework="pt") as file:
            told = file.metadata()
            layout = Layout(int(told["length"]), int(told["pad_id"]) if told["pad_id"] else None)
            mask = file.get_tensor("mask") if "mask" in file.keys() else None  # noqa: SIM118 - no mapping
            return cls(layout, file.get_tensor("keys"), file.get_tensor("values"), mask)


def compute(encode: Callable[[Tensor], Tokens], batches: Iterable[Tensor], layout: Layout, count: int) -> FeatureTable:
    """Run inputs through a whole frozen encoder.

    Args:
        encode: Turns inputs into the tokens that leave the last layer.
        batches: Inputs on the encoder's device, texts padded to ``layout.length``.
        layout: How they look.
        count: How many inputs there are in all batches together.

    Raises:
        TooLarge: Found at the first batch.
    """
    values = mask = None
    keys, end = [], 0
    with torch.no_grad():
        for inputs in batches:
            tokens = encode(inputs)
            if values is None:
                values, mask = _room(tokens, count)
            start, end = end, end + len(inputs)
            keys.append(content_keys(inputs, layout).cpu())
            values[start:end] = tokens.values.cpu()
            if mask is not None and tokens.mask is not None:
                mask[start:end] = tokens.mask.cpu()
    assert values is not None
    assert end == count
    return FeatureTable(layout, torch.cat(keys), values, mask)


def _room(tokens: Tokens, count: int) -> tuple[Tensor, Tensor | None]:
    """Return empty tensors for the tokens and masks of ``count`` inputs."""
    one = tokens.values[0]
    if count * one.nbytes > MOST_BYTES:
        raise TooLarge(count * one.nbytes)
    values = torch.empty(count, *one.shape, dtype=one.dtype)
    return values, None if tokens.mask is None else torch.empty(count, one.shape[0], dtype=torch.bool)


def content_keys(inputs: Tensor, layout: Layout) -> Tensor:
    """Return a key (B, 2) of each input's bits: two sums modulo 2^64, each of its words times fixed random odd numbers.

    Two lanes of multilinear hashing: for any two inputs that differ, chance makes both lanes equal with a probability
    below 2^-64 over the choice of the numbers. It runs on the inputs' device and copies nothing from there.
    """
    words = inputs.flatten(1).contiguous()
    if layout.pad_id is not None:
        # A text that is absent is zeros, as many as its batch is long: the same as nothing but padding.
        words = torch.where(words.any(dim=1, keepdim=True), words - layout.pad_id, 0)
    words = words.view(_WORD[words.element_size()]).to(torch.int64)
    lanes = _factors(layout.length, words.device)
    return torch.stack([(words * lane[: words.shape[1]]).sum(dim=1) for lane in lanes], dim=1)


@lru_cache(maxsize=8)
def _factors(length: int, device: torch.device) -> Tensor:
    """Return two lanes of odd numbers, (2, length); the generator's raw stream is the same in all versions of NumPy."""
    raw = np.random.PCG64(20_117).random_raw(2 * length) | np.uint64(1)
    return torch.from_numpy(raw.view(np.int64).reshape(2, length)).to(device)
