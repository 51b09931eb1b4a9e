"""Transformers' Mllama: its config, and the whole model out of a checkpoint or at random."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fusionbench.encoders.checkpoint import Checkpoint
from fusionbench.encoders.weights import weights_path
from fusionbench.errors import UserError, check_number, nearest
from fusionbench.layers.skeleton import is_skeleton

_SIZES = {
    "text_config": (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    ),
    "vision_config": ("hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size"),
}
# Where transformers keeps a part, and what the part is called in a checkpoint's files.
_ON_DISK = {
    "model.language_model.": "language_model.model.",
    "model.vision_model.": "vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}
# The pictures of CLIP, as in preprocessor_config.json of Llama 3.2 Vision.
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class MllamaSource:
    """Where an Mllama comes from: a folder of transformers, a model of the hub, or a config for random weights.

    Args:
        options: Of an encoder node: ``weights``, ``model`` and ``config``.

    Attributes:
        config: transformers' config of the whole model.
        checkpoint: What is read; None: the weights are random.

    Raises:
        UserError: There is none, the hub does not give it, or it is another model.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        weights, model = str(options["weights"]), options.get("model")
        if weights == "hub" and model is None:
            raise UserError("encoder.weights=hub needs encoder.model=OWNER/NAME")
        self.checkpoint: Checkpoint | None = None
        if weights == "random":
            self.config = _random_config(options.get("config"))
        else:
            self.checkpoint = Checkpoint(str(model) if weights == "hub" else weights, weights_path(weights))
            self.config = _read_config(self.checkpoint)

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return transformers' model without the frequencies of RoPE, for which see ``rotary``.

        Args:
            dtype: Of the weights.

        Raises:
            UserError: The checkpoint does not fit its config.
        """
        if self.checkpoint is None:
            return _bare(self.config, dtype)
        with torch.device("meta"):
            net = _bare(self.config, dtype)
        if is_skeleton():
            return net
        wanted = {key: (_on_disk(key), value.shape) for key, value in net.state_dict().items()}
        net.load_state_dict(self.checkpoint.read(wanted, dtype), assign=True)
        return net

    def rotary(self) -> nn.Module:
        """Return what turns positions (B, N) into the cosines and sines of RoPE, (B, N, head width) each."""
        from transformers import MllamaTextModel

        with torch.device("meta"):
            kind: Any = type(MllamaTextModel(self.config.text_config).rotary_emb)
        with torch.device("cpu"):
            made: nn.Module = kind(self.config.text_config)
        return made

    def colours(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation, by channel, of the pictures that the vision tower was trained on.

        Raises:
            UserError: The checkpoint says it in a way that cannot be read.
        """
        path = self.checkpoint.file("preprocessor_config.json") if self.checkpoint else None
        if path is None:
            return list(_MEAN), list(_DEVIATION)
        try:
            told = json.loads(path.read_text("utf-8"))
            mean, deviation = ([float(v) for v in told[key]] for key in ("image_mean", "image_std"))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"'{path}' names no image_mean and image_std ({error}); fetch it again") from None
        if len(mean) != 3 or len(deviation) != 3 or min(deviation) <= 0:
            raise UserError(f"'{path}' must name three image_mean and three positive image_std; fetch it again")
        return mean, deviation

    def one_tile(self) -> int:
        """Return by which id the vision tower knows a picture that is one tile; 0 is no picture."""
        ratios = [list(ratio) for ratio in self.config.vision_config.supported_aspect_ratios]
        return ratios.index([1, 1]) + 1


def _bare(config: Any, dtype: torch.dtype) -> nn.Module:  # noqa: ANN401 - a transformers config
    """Build the model on the current device, initialised as transformers does."""
    from transformers import AutoModelForImageTextToText

    net: Any = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa", dtype=dtype)
    net.model.language_model.register_module("rotary_emb", None)
    out: nn.Module = net
    return out


