"""BERT-like text encoders of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from fusionbench.encoders import hf_models
from fusionbench.encoders.base import Encoder, Tokens, check_length, mean_of_own, text_mask
from fusionbench.encoders.hf_tokenizer import HFTokenizer, check_tokenizer
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
        fallback: ``asset:NAME`` or a path to start from where ``weights`` is ``hub`` and the hub does not give them;
            the run says so, and its config tells by ``weights`` which it was. null: the run stops.
        layers: How many of the model's first layers are used; null: all.
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
        fallback: str | None = None,
        layers: int | None = None,
        pool: Literal["cls", "mean"] = "cls",
        checkpointing: bool = False,
    ) -> None:
        super().__init__(spec, checkpointing)
        self.net = hf_models.load(model, weights, config, layers)
        self.pool_kind = pool
        settings: Any = self.net.config
        self.width = int(settings.hidden_size)
        self.depth = len(hf_models.layers_of(self.net))
        self.pad_id = int(settings.pad_token_id or 0)
        self.longest = _longest(self.net)

    @classmethod
    def load_tokenizer(cls, options: Mapping[str, Any]) -> Tokenizer:
        """Return the tokenizer that an encoder node names, without loading weights."""
        return HFTokenizer(options)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer made for another model.

        Raises:
            UserError: The padding token is another, or the model's vocabulary is too small.
        """
        net: Any = self.net
        words = int(net.get_input_embeddings().num_embeddings)
        check_tokenizer(tokenizer, reader="text encoder", pad_id=self.pad_id, words=words)

    def embed(self, inputs: Tensor) -> Tokens:
        """Turn token ids (B, L) into embeddings (B, L, D); padding is masked, the first token never is.

        Raises:
            UserError: The text is longer than the model has positions.
        """
        check_length(inputs.shape[1], self.longest, "encoder")
        net: Any = self.net
        values = net.embeddings(inputs)
        project = getattr(net, "embeddings_project", None)  # ELECTRA's embeddings may be narrower than its layers
        return Tokens(values if project is None else project(values), text_mask(inputs, self.pad_id))

    def layer(self, index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Run one transformer layer."""
        return hf_models.run_layer(hf_models.layers_of(self.net)[index], values_BND, mask_BN)

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the first token, or the mean over the text's own tokens."""
        return mean_of_own(tokens) if self.pool_kind == "mean" else tokens.values[:, 0]

    def linear_sites(self) -> dict[str, list[str]]:
        """Name the linear layers of every block, by what BERT and DistilBERT call them."""
        return hf_models.linear_sites(self, hf_models.layers_of(self.net))

    def norm_sites(self) -> list[str]:
        """Name the norms of every layer; there is no final one."""
        return hf_models.norm_sites(self, hf_models.layers_of(self.net))

    def embedding_site(self) -> str | None:
        """Name the norm that ends the embedding."""
        return "net.embeddings.LayerNorm"


def _longest(net: Any) -> int:  # noqa: ANN401 - a transformers model, whose parts torch types as Tensor | Module
    """Return how many tokens have a position; RoBERTa's positions start behind that of padding."""
    padding = getattr(getattr(net.embeddings, "position_embeddings", None), "padding_idx", None)
    return int(net.config.max_position_embeddings) - (0 if padding is None else int(padding) + 1)
