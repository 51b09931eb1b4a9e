"""BERT-like text encoders of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from fusionbench.encoders.base import Encoder, Tokens, attention_mask, mean_of_own
from fusionbench.encoders.hf_tokenizer import HFTokenizer
from fusionbench.encoders.weights import hub_failed, weights_path
from fusionbench.errors import UserError, check_number, nearest
from fusionbench.registry import register
from fusionbench.types import ModalitySpec, Tokenizer

_FAMILIES = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")


@register
class HFText(Encoder):
    """Any BERT-like encoder of transformers (BERT, RoBERTa, ELECTRA, DistilBERT, ...) with its own tokenizer.

    Padding is masked in every layer and in the mean. The family must have an ``embeddings`` module and a list of layers
    that take hidden states and an attention mask; others are refused by name.

    Args:
        model: Hub id of the model, e.g. ``microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract``; not needed for a path
            or an asset.
        weights: ``hub``, ``asset:NAME``, ``random``, or a path to a folder with config.json and weights.
        tokenizer: ``asset:NAME``, a folder or a hub id; null: beside the weights. Random weights need one.
        config: With random weights, a transformers config: ``{model_type: bert, hidden_size: 64, ...}``.
        pool: ``cls``: the first token; ``mean``: the mean over the text's own tokens.
        checkpointing: Recompute layers in the backward pass to save memory.
    """

    kinds: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        weights: str,
        model: str | None = None,
        tokenizer: str | None = None,
        config: Mapping[str, Any] | None = None,
        pool: Literal["cls", "mean"] = "cls",
        checkpointing: bool = False,
    ) -> None:
        super().__init__(spec, checkpointing)
        self.net = _build(model, weights, config)
        self.pool_kind = pool
        settings: Any = self.net.config
        self.width = int(settings.hidden_size)
        self.depth = len(_layers(self.net))
        self.pad_id = int(settings.pad_token_id or 0)
        self.longest = _longest(self.net)

    @classmethod
    def load_tokenizer(cls, options: Mapping[str, Any]) -> Tokenizer:
        """Return the tokenizer that an encoder node names, without loading weights."""
        return HFTokenizer(options)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer made for another model, whose padding would be read or whose words have no embedding.

        Args:
            tokenizer: Its ``size``, if it has one, is one more than its highest token id.

        Raises:
            UserError: The padding token is another, or the model's vocabulary is too small.
        """
        net: Any = self.net
        words, size = int(net.get_input_embeddings().num_embeddings), int(getattr(tokenizer, "size", 0))
        if tokenizer.pad_id != self.pad_id:
            raise UserError(
                f"the tokenizer pads with token {tokenizer.pad_id}, but the text encoder with {self.pad_id}: give the "
                "model's own by encoder.tokenizer"
            )
        if size > words:
            raise UserError(
                f"the tokenizer has {size} words, but the text encoder only {words}: give the model's own by "
                "encoder.tokenizer"
            )

    def embed(self, inputs: Tensor) -> Tokens:
        """Turn token ids (B, L) into embeddings (B, L, D); padding is masked, the first token never is.

        Raises:
            UserError: The text is longer than the model has positions.
        """
        if inputs.shape[1] > self.longest:
            raise UserError(
                f"a text has {inputs.shape[1]} tokens, the encoder takes {self.longest}: set data.text_length"
            )
        mask = inputs != self.pad_id
        mask[:, 0] = True
        net: Any = self.net
        values = net.embeddings(inputs)
        project = getattr(net, "embeddings_project", None)  # ELECTRA's embeddings may be narrower than its layers
        return Tokens(values if project is None else project(values), mask)

    def layer(self, index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Run one transformer layer."""
        out = _layers(self.net)[index](values_BND, attention_mask=attention_mask(mask_BN))
        values: Tensor = out[0] if isinstance(out, tuple) else out
        return values

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the first token, or the mean over the text's own tokens."""
        return mean_of_own(tokens) if self.pool_kind == "mean" else tokens.values[:, 0]

    def linear_sites(self) -> dict[str, list[str]]:
        """Name the linear layers of every block, by what BERT and DistilBERT call them."""
        ends = {
            "fc1": ("intermediate.dense", "ffn.lin1"),
            "fc2": (".output.dense", "ffn.lin2"),
            "q": ("attention.self.query", "attention.q_lin"),
            "k": ("attention.self.key", "attention.k_lin"),
            "v": ("attention.self.value", "attention.v_lin"),
            "proj": ("attention.output.dense", "attention.out_lin"),
        }
        linear = self._in_layers(nn.Linear)
        sites = {site: [n for n in linear if n.endswith(end)] for site, end in ends.items()}
        sites["fc2"] = [n for n in sites["fc2"] if n not in sites["proj"]]
        return sites

    def norm_sites(self) -> list[str]:
        """Name the norms of every layer; there is no final one."""
        return self._in_layers(nn.LayerNorm)

    def embedding_site(self) -> str | None:
        """Name the norm that ends the embedding."""
        return "net.embeddings.LayerNorm"

    def _in_layers(self, kind: type[nn.Module]) -> list[str]:
        layers = _layers(self.net)
        prefix = next(name for name, module in self.named_modules() if module is layers)
        return [n for n, m in self.named_modules() if isinstance(m, kind) and n.startswith(prefix + ".")]


def _build(model: str | None, weights: str, config: Mapping[str, Any] | None) -> nn.Module:
    from transformers.utils import logging

    logging.disable_progress_bar()
    if weights == "random":
        return _plain(_random(config or {}))
    path = weights_path(weights)
    if path is not None and not (path / "config.json").is_file():
        raise UserError(
            f"encoder weights '{path}' must be a folder with config.json and weights, as transformers saves"
        )
    if path is None and model is None:
        raise UserError("encoder.weights=hub needs encoder.model=OWNER/NAME")
    return _plain(_pretrained(str(path or model)))


def _random(config: Mapping[str, Any]) -> nn.Module:
    """Build a model of random weights.

    Raises:
        UserError: ``config`` lacks the model's type, has a key that the type does not know, or a size that cannot be.
    """
    from transformers import CONFIG_MAPPING, AutoModel

    kind = config.get("model_type")
    if kind is None:
        raise UserError("random weights need 'encoder.config', e.g. {model_type: bert, hidden_size: 64, ...}")
    if kind not in CONFIG_MAPPING:
        raise UserError(f"transformers has no 'encoder.config.model_type' {kind!r}{nearest(str(kind), _FAMILIES)}")
    of_kind: Any = CONFIG_MAPPING[kind]
    known = {*of_kind().to_dict(), *of_kind.attribute_map}
    for key in config:
        if key not in known:
            raise UserError(f"a {kind} has no 'encoder.config.{key}'{nearest(str(key), known)}")
    try:
        settings = of_kind(**{key: value for key, value in config.items() if key != "model_type"})
        for name in _SIZES:
            check_number(f"encoder.config.{name}", getattr(settings, name, 1), least=1)
        net: nn.Module = AutoModel.from_config(settings)
    except UserError:
        raise
    except Exception as error:  # transformers, the hub client and torch each have their own
        raise UserError(f"'encoder.config' makes no {kind}: {' '.join(str(error).split())[:200]}") from None
    return net


def _pretrained(source: str) -> nn.Module:
    """Read a model from a folder or the hub, in float32.

    Raises:
        UserError: It cannot be had, or lacks tensors, which would stay random.
    """
    from transformers import AutoModel

    try:
        net, report = AutoModel.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers, the hub client, torch and safetensors each have their own
        if Path(source).is_dir():
            raise UserError(f"no weights could be read from '{source}': {' '.join(str(error).split())[:200]}") from None
        raise hub_failed(source, error) from None
    holes = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if holes:
        raise UserError(f"the weights of '{source}' lack {len(holes)} tensors ({holes[0]}), which would stay random")
    return cast(nn.Module, net)


def _longest(net: Any) -> int:  # noqa: ANN401 - a transformers model, whose parts torch types as Tensor | Module
    """Return how many tokens have a position; RoBERTa's positions start behind that of padding."""
    padding = getattr(getattr(net.embeddings, "position_embeddings", None), "padding_idx", None)
    return int(net.config.max_position_embeddings) - (0 if padding is None else int(padding) + 1)


def _plain(net: nn.Module) -> nn.Module:
    """Drop BERT's pooler, which is never read and would be trained for nothing."""
    if getattr(net, "pooler", None) is not None:
        net.register_module("pooler", None)
    _layers(net)
    return net


def _layers(net: nn.Module) -> nn.ModuleList:
    """Return the list of layers where BERT-like families keep it."""
    for holder in ("encoder", "transformer"):
        layers = getattr(getattr(net, holder, None), "layer", None)
        if isinstance(layers, nn.ModuleList) and hasattr(net, "embeddings"):
            return layers
    raise UserError(
        f"{type(net).__name__} is not BERT-like (no embeddings and encoder.layer); possible are BERT, RoBERTa, "
        "ELECTRA, CamemBERT, DistilBERT and models derived from them"
    )