def _on_disk(key: str) -> str:
    """Return what a tensor is called in a checkpoint."""
    inside, outside = next(pair for pair in _ON_DISK.items() if key.startswith(pair[0]))
    return outside + key.removeprefix(inside)


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
    if config.model_type != "mllama":
        raise UserError(
            f"'{path}' is of a {config.model_type}, but encoder mllama reads an mllama (Llama 3.2 Vision) alone; for "
            "a decoder of text take encoder llama_vision"
        )
    return _checked(config, f"'{path}'")


def _random_config(options: Mapping[str, Any] | None) -> Any:  # noqa: ANN401 - a transformers config
    from transformers import MllamaConfig
    from transformers.models.mllama import MllamaTextConfig, MllamaVisionConfig

    if options is None:
        raise UserError("random weights need 'encoder.config', e.g. {text_config: {...}, vision_config: {...}}")
    kinds: dict[str, Any] = {"text_config": MllamaTextConfig, "vision_config": MllamaVisionConfig}
    given = {key: value for key, value in options.items() if key != "model_type"}
    for key in given:
        if key not in kinds:
            raise UserError(f"an mllama has no 'encoder.config.{key}'{nearest(str(key), kinds)}")
    parts = {name: _part(name, kind, given.get(name) or {}) for name, kind in kinds.items()}
    return _checked(MllamaConfig(**parts), "'encoder.config'")


def _part(name: str, kind: Any, options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - a class of configs
    """Return the options of one part of the config, which are known and of the right types."""
    known = {*kind().to_dict(), *kind.attribute_map}
    for key in options:
        if key not in known:
            raise UserError(f"an mllama has no 'encoder.config.{name}.{key}'{nearest(str(key), known)}")
    try:
        kind(**options)
    except Exception as error:  # transformers and the hub client raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"'encoder.config.{name}' does not fit an mllama: {reason}") from None
    return dict(options)


def _checked(config: Any, where: str) -> Any:  # noqa: ANN401 - a transformers config
    """Return a config whose parts fit each other.

    Raises:
        UserError: They do not, so that transformers would fail later, or leave layers out.
    """
    text, vision = config.text_config, config.vision_config
    for part, names in _SIZES.items():
        for name in names:
            size = getattr(getattr(config, part), name)
            if not isinstance(size, int):
                raise UserError(f"'{name}' in {part} of {where} must be one whole number, not {size}")
            check_number(f"{part}.{name} of {where}", size, least=1)
    cross, taken = text.cross_attention_layers, vision.intermediate_layers_indices
    output = vision.hidden_size * (1 + len(taken))
    wants = {
        f"cross_attention_layers name layers of 0 to {text.num_hidden_layers - 1}, one or more, each once": (
            bool(cross) and len(set(cross)) == len(cross) and set(cross) <= set(range(text.num_hidden_layers))
        ),
        f"intermediate_layers_indices name layers of 0 to {vision.num_hidden_layers - 1}": (
            set(taken) <= set(range(vision.num_hidden_layers))
        ),
        f"vision_output_dim is {output}, 1 + {len(taken)} times the vision tower's hidden_size": (
            vision.vision_output_dim == output
        ),
        "hidden_size is divisible by the heads, and these by num_key_value_heads": (
            text.hidden_size % text.num_attention_heads == 0
            and text.num_attention_heads % text.num_key_value_heads == 0
            and vision.hidden_size % vision.attention_heads == 0
        ),
        f"pad_token_id is one of 0 to {text.vocab_size - 1}": (
            text.pad_token_id is not None and 0 <= text.pad_token_id < text.vocab_size
        ),
        "[1, 1] is one of supported_aspect_ratios": [1, 1] in [list(ratio) for ratio in vision.supported_aspect_ratios],
    }
    for wanted, holds in wants.items():
        if not holds:
            raise UserError(f"the parts of an mllama in {where} do not fit: see that {wanted}")
    return config
