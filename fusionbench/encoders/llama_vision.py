"""A text-only decoder of the Llama family that is given layers by which it reads the tokens of a vision transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.encoders.base import Tokens
from fusionbench.encoders.llama import Llama
from fusionbench.encoders.llama_weights import DecoderSource
from fusionbench.encoders.sight import EachSight, Sight, cross_layer
from fusionbench.encoders.timm_vit import TimmViT
from fusionbench.encoders.vision_language import Memory, Past, Pixels, VisionLanguage
from fusionbench.errors import UserError, check_number, nearest
from fusionbench.layers.skeleton import is_skeleton
from fusionbench.registry import register
from fusionbench.types import ModalitySpec, Tokenizer

# Llama 3.2 11B Vision: its 40 layers are 32 of text and 8 of cross-attention, which stand after 3, 7, ..., 31 of them.
_LIKE = (tuple(range(3, 32, 4)), 32)


@register
class LlamaVision(VisionLanguage):
    """A pretrained decoder with new gated cross-attention layers over the tokens of a pretrained ViT.

    Llama 3.2 Vision's way to make a text model see (after Flamingo, arXiv 2204.14198), for MDF-MLLM (arXiv 2509.21358)
    at the size of SmolLM2 and DINOv2-S. The decoder's own layers are as they were trained, with RoPE and a causal mask;
    the new ones start as the identity, so at the start all logits are exactly the unchanged decoder's. A new layer
    stands before one of the decoder's own, and its index in the whole stack is its place there.

    The ViT's normed class token and patch tokens go through a linear layer to the decoder's width. That layer and the
    new layers are trained whatever the tuning method, and each view has its own; decoder and ViT are as the method
    leaves them. All of this is our choice: the paper has the 11B model, whose layers are native.

    Args:
        weights: ``hub``, ``asset:NAME`` (``asset:smollm2``), ``random``, or a path to a folder with config.json and
            weights.
        vision: The ViT, as in ``timm_vit``: ``{model: vit_small_patch14_dinov2, weights: asset:dinov2_small}``, and
            ``size``, in pixels, to which its pictures are resized; without it they keep their own.
        model: Hub id of the decoder; not needed for a path or an asset.
        tokenizer: ``asset:NAME``, a folder or a hub id; null: beside the weights. Random weights need one.
        config: With random weights, a transformers config: ``{model_type: llama, hidden_size: 64, ...}``.
        layers: Which of the decoder's own layers, in this order, e.g. ``[0, 1, 2]``; null: all.
        at: Before which of them a new layer stands, counted in ``layers``, rising; null: eight at the relative places
            of Llama 3.2 (3, 7, ..., 31 of 32), fewer where the decoder has not so many layers.
        normalize: What the pictures were normalised by, which a run takes from ``data.transforms.normalize``; null:
            ``clip``, as there.
        checkpointing: Recompute layers in the backward pass to save memory.
    """

    kinds: ClassVar[tuple[str, ...]] = ("text",)
    takes_tokens: ClassVar[bool] = False

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        weights: str,
        vision: Mapping[str, Any],
        model: str | None = None,
        tokenizer: str | None = None,
        config: Mapping[str, Any] | None = None,
        layers: Sequence[int] | None = None,
        at: Sequence[int] | None = None,
        normalize: str | Sequence[Sequence[float]] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(spec, checkpointing)
        named: dict[str, Any] = {"weights": weights, "model": model, "tokenizer": tokenizer, "config": config}
        self.decoder = Llama(spec, **named, layers=layers, rope=True, causal=True)
        self.width, self.longest = self.decoder.width, int(self.decoder.source.config.max_position_embeddings)
        self._arrange(cross_places(self.decoder.depth) if at is None else at)
        source = self.decoder.source
        self.head = None if source.config.tie_word_embeddings else _head(source)
        self.vision, self.pixels = _vision(vision, normalize, checkpointing)
        self.sight = EachSight(self.selector, [self._sight()])

    @classmethod
    def load_tokenizer(cls, options: Mapping[str, Any]) -> Tokenizer:
        """Return the tokenizer that an encoder node names, without loading weights."""
        return Llama.load_tokenizer(options)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer made for another model, as ``llama`` does."""
        self.decoder.check_tokenizer(tokenizer)

    def furnish(self, specs: Sequence[ModalitySpec]) -> None:
        """Give each view its projection and its cross-attention layers, and have them trained."""
        first = self.sight.each[0]
        self.sight = EachSight(self.selector, [first, *(self._sight() for _ in specs[1:])])
        self.sight.requires_grad_(True)

    def beyond_tokens(self) -> list[str]:
        """Name what sees, what reads what was seen, and a language head of its own."""
        return ["vision", "sight", "head"]

    def embed(self, inputs: Tensor) -> Tokens:
        """Turn token ids (B, L) into tokens (B, L, D); padding is masked, but never the first.

        Raises:
            UserError: There are more tokens than the decoder has positions.
        """
        return self.decoder.embed(inputs)

    def see(self, images_BCHW: Tensor) -> Tensor:
        """Turn normalised pictures into the ViT's class token and patch tokens, (B, T, D) in the decoder's width."""
        values = self.vision.encode(self.vision.embed(self.pixels(images_BCHW))).values
        values = torch.cat([values[:, :1], values[:, self.vision.net.num_prefix_tokens :]], dim=1)  # no registers
        out: Tensor = self.sight(self.vision.net.norm(values))
        return out

    def decoder_layer(
        self,
        index: int,
        values_BND: Tensor,
        mask_BNN: Tensor,
        positions_BN: Tensor,
        memory: Memory | None,
        past: Past | None = None,
    ) -> Tensor:
        """Run a layer of the decoder's own, or a new one, which without memory changes nothing."""
        if index in self.cross_layers:
            return values_BND if memory is None else self.sight.read(self._place[index], values_BND, memory, past)
        rotary: Any = self.decoder.positions.rotary
        angles = rotary.to(values_BND.device)(values_BND, positions_BN)
        layers: Any = self.decoder.net.layers
        out: Tensor = layers[self._place[index]](
            values_BND,
            attention_mask=mask_BNN[:, None],
            position_embeddings=angles,
            past_key_values=past and past.words,
        )
        return out.to(values_BND.dtype)

    def vocabulary(self, values_BND: Tensor) -> Tensor:
        """Apply the final norm and the language head, which for tied embeddings is the token embedding itself."""
        net: Any = self.decoder.net
        normed: Tensor = net.norm(values_BND)
        logits: Tensor = F.linear(normed, net.embed_tokens.weight) if self.head is None else self.head(normed)
        return logits

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the normed last valid token, (B, D)."""
        return self.decoder.pool(tokens)

    def linear_sites(self) -> dict[str, list[str]]:
        """Name the linear layers of the decoder's own layers."""
        return {site: [f"decoder.{n}" for n in names] for site, names in self.decoder.linear_sites().items()}

    def norm_sites(self) -> list[str]:
        """Name the norms of the decoder's own layers and the final one."""
        return [f"decoder.{name}" for name in self.decoder.norm_sites()]

    def _arrange(self, at: Sequence[int]) -> None:
        """Set where the new layers stand in the whole stack, and which layer of its own sort each index is."""
        own = self.decoder.depth
        if not at or list(at) != sorted(set(at)):
            raise UserError(f"'encoder.at' must name one or more layers, each once and rising, not {list(at)}")
        for place in (at[0], at[-1]):
            if not 0 <= place < own:
                raise UserError(f"'encoder.at' names layer {place}, but the decoder has {own}, 0 to {own - 1}")
        self.depth = own + len(at)
        self.cross_layers = tuple(place + before for before, place in enumerate(at))
        others = [index for index in range(self.depth) if index not in self.cross_layers]
        self._place = {index: n for sort in (self.cross_layers, others) for n, index in enumerate(sort)}

    def _sight(self) -> Sight:
        made = [cross_layer(self.decoder.source.config) for _ in self.cross_layers]
        return Sight(nn.Linear(self.vision.width, self.width, bias=False), made)


