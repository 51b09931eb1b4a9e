"""Where an encoder's weights come from: the hub, a pinned asset, a path, or, only when asked for, a random start."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from fusionbench.errors import UserError

logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; the failure itself is ours to tell


def weights_path(weights: str) -> Path | None:
    """Return the local path that ``weights`` names, or None for ``hub`` and ``random``.

    Raises:
        UserError: The path is not there, or the asset is unknown.
    """
    if weights in ("hub", "random"):
        return None
    if weights.startswith("asset:"):
        from fusionbench.data.assets import asset

        return asset(weights.removeprefix("asset:"))
    path = Path(weights).expanduser()
    if not path.exists():
        raise UserError(
            f"encoder weights '{weights}' are neither a file nor a folder; possible are a path, hub, asset:NAME, random"
        )
    return path


def hub_failed(model: str, error: Exception) -> UserError:
    """Return the one sentence for weights that the hub did not give."""
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"the weights of '{model}' could not be had from the hub ({reason}); give a local file: encoder.weights=PATH"
    )


def only_random(encoder: str, weights: str) -> None:
    """Refuse weights where there are none to be had.

    Raises:
        UserError: ``weights`` is not ``random``.
    """
    if weights != "random":
        raise UserError(f"encoder '{encoder}' has no pretrained weights, so encoder.weights can only be random")


def read_timm_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors from .safetensors, .pth or .bin, also where they lie under ``model`` or ``state_dict``.

    Nothing but tensors and plain values is unpickled, and the ``argparse.Namespace`` that MAE checkpoints (RETFound)
    carry beside them.

    Raises:
        UserError: The file is damaged, or holds code, or is a folder.
    """
    if path.is_dir():
        raise UserError(
            f"encoder weights '{path}' are a folder, but a model of timm is one file: name a .safetensors, .pth or .bin"
        )
    from timm.models import load_state_dict

    try:
        with torch.serialization.safe_globals([Namespace]):
            state: dict[str, Tensor] = load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds
        raise UserError(f"'{path}' could not be read as weights: {' '.join(str(error).split())[:200]}") from None
    return state
