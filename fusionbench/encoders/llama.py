"""Decoders of the Llama family, which read text and, through a trained patch stem, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fusionbench.encoders.base import Encoder, Tokens, attention_mask, check_length, mean_of_own, text_mask
from fusionbench.encoders.hf_tokenizer import HFTokenizer, check_tokenizer
from fusionbench.encoders.llama_weights import DecoderSource, precision, widen
from fusionbench.errors import UserError
from fusionbench.layers.decoder_mask import decoder_mask, encoder_roles
from fusionbench.layers.decoder_pass import DecoderPass
from fusionbench.layers.decoder_positions import DecoderPositions
from fusionbench.layers.decoder_readout import last_token
from fusionbench.layers.patch_stem import PatchStem
from fusionbench.layers.per_view import EachView
from fusionbench.registry import register
from fusionbench.types import ModalitySpec, Tokenizer

_SITES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "proj": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "fc1": "mlp.up_proj",
    "fc2": "mlp.down_proj",
}

_Shared = tuple[Tensor | None, tuple[Tensor, Tensor]]


@register
class Llama(Encoder):
    """Layers of a pretrained decoder (Llama, Mistral, Qwen 2 or 3) for text and pictures.

    The text and vision layers of LLaMA-II fusion (arXiv 2412.01306) as in its authors' code: no RoPE and no causal
    mask, token embeddings for text, a patch convolution with learned positions for pictures. Text and pictures share
    one frozen decoder; each view of pictures has a stem of its own, trained whatever the tuning method. Of a checkpoint
    only the named layers, the final norm and, for text, the token embedding are read.

    Ours: padding is masked; the last token that is read is the last valid one; RMSNorm is applied before it; the linear
    layers have no bias, as the pretrained ones, while the authors' do. A sliding window is not applied.

    With ``dtype: bfloat16`` the frozen weights are held in bfloat16 and the products of layers are in bfloat16
    (autocast); what is trained, the tokens between layers and the final norm stay in float32, since small updates would
    be lost to rounding. In the trainer's own ``bf16-true`` all is bfloat16.

    Args:
        weights: ``hub``, ``asset:NAME`` (``asset:smollm2``), ``random``, or a path to a folder with config.json and
            weights.
        model: Hub id, e.g. ``meta-llama/Llama-2-7b-hf``; not needed for a path or an asset.
        tokenizer: ``asset:NAME``, a folder or a hub id; null: beside the weights. Random weights need one.
        config: With random weights, a transformers config: ``{model_type: llama, hidden_size: 64, ...}``.
        layers: Which layers of the decoder, in this order, e.g. ``[0, 1, 2]``; null: all.
        patch: Height and width of a picture's patches in pixels.
        pool: ``last``: the last valid token; ``mean``: the mean over the input's own valid tokens.
        rope: Rotate queries and keys by their positions; off in the paper's code. Padding takes no position.
        causal: A token attends to those before it alone; off in the paper's code.
        mutual_attention: With ``causal``, tokens of a picture also attend to text that a strategy puts behind them, as
            in "Seeing is Understanding" (AKI, arXiv 2503.02597).
        mask_padding: Whether padding is hidden from the other tokens; false is the authors' code. The pooling and a
            strategy's own layers never read padding.
        dtype: Of the frozen weights, those of a strategy's blocks that start from the decoder's layers included.
        checkpointing: Recompute layers in the backward pass to save memory.
    """

    kinds: ClassVar[tuple[str, ...]] = ("text", "image", "slices")

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        weights: str,
        model: str | None = None,
        tokenizer: str | None = None,
        config: Mapping[str, Any] | None = None,
        layers: Sequence[int] | None = None,
        patch: int = 32,
        pool: Literal["last", "mean"] = "last",
        rope: bool = False,
        causal: bool = False,
        mutual_attention: bool = False,
        mask_padding: bool = True,
        dtype: Literal["float32", "bfloat16"] = "float32",
        checkpointing: bool = False,
    ) -> None:
        super().__init__(spec, checkpointing)
        if mutual_attention and not causal:
            raise UserError("'encoder.mutual_attention' opens a causal mask; give encoder.causal=true as well")
        self.options = {"weights": weights, "model": model, "tokenizer": tokenizer, "config": config}
        self.source = DecoderSource(self.options)
        self.held: torch.dtype = getattr(torch, dtype)
        self.net: Any = self.source.build(layers, self.held)
        self.word_seed = self.source.draw_seed()
        self.net.norm.float()
        decoder_layers: Any = self.net.layers
        self.width, self.depth = int(self.source.config.hidden_size), len(decoder_layers)
        self.positions = DecoderPositions(self.source.rotary() if rope else None, decoder_layers[0].self_attn.head_dim)
        self.longest = int(self.source.config.max_position_embeddings) if rope else None
        self.patch, self.pool_kind, self.pad_id = patch, pool, 0
        self.causal, self.mutual, self.mask_padding = causal, mutual_attention, mask_padding
        self._make_own([spec])

    @classmethod
    def load_tokenizer(cls, options: Mapping[str, Any]) -> Tokenizer:
        """Return the tokenizer that an encoder node names, without loading weights."""
        return HFTokenizer(options, special=False)

    @classmethod
    def blocks(
        cls, options: Mapping[str, Any], indexes: Sequence[int], option: str = "fusion.cross"
    ) -> list[nn.Module]:
        """Return further layers of the decoder that an encoder node names, for a strategy's own use.

        Args:
            options: The encoder node's, without its name.
            indexes: Places in the whole decoder.
            option: What the config calls ``indexes``, for errors.

        Returns:
            transformers' decoder layers, in the encoder's ``dtype``, random if its weights are; ``self_attn.config``
            tells widths and heads.

        Raises:
            UserError: The decoder has no such layer, or its checkpoint does not fit.
        """
        net: Any = DecoderSource(options).build(indexes, getattr(torch, options.get("dtype", "float32")), option)
        return list(net.layers)

    def furnish(self, specs: Sequence[ModalitySpec]) -> None:
        """Give each view of pictures its stem, and text its token embedding; hold what is trained in float32."""
        self._make_own(specs, frozen=True)
        widen(self, self.held)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer made for another model.

        Raises:
            UserError: The padding token is another, or the model's vocabulary is too small.
        """
        words = int(self.source.config.vocab_size)
        check_tokenizer(tokenizer, reader="decoder", pad_id=self.pad_id, words=words)

    def embed(self, inputs: Tensor) -> Tokens:
        """Turn token ids (B, L) or pixels (B, 3, H, W) into tokens (B, N, D); of a text, the first is never masked.

        Raises:
            UserError: There are more tokens than the decoder has positions.
        """
        if inputs.ndim == 4:
            tokens = Tokens(self.stem(inputs))
        else:
            values = self.net.embed_tokens(inputs).to(next(self.net.norm.parameters()).dtype)
            tokens = Tokens(values, text_mask(inputs, self.pad_id))
        if self.longest is not None:
            check_length(tokens.values.shape[1], self.longest, "decoder")
        return tokens

    def layer(self, index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Run one decoder layer on a sequence of the encoder's own tokens."""
        return self.bound_layers(Tokens(values_BND, mask_BN))(index, values_BND, mask_BN)

    def bound_layers(self, tokens: Tokens) -> Callable[[int, Tensor, Tensor | None], Tensor]:
        """Return the layers for a sequence, some of whose last tokens a strategy may have put there."""
        return partial(self._run, DecoderPass(partial(self._shared, tokens.appended)))

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the normed last valid token of the encoder's own, or the mean over them, (B, D)."""
        if self.pool_kind == "mean":
            return mean_of_own(replace(tokens, values=self.net.norm(tokens.values)))
        own = tokens.values.shape[1] - tokens.appended
        mask = None if tokens.mask is None else tokens.mask[:, :own]
        out: Tensor = self.net.norm(last_token(tokens.values[:, :own], mask))
        return out

    def linear_sites(self) -> dict[str, list[str]]:
        """Name the linear layers of every block."""
        return {site: [f"net.layers.{i}.{part}" for i in range(self.depth)] for site, part in _SITES.items()}

    def norm_sites(self) -> list[str]:
        """Name both norms of every block and the final one."""
        norms = ("input_layernorm", "post_attention_layernorm")
        return [f"net.layers.{i}.{norm}" for i in range(self.depth) for norm in norms] + ["net.norm"]

    def _make_own(self, specs: Sequence[ModalitySpec], frozen: bool = False) -> None:
        """Make stems for pictures, anew, and the token embedding for text, if it is not there."""
        self.is_image = tuple(spec.is_image for spec in specs)
        if any(self.is_image):
            stems = [PatchStem(self.width, self.patch, spec.size) if spec.is_image else nn.Identity() for spec in specs]
            self.stem = EachView(self.selector, stems)
            self.embeds_by_view = True
            counts = {stem.count if isinstance(stem, PatchStem) else None for stem in stems}
            self.sequence = counts.pop() if len(counts) == 1 else None
        if not all(self.is_image) and self.net.embed_tokens is None:
            self.net.embed_tokens = self.source.words(self.held, self.word_seed).requires_grad_(not frozen)
            self.pad_id = self._padding()

    def _padding(self) -> int:
        """Return the padding token, which a decoder's tokenizer chooses if its config does not."""
        if self.source.checkpoint is None:
            return int(self.source.config.pad_token_id or 0)
        return int(self.load_tokenizer(self.options).pad_id)

    def _run(self, shared: DecoderPass[_Shared], index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Run a layer on own tokens and, behind them, appended ones."""
        attention, angles = shared(values_BND, mask_BN)
        with precision(self.held, values_BND.device):
            out: Tensor = self.net.layers[index](values_BND, attention_mask=attention, position_embeddings=angles)
        return out.to(values_BND.dtype)

    def _shared(self, appended: int, values_BND: Tensor, mask_BN: Tensor | None) -> _Shared:
        """Return what all layers need of a sequence: which keys each query sees, and RoPE's cosines and sines."""
        mask_BN = self._readable(mask_BN, appended)
        return self._attention(values_BND, mask_BN, appended), self.positions(values_BND, mask_BN)

    def _readable(self, mask_BN: Tensor | None, appended: int) -> Tensor | None:
        """Open the padding of a text if it shall be read."""
        if mask_BN is None or self.mask_padding:
            return mask_BN
        own = mask_BN.shape[1] - appended
        return torch.cat([torch.ones_like(mask_BN[:, :own]), mask_BN[:, own:]], dim=1)

    def _attention(self, values_BND: Tensor, mask_BN: Tensor | None, appended: int) -> Tensor | None:
        """Return which keys each query sees, (B, 1, 1 or N, N); None: all."""
        if not self.causal:
            return attention_mask(mask_BN)
        images = [self.is_image[view] for view in self.selector.indices]
        return decoder_mask(encoder_roles(images, values_BND, appended), mask_BN, causal=True, mutual=self.mutual)