def cross_places(depth: int) -> list[int]:
    """Return before which of a decoder's layers cross-attention stands by default."""
    places, of = _LIKE
    return sorted({depth * place // of for place in places})


def _vision(
    options: Mapping[str, Any], normalize: str | Sequence[Sequence[float]] | None, checkpointing: bool
) -> tuple[TimmViT, Pixels]:
    """Build the vision transformer and what makes pictures into its own.

    Raises:
        UserError: An option is missing, unknown or out of range.
    """
    known = ("model", "weights", "size")
    for key in options:
        if key not in known:
            raise UserError(f"there is no 'encoder.vision.{key}'{nearest(str(key), known)}")
    if "model" not in options or "weights" not in options:
        raise UserError("'encoder.vision' needs a ViT and its weights, as timm_vit: {model: NAME, weights: asset:NAME}")
    size = options.get("size")
    if size is not None:
        check_number("encoder.vision.size", size, least=1)
    named = {key: str(options[key]) for key in ("model", "weights")}
    tower = TimmViT(ModalitySpec("image", size=size or 0), **named, checkpointing=checkpointing)
    trained: Mapping[str, Any] = tower.net.pretrained_cfg
    return tower, Pixels(normalize, mean=trained["mean"], deviation=trained["std"], size=size)


def _head(source: DecoderSource) -> nn.Linear:
    """Return a language head of its own.

    Raises:
        UserError: The checkpoint has none, or one of another size.
    """
    width, words = int(source.config.hidden_size), int(source.config.vocab_size)
    if source.checkpoint is None:
        made = nn.Linear(width, words, bias=False)
        nn.init.normal_(made.weight, std=source.config.initializer_range)
        return made
    with torch.device("meta"):
        made = nn.Linear(width, words, bias=False)
    if is_skeleton():
        return made
    shape = torch.Size((words, width))
    state = source.checkpoint.read({"weight": ("lm_head.weight", shape)}, torch.float32)
    made.load_state_dict(state, assign=True)
    return made
