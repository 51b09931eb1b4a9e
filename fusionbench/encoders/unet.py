"""A U-Net: its encoder's deepest features for any fusion, its skips and mask decoder for those that want them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import segmentation_models_pytorch as smp
import timm
from torch import Tensor, nn

from fusionbench.encoders.base import Encoder, Tokens, mean_of_own
from fusionbench.encoders.weights import hub_failed, read_timm_weights, weights_path
from fusionbench.errors import UserError, nearest
from fusionbench.layers.skeleton import is_skeleton
from fusionbench.registry import register
from fusionbench.types import ModalitySpec

_TIMM = "tu-"  # how segmentation_models_pytorch marks a backbone of timm
_SKIPS = slice(2, 6)  # after the picture itself and the stem: the stages at strides 4, 8, 16 and 32


class Pyramid(NamedTuple):
    """A U-Net encoder's features.

    Attributes:
        images: (B, 3, H, W), what was encoded.
        stem: (B, C, H / 2, W / 2).
        skips: The four stages (B, C_l, H_l, W_l) at strides 4, 8, 16 and 32, shallow to deep.
    """

    images: Tensor
    stem: Tensor
    skips: list[Tensor]


@register
class UNet(Encoder):
    """segmentation_models_pytorch's U-Net, as in MDF-MLLM (arXiv 2509.21358): ResNet-50 with four residual stages.

    For any fusion, the deepest stage's places are its tokens, their mean its vector. A strategy that segments takes
    the ``pyramid``, whose skips have 256, 512, 1024 and 2048 channels with ResNet-50, and ``decode``s it to a mask.
    Pictures of any size are taken, since the decoder upsamples to each skip's own size.

    Ours: it is trained whole whatever the tuning method, since those are made for transformers; ``freeze: [unet]`` of
    ``mdf`` freezes its encoder, not the mask decoder.

    Args:
        backbone: segmentation_models_pytorch's name (``resnet50``, ``efficientnet-b0``), or ``tu-`` and timm's name.
        weights: ``hub`` (ImageNet), ``random``, ``asset:NAME``, or a path to a .safetensors, .pth or .bin of the
            backbone as torchvision or timm save it, or of a whole U-Net as segmentation_models_pytorch saves it.
        segment: Whether there is a mask decoder; it starts at random unless the weights hold one.

    Attributes:
        skip_channels: C_l of the four skips, shallow to deep.
        segment: Whether there is a mask decoder.
    """

    takes_tokens: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = True

    def __init__(self, spec: ModalitySpec, *, weights: str, backbone: str = "resnet50", segment: bool = False) -> None:
        super().__init__(spec)
        _check_backbone(backbone)
        path = weights_path(weights)
        whole = _build(backbone, hub=weights == "hub" and not is_skeleton())
        if path is not None and not is_skeleton():
            _load(whole, backbone, path)
        self.net: Any = whole.encoder
        self.segment = segment
        if segment:
            self.decoder: Any = whole.decoder
            self.head: Any = whole.segmentation_head
        self.skip_channels: tuple[int, ...] = tuple(self.net.out_channels[_SKIPS])
        self.width = self.skip_channels[-1]
        self.depth = 0

    def pyramid(self, images_BCHW: Tensor) -> Pyramid:
        """Return the features of (B, 3, H, W) at all strides, computed once for fusion and decoder."""
        features = self.net(images_BCHW)
        return Pyramid(images_BCHW, features[1], list(features[_SKIPS]))

    def decode(self, pyramid: Pyramid) -> Tensor:
        """Return the mask's logits (B, 1, H, W); ``pyramid._replace(skips=...)`` decodes changed skips.

        Raises:
            UserError: It was built without a decoder.
        """
        if not self.segment:
            raise UserError("this U-Net has no mask decoder; build it with encoder.segment=true")
        logits: Tensor = self.head(self.decoder([pyramid.images, pyramid.stem, *pyramid.skips]))
        return logits

    def beyond_tokens(self) -> list[str]:
        """Name the mask decoder."""
        return ["decoder", "head"]

    def keep_tokens(self) -> None:
        """Let go of the mask decoder."""
        super().keep_tokens()
        self.segment = False

    def embed(self, inputs: Tensor) -> Tokens:
        """Turn (B, 3, H, W) into the deepest stage's places, (B, H'·W', D)."""
        return Tokens(self.pyramid(inputs).skips[-1].flatten(2).mT)

    def layer(self, index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Never run: all layers lie in ``embed``, the depth is 0."""
        return values_BND

    def pool(self, tokens: Tokens) -> Tensor:
        """Average over the deepest stage's places."""
        return mean_of_own(tokens)


def _check_backbone(name: str) -> None:
    """Refuse a backbone that there is not."""
    known = smp.encoders.get_encoder_names()
    if name.startswith(_TIMM):
        if not timm.is_model(name.removeprefix(_TIMM)):
            models = [_TIMM + model for model in timm.list_models()]
            raise UserError(f"timm has no model for the U-Net backbone '{name}'{nearest(name, models)}")
    elif name not in known:
        raise UserError(f"there is no U-Net backbone '{name}'{nearest(name, known)}")


def _build(backbone: str, *, hub: bool) -> Any:  # noqa: ANN401 - the library is untyped
    """Return the library's U-Net for one mask."""
    pretrained = True if backbone.startswith(_TIMM) else "imagenet"
    try:
        return smp.Unet(backbone, encoder_weights=pretrained if hub else None, in_channels=3, classes=1)
    except Exception as error:  # the hub client and timm raise many kinds
        if hub:
            raise hub_failed(backbone, error) from None
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"'{backbone}' cannot be a U-Net's backbone, which needs five strides: {reason}") from None


def _load(whole: Any, backbone: str, path: Path) -> None:  # noqa: ANN401 - the library is untyped
    """Read a whole U-Net, or its backbone, as the file's names tell."""
    state = read_timm_weights(path)
    if any(key.startswith("decoder.") for key in state):
        _fill(whole, state, backbone, path)
        return
    prefix = "model." if backbone.startswith(_TIMM) else ""
    _fill(whole.encoder, {prefix + key: value for key, value in state.items()}, backbone, path)


def _fill(part: nn.Module, state: dict[str, Tensor], backbone: str, path: Path) -> None:
    """Load what a part needs of a file that may hold more."""
    own = {key for key in part.state_dict() if not key.endswith("num_batches_tracked")}
    missing = sorted(own - set(state))
    if missing:
        raise UserError(f"'{path}' lacks {len(missing)} of the {len(own)} tensors of '{backbone}' ({missing[0]})")
    try:
        part.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)
    except RuntimeError as error:
        raise UserError(f"'{path}' does not fit '{backbone}': {' '.join(str(error).split())[:300]}") from None
