"""Any plain ViT of timm as an encoder of images."""

from __future__ import annotations

import math
from pathlib import Path

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fusionbench.encoders.base import Encoder, Tokens, attention_mask
from fusionbench.encoders.weights import hub_failed, read_timm_weights, weights_path
from fusionbench.errors import UserError, nearest
from fusionbench.layers.skeleton import is_skeleton
from fusionbench.registry import register
from fusionbench.types import ModalitySpec


@register
class TimmViT(Encoder):
    """Any timm ViT with a class token: CLIP, DINOv2 with or without registers, RETFound- or PanDerm-like checkpoints.

    Position embeddings stay at the grid they were trained on and are interpolated (bicubic) to each input's; inputs are
    padded with zeros at the right and bottom to a multiple of the patch (as EI does for DINOv2). One encoder therefore
    reads pictures of any size.

    Args:
        model: timm's name, e.g. ``vit_base_patch16_clip_224.openai``, or ``hf-hub:owner/name``.
        weights: ``hub``, ``asset:NAME``, ``random``, or a path to .safetensors, .pth or .bin.
        checkpointing: Recompute layers in the backward pass to save memory.
    """

    def __init__(self, spec: ModalitySpec, *, model: str, weights: str, checkpointing: bool = False) -> None:
        super().__init__(spec, checkpointing)
        self.net = _build(model, weights)
        self.width = int(self.net.embed_dim)
        self.depth = len(self.net.blocks)
        if spec.size:
            patches = [math.ceil(spec.size / side) for side in self.net.patch_embed.patch_size]
            self.sequence = math.prod(patches) + int(self.net.num_prefix_tokens)

    def embed(self, inputs: Tensor) -> Tokens:
        """Turn (B, 3, H, W) into class token, registers and patches with their positions, (B, N, D)."""
        net = self.net
        return Tokens(net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(inputs)))))

    def layer(self, index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Run one transformer block."""
        out: Tensor = self.net.blocks[index](values_BND, attn_mask=attention_mask(mask_BN))
        return out

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the normalised class token."""
        out: Tensor = self.net.norm(tokens.values[:, 0])
        return out

    def linear_sites(self) -> dict[str, list[str]]:
        """Name the linear layers of every block."""
        parts = {"fc1": "mlp.fc1", "fc2": "mlp.fc2", "qkv": "attn.qkv", "proj": "attn.proj"}
        return {site: [f"net.blocks.{i}.{part}" for i in range(self.depth)] for site, part in parts.items()}

    def norm_sites(self) -> list[str]:
        """Name both norms of every block and the final one."""
        return [f"net.blocks.{i}.{norm}" for i in range(self.depth) for norm in ("norm1", "norm2")] + ["net.norm"]

    def embedding_site(self) -> str | None:
        """Name the patch convolution."""
        return "net.patch_embed.proj"


def _build(model: str, weights: str) -> VisionTransformer:
    if not model.startswith("hf-hub:") and not timm.is_model(model):
        raise UserError(f"timm has no model '{model}'{nearest(model, timm.list_models('*vit*'))}")
    path = weights_path(weights)
    options = {"num_classes": 0, "global_pool": "token", "dynamic_img_size": True, "dynamic_img_pad": True}
    try:
        net = timm.create_model(model, pretrained=weights == "hub" and not is_skeleton(), **options)
    except (TypeError, AssertionError):
        raise UserError(f"'{model}' is no plain ViT with a class token; timm_cnn takes timm's other models") from None
    except Exception as error:  # the hub client raises many kinds
        raise hub_failed(model, error) from None
    if not isinstance(net, VisionTransformer) or net.cls_token is None:
        raise UserError(f"'{model}' is no plain ViT with a class token; timm_cnn takes timm's other models")
    if path is not None and not is_skeleton():
        _load(net, model, path)
    return net


def _load(net: VisionTransformer, model: str, path: Path) -> None:
    """Load a checkpoint by key, its positions resampled to the model's grid; what does not fit is an error."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    state = checkpoint_filter_fn(read_timm_weights(path), net)
    own = net.state_dict()
    missing = [k for k in own if k not in state]
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    if missing or wrong:
        raise UserError(
            f"'{path}' does not fit '{model}': {len(missing)} tensors are missing ({', '.join(missing[:3])}), "
            f"{len(wrong)} have another shape ({', '.join(wrong[:3])})"
        )
    net.load_state_dict({k: state[k] for k in own})
