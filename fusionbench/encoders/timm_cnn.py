"""Any timm model that gives a feature map, such as a ResNet or EfficientNet, as an encoder of images."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import timm
import torch
from torch import Tensor

from fusionbench.encoders.base import Encoder, Tokens, mean_of_own
from fusionbench.encoders.weights import hub_failed, read_timm_weights, weights_path
from fusionbench.errors import UserError, nearest
from fusionbench.layers.skeleton import is_skeleton
from fusionbench.registry import register
from fusionbench.types import ModalitySpec


@register
class TimmCNN(Encoder):
    """Any timm CNN: the last feature map's places are its tokens, their mean its vector.

    It has no class token and no layers that could take further tokens, so it serves late fusion but not EI.

    Args:
        model: timm's name, e.g. ``resnet18.a1_in1k``, ``efficientnet_lite0``.
        weights: ``hub``, ``asset:NAME``, ``random``, or a path to .safetensors, .pth or .bin.
    """

    takes_tokens: ClassVar[bool] = False

    def __init__(self, spec: ModalitySpec, *, model: str, weights: str) -> None:
        super().__init__(spec)
        if not model.startswith("hf-hub:") and not timm.is_model(model):
            raise UserError(f"timm has no model '{model}'{nearest(model, timm.list_models())}")
        path = weights_path(weights)
        try:
            is_hub = weights == "hub" and not is_skeleton()
            self.net = timm.create_model(model, pretrained=is_hub, num_classes=0, global_pool="")
        except Exception as error:  # the hub client raises many kinds
            raise hub_failed(model, error) from None
        if path is not None and not is_skeleton():
            _load(self.net, model, path)
        self.width = int(self.net.num_features)
        self.depth = 0

    def embed(self, inputs: Tensor) -> Tokens:
        """Turn (B, 3, H, W) into the last feature map's places, (B, H'·W', D)."""
        map_BDHW = self.net.forward_features(inputs)
        if map_BDHW.ndim != 4 or map_BDHW.shape[1] != self.width:
            raise UserError("timm_cnn needs a model whose features are a map (B, D, H, W); for ViTs there is timm_vit")
        return Tokens(map_BDHW.flatten(2).transpose(1, 2))

    def layer(self, index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Never run: all layers lie in ``embed``, the depth is 0."""
        return values_BND

    def pool(self, tokens: Tokens) -> Tensor:
        """Average over the feature map."""
        return mean_of_own(tokens)


def _load(net: torch.nn.Module, model: str, path: Path) -> None:
    state, own = read_timm_weights(path), net.state_dict()
    try:
        net.load_state_dict({k: v for k, v in state.items() if k in own})
    except RuntimeError as error:
        raise UserError(f"'{path}' does not fit '{model}': {' '.join(str(error).split())[:300]}") from None
