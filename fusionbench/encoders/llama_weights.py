"""Layers of a Llama-like decoder: those that are named and no others, out of a checkpoint or at random."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from fusionbench.encoders.checkpoint import Checkpoint
from fusionbench.encoders.hf_config import model_type, random_config
from fusionbench.encoders.weights import weights_path
from fusionbench.errors import UserError, nearest
from fusionbench.layers import deferred
from fusionbench.layers.skeleton import is_skeleton

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


class DecoderSource:
    """Where a decoder comes from: a folder of transformers, a model of the hub, or a config for random weights.

    Args:
        options: Of an encoder node: ``weights``, ``model`` and ``config``.

    Attributes:
        config: transformers' config of the whole decoder.

    Raises:
        UserError: There is none, the hub does not give it, or it is of another family.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        weights, model = str(options["weights"]), options.get("model")
        if weights == "hub" and model is None:
            raise UserError("encoder.weights=hub needs encoder.model=OWNER/NAME")
        self.checkpoint: Checkpoint | None = None
        if weights != "random":
            self.checkpoint = Checkpoint(str(model) if weights == "hub" else weights, weights_path(weights))
            self.config = _read_config(self.checkpoint)
        else:
            self.config = _random_config(options.get("config") or {})

    def build(
        self, layers: Sequence[int] | None, dtype: torch.dtype = torch.float32, option: str = "encoder.layers"
    ) -> nn.Module:
        """Return transformers' model of some layers and the final norm, without token embedding and positions.

        Args:
            layers: Places in the whole decoder, in the order in which they shall run; None: all.
            dtype: Of the weights.
            option: What the config calls ``layers``, for errors.

        Raises:
            UserError: The decoder has no such layer, or the checkpoint does not fit its config.
        """
        places = self._places(layers, option)
        if self.checkpoint is None:
            return _bare(self.config, places, dtype)
        with torch.device("meta"):
            net = _bare(self.config, places, dtype)
        if is_skeleton():
            return net
        wanted = {key: (_in_whole(key, places), value.shape) for key, value in net.state_dict().items()}
        net.load_state_dict(self.checkpoint.read(wanted, dtype), assign=True)
        return net

    def draw_seed(self) -> int:
        """Return a seed for ``words``, drawn if the weights are random, so that these do not depend on when they are.

        Drawn right behind ``build``, whatever else is drawn before an encoder is asked for its first text.
        """
        return int(torch.randint(2**62, (), device="cpu")) if self.checkpoint is None else 0

    def words(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Embedding:
        """Return the token embedding.

        Args:
            dtype: Of the weights.
            seed: Of random weights; the caller's random state is left as it is.

        Raises:
            UserError: The checkpoint does not fit its config.
        """
        size, width = int(self.config.vocab_size), int(self.config.hidden_size)
        if self.checkpoint is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                made = nn.Embedding(size, width, dtype=dtype)
                nn.init.normal_(made.weight, std=self.config.initializer_range)
            return made
        made = nn.Embedding(size, width, dtype=dtype, device="meta")
        if is_skeleton():
            return made
        wanted = {"weight": ("embed_tokens.weight", made.weight.shape)}
        made.load_state_dict(self.checkpoint.read(wanted, dtype), assign=True)
        return made

    def rotary(self) -> nn.Module:
        """Return what turns positions (B, N) into the cosines and sines of RoPE, (B, N, head width) each."""
        from transformers import AutoModel

        with torch.device("meta"):
            kind: Any = type(AutoModel.from_config(_cut(self.config, [0])).rotary_emb)
        with torch.device("cpu"):
            made: nn.Module = kind(self.config)
        return made

    def _places(self, layers: Sequence[int] | None, option: str) -> list[int]:
        count = int(self.config.num_hidden_layers)
        places = list(range(count) if layers is None else layers)
        if not places:
            raise UserError(f"'{option}' is empty; give one or more layers of the decoder, e.g. [0, 1, 2]")
        for place in places:
            if not 0 <= place < count:
                raise UserError(f"'{option}' names layer {place}, but the decoder has {count}, 0 to {count - 1}")
        return places


def widen(layers: nn.Module, held: torch.dtype) -> None:
    """Hold in float32 what is trained of layers that are held in ``held``, since it would lose small updates."""
    for parameter in layers.parameters():
        if parameter.requires_grad and parameter.dtype == held:
            deferred.widen(parameter, torch.float32)


def precision(held: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which layers held in ``held`` run: products in that type, unless it is float32."""
    return nullcontext() if held == torch.float32 else torch.autocast(device.type, dtype=held)


def _cut(config: Any, places: Sequence[int]) -> Any:  # noqa: ANN401 - a transformers config
    """Return the config of a decoder of some layers alone."""
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = len(places)
    if getattr(config, "layer_types", None):
        cut.layer_types = [config.layer_types[place] for place in places]
    return cut


def _bare(config: Any, places: Sequence[int], dtype: torch.dtype) -> nn.Module:  # noqa: ANN401 - a transformers config
    """Build layers and norm on the current device, initialised as transformers does."""
    from transformers import AutoModel

    net: nn.Module = AutoModel.from_config(_cut(config, places), attn_implementation="sdpa", dtype=dtype)
    net.places = tuple(places)  # type: ignore[assignment] # by which adapt/peft_files.py names the layers
    net.register_module("embed_tokens", None)
    net.register_module("rotary_emb", None)
    for layer in net.layers:  # type: ignore[union-attr]
        layer.self_attn.is_causal = False  # type: ignore[union-attr] # no mask shall mean none
    return net


def _in_whole(key: str, places: Sequence[int]) -> str:
    """Return what a tensor of ``layers.N`` is called in the whole decoder."""
    if not key.startswith("layers."):
        return key
    _, place, rest = key.split(".", 2)
    return f"layers.{places[int(place)]}.{rest}"


def _read_config(checkpoint: Checkpoint) -> Any:  # noqa: ANN401 - a transformers config
    from transformers import AutoConfig

    path = checkpoint.file("config.json")
    if path is None:
        raise UserError(
            f"encoder weights '{checkpoint.name}' must be a folder with config.json and weights, as transformers saves"
        )
    try:
        config = AutoConfig.from_pretrained(path.parent, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        raise UserError(f"'{path}' could not be read: {' '.join(str(error).split())[:200]}") from None
    _check_family(config.model_type)
    return config


def _random_config(options: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a transformers config
    _check_family(str(model_type(options, "llama")))
    return random_config(options, _SIZES)


def _check_family(kind: str) -> None:
    if kind not in FAMILIES:
        raise UserError(f"'{kind}' is no decoder of the Llama family{nearest(kind, FAMILIES)}")
