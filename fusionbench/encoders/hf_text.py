"""BERT-like text encoders of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fusionbench.encoders.base import Encoder, Tokens, attention_mask, mean_of_own
from fusionbench.encoders.weights import hub_failed, weights_path
from fusionbench.errors import UserError
from fusionbench.registry import register
from fusionbench.types import ModalitySpec, Tokenizer


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
        self.longest = int(settings.max_position_embeddings)

    @classmethod
    def load_tokenizer(cls, options: Mapping[str, Any]) -> Tokenizer:
        """Return the tokenizer that an encoder node names, without loading weights."""
        return HFTokenizer(options)

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
        layers = _layers(self.net)
        prefix = next(name for name, module in self.named_modules() if module is layers)
        linear = [n for n, m in self.named_modules() if isinstance(m, nn.Linear) and n.startswith(prefix + ".")]
        sites = {site: [n for n in linear if n.endswith(end)] for site, end in ends.items()}
        sites["fc2"] = [n for n in sites["fc2"] if n not in sites["proj"]]
        return sites


class HFTokenizer:
    """A transformers tokenizer in the shape that the DataModule asks for."""

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
        self.pad_id = int(self._tokenizer.pad_token_id or 0)

    def __call__(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Return token ids with the special tokens, cut to ``max_length``."""
        ids: list[list[int]] = self._tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        return ids


def _is_local(source: str) -> bool:
    return source.startswith("asset:") or Path(source).expanduser().exists() or source.startswith((".", "/", "~"))


def _build(model: str | None, weights: str, config: Mapping[str, Any] | None) -> nn.Module:
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    if weights == "random":
        if not config or "model_type" not in config:
            raise UserError("random weights need 'encoder.config', e.g. {model_type: bert, hidden_size: 64, ...}")
        options = {k: v for k, v in config.items() if k != "model_type"}
        return _plain(AutoModel.from_config(AutoConfig.for_model(config["model_type"], **options)))
    source = model if weights == "hub" else str(weights_path(weights))
    if source is None:
        raise UserError("encoder.weights=hub needs encoder.model=OWNER/NAME")
    try:
        net, report = AutoModel.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise hub_failed(source, error) from None
    holes = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if holes:
        raise UserError(f"the weights of '{source}' lack {len(holes)} tensors ({holes[0]}), which would stay random")
    return _plain(net)


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
