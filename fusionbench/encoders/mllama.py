"""Llama 3.2 Vision, whose decoder has cross-attention layers of its own, by transformers' Mllama."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fusionbench.encoders.base import Tokens, check_length, text_mask
from fusionbench.encoders.hf_tokenizer import HFTokenizer, check_tokenizer
from fusionbench.encoders.llama_weights import precision, widen
from fusionbench.encoders.mllama_weights import MllamaSource
from fusionbench.encoders.vision_language import Memory, Past, Pixels, VisionLanguage
from fusionbench.layers.decoder_positions import DecoderPositions
from fusionbench.layers.decoder_readout import last_token
from fusionbench.layers.recomputed import Recomputed
from fusionbench.registry import register
from fusionbench.types import ModalitySpec, Tokenizer

_ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "proj": "o_proj"}
_MLP = {"gate": "gate_proj", "fc1": "up_proj", "fc2": "down_proj"}


@register
class Mllama(VisionLanguage):
    """Llama 3.2 Vision or a smaller Mllama: the language model of MDF-MLLM (arXiv 2509.21358).

    The paper has Llama-3.2-11B-Vision-Instruct, the layers 3, 8, ..., 38 of whose 40 read the picture. It is driven
    layer by layer through the public forward of transformers' modules; all layers, the vision tower, its projector and
    the language head are the checkpoint's.

    Ours: a picture is one tile, stretched to the vision tower's square, and its tokens alone are read (1,601 at 560
    pixels); as in transformers the tower also runs on empty tiles up to its number, since it was trained so. Every
    token of the text reads the picture, while Llama 3.2 opens it from ``<|image|>`` on. A row whose memory is closed
    everywhere passes a layer unchanged; in transformers it would read the mean of what is closed.

    With ``dtype: bfloat16`` the frozen weights are held in bfloat16 and the products of layers are in bfloat16
    (autocast); what is trained, the tokens between layers and the final norm stay in float32, since small updates would
    be lost to rounding. In the trainer's own ``bf16-true`` all is bfloat16.

    Args:
        weights: ``hub``, ``asset:NAME``, ``random``, or a path to a folder with config.json and weights.
        model: Hub id, e.g. ``meta-llama/Llama-3.2-11B-Vision-Instruct``; not needed for a path or an asset.
        tokenizer: ``asset:NAME``, a folder or a hub id; null: beside the weights. Random weights need one.
        config: With random weights, transformers' config: ``{text_config: {...}, vision_config: {...}}``.
        normalize: What the pictures were normalised by, which a run takes from ``data.transforms.normalize``; null:
            ``clip``, as there. They are turned into what the vision tower was trained on, and resized to its
            ``image_size``.
        dtype: Of the frozen weights.
        checkpointing: Recompute each layer, those of the vision tower too, in the backward pass to save memory.
    """

    kinds: ClassVar[tuple[str, ...]] = ("text",)
    takes_tokens: ClassVar[bool] = False

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        weights: str,
        model: str | None = None,
        tokenizer: str | None = None,
        config: Mapping[str, Any] | None = None,
        normalize: str | Sequence[Sequence[float]] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        checkpointing: bool = False,
    ) -> None:
        super().__init__(spec, checkpointing)
        options = {"weights": weights, "model": model, "tokenizer": tokenizer, "config": config}
        source = MllamaSource(options)
        self.held: torch.dtype = getattr(torch, dtype)
        text, vision = source.config.text_config, source.config.vision_config
        mean, deviation = source.colours()
        self.pixels = Pixels(normalize, mean=mean, deviation=deviation, size=int(vision.image_size))
        self.net: Any = source.build(self.held)
        if checkpointing:
            tower = self._tower
            tower.transformer = Recomputed(tower.transformer.layers)
            tower.global_transformer = Recomputed(tower.global_transformer.layers)
        self._decoder.norm.float()
        self.positions = DecoderPositions(source.rotary(), text.hidden_size // text.num_attention_heads)
        self.width, self.depth = int(text.hidden_size), int(text.num_hidden_layers)
        self.cross_layers = tuple(sorted(text.cross_attention_layers))
        self.longest = int(text.max_position_embeddings)
        self.words = int(self._decoder.embed_tokens.num_embeddings)
        self.one_tile, self.tiles = source.one_tile(), int(vision.max_num_tiles)
        own = source.checkpoint is None
        self.pad_id = int(text.pad_token_id if own else self.load_tokenizer(options).pad_id)

    @classmethod
    def load_tokenizer(cls, options: Mapping[str, Any]) -> Tokenizer:
        """Return the tokenizer that an encoder node names, without loading weights."""
        return HFTokenizer(options, special=False)

    def furnish(self, specs: Sequence[ModalitySpec]) -> None:
        """Hold what the tuning method trains in float32."""
        widen(self, self.held)

    def beyond_tokens(self) -> list[str]:
        """Name what sees, the layers that read what was seen, and the language head."""
        reading = [f"net.model.language_model.layers.{index}" for index in self.cross_layers]
        return ["net.model.vision_model", "net.model.multi_modal_projector", "net.lm_head", *reading]

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer made for another model.

        Raises:
            UserError: The padding token is another, or the model's vocabulary is too small.
        """
        check_tokenizer(tokenizer, reader="decoder", pad_id=self.pad_id, words=self.words)

    def embed(self, inputs: Tensor) -> Tokens:
        """Turn token ids (B, L) into tokens (B, L, D); padding is masked, but never the first.

        Raises:
            UserError: There are more tokens than the decoder has positions.
        """
        check_length(inputs.shape[1], self.longest, "decoder")
        values = self._decoder.embed_tokens(inputs).to(self._decoder.norm.weight.dtype)
        return Tokens(values, text_mask(inputs, self.pad_id))

    def see(self, images_BCHW: Tensor) -> Tensor:
        """Turn normalised pictures into class token and patch tokens of one tile, (B, T, D) in the decoder's width.

        The further tiles are zeros, as in transformers.
        """
        tile_BCHW = self.pixels(images_BCHW)
        count, device = len(tile_BCHW), tile_BCHW.device
        tiles = F.pad(tile_BCHW[:, None, None], (0, 0, 0, 0, 0, 0, 0, self.tiles - 1))
        used = torch.arange(self.tiles, device=device).eq(0).long().expand(count, 1, -1)
        ratio = torch.full((count, 1), self.one_tile, device=device)
        with precision(self.held, device):
            seen = self._tower(tiles, aspect_ratio_ids=ratio, aspect_ratio_mask=used)
            out: Tensor = self.net.model.multi_modal_projector(seen.last_hidden_state[:, 0, 0])
        return out.to(images_BCHW.dtype)

    def decoder_layer(
        self,
        index: int,
        values_BND: Tensor,
        mask_BNN: Tensor,
        positions_BN: Tensor,
        memory: Memory | None,
        past: Past | None = None,
    ) -> Tensor:
        """Run a self-attention layer, or a cross-attention layer, which without memory changes nothing."""
        if index in self.cross_layers:
            return values_BND if memory is None else self._read(index, values_BND, memory, past)
        rotary: Any = self.positions.rotary
        angles = rotary.to(values_BND.device)(values_BND, positions_BN)
        with precision(self.held, values_BND.device):
            out: Tensor = self._decoder.layers[index](
                values_BND,
                attention_mask=mask_BNN[:, None],
                position_embeddings=angles,
                past_key_values=past and past.words,
            )
        return out.to(values_BND.dtype)

    def vocabulary(self, values_BND: Tensor) -> Tensor:
        """Apply the final norm and the language head: logits (B, N, V)."""
        with precision(self.held, values_BND.device):
            out: Tensor = self.net.lm_head(self._decoder.norm(values_BND))
        return out.to(values_BND.dtype)

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the normed last valid token, (B, D)."""
        out: Tensor = self._decoder.norm(last_token(tokens.values, tokens.mask))
        return out

    def linear_sites(self) -> dict[str, list[str]]:
        """Name the linear layers of every layer of the decoder, those of cross-attention among them."""
        cross, layers = self.cross_layers, [f"net.model.language_model.layers.{i}" for i in range(self.depth)]
        attention = [f"{name}.{'cross' if i in cross else 'self'}_attn" for i, name in enumerate(layers)]
        sites = {site: [f"{name}.{part}" for name in attention] for site, part in _ATTENTION.items()}
        return sites | {site: [f"{name}.mlp.{part}" for name in layers] for site, part in _MLP.items()}

    def norm_sites(self) -> list[str]:
        """Name both norms of every layer of the decoder and the final one."""
        decoder, norms = "net.model.language_model", ("input_layernorm", "post_attention_layernorm")
        return [f"{decoder}.layers.{i}.{norm}" for i in range(self.depth) for norm in norms] + [f"{decoder}.norm"]

    @property
    def _tower(self) -> Any:  # noqa: ANN401 - of transformers
        return self.net.model.vision_model

    @property
    def _decoder(self) -> Any:  # noqa: ANN401 - of transformers
        return self.net.model.language_model

    def _read(self, index: int, values_BND: Tensor, memory: Memory, past: Past | None) -> Tensor:
        """Run a cross-attention layer; without a mask torch's attention would be causal there."""
        is_known = past is not None and past.words.get_seq_length(index) > 0
        bias_BT = memory.tokens_BTD.new_zeros(memory.tokens_BTD.shape[:2]) if memory.bias_BT is None else memory.bias_BT
        some_B1 = (bias_BT > float("-inf")).any(dim=1, keepdim=True)
        with precision(self.held, values_BND.device):
            out: Tensor = self._decoder.layers[index](
                values_BND,
                cross_attention_states=None if is_known else memory.tokens_BTD,
                cross_attention_mask=bias_BT.where(some_B1, 0)[:, None, None].to(values_BND.dtype),
                attention_mask=None,
                full_text_row_masked_out_mask=None,
                past_key_values=past and past.words,
            )
        return torch.where(some_B1[..., None], out.to(values_BND.dtype), values_BND)
