"""One view's adapters as a folder in peft's format, which ``peft.PeftModel.from_pretrained`` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from fusionbench.data.assets import ASSETS
from fusionbench.files import write_json, write_tensors
from fusionbench.layers.adaptable import Adaptable
from fusionbench.layers.peft_views import PeftLinear, PeftParts

_HUB = "models--"  # how the hub's cache calls the folder of OWNER/NAME, with -- for the slash


def write_adapter(layers: Adaptable, view: int, folder: Path, *, rank: int, alpha: float, dropout: float) -> Path:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Names are those within the encoder's ``net``, so that the adapter fits timm's or transformers' own model. Where
    ``net`` has chosen layers of a decoder (``net.places``), they are those in the whole decoder, into which the adapter
    loads at the right layers. A layer that is there twice has no such place: then names stay those within ``net``, and
    the file names no base model.

    Args:
        layers: An encoder, or a strategy's own layers, with adapters in them.
        view: Whose adapters.
        folder: Where to; made if need be.
        rank: R.
        alpha: α; an update is scaled by α / R.
        dropout: Share of the adapters' inputs that was dropped in training.

    Returns:
        The folder.
    """
    from peft import LoraConfig
    from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

    net = getattr(layers, "net", layers)
    places: tuple[int, ...] = getattr(net, "places", ())
    is_twice = len(set(places)) < len(places)
    found = {name if is_twice else _in_whole(name, places): module for name, module in adapted(layers).items()}
    fused = {name: len(module.parts) for name, module in found.items() if isinstance(module, PeftParts)}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        rank_pattern={name: count * rank for name, count in fused.items()},
        alpha_pattern={name: count * alpha for name, count in fused.items()},
        base_model_name_or_path=None if is_twice else base_name(net),
        inference_mode=True,
    )
    config.target_modules = list(found)  # peft's own constructor makes it a set, whose order differs between processes
    tensors = {
        f"base_model.model.{name}.{key}": value.cpu().contiguous()
        for name, module in found.items()
        for key, value in module.peft_state(view).items()
    }
    write_tensors(folder / SAFETENSORS_WEIGHTS_NAME, tensors, {"format": "pt"})
    write_json(folder / CONFIG_NAME, config.to_dict())
    return folder


def adapted(layers: Adaptable) -> dict[str, PeftLinear | PeftParts]:
    """Return the adapted layers by their names within ``net``, if they all are in there."""
    kinds = (PeftLinear, PeftParts)
    found = {name: module for name, module in layers.named_modules() if isinstance(module, kinds)}
    within = all(name.startswith("net.") for name in found)
    return {name.removeprefix("net.") if within else name: module for name, module in found.items()}


def _in_whole(name: str, places: Sequence[int]) -> str:
    """Return what ``layers.N.REST`` of chosen layers is called in the whole decoder."""
    if not places or not name.startswith("layers."):
        return name
    _, place, rest = name.split(".", 2)
    return f"layers.{places[int(place)]}.{rest}"


def base_name(net: nn.Module) -> str | None:
    """Return what a model is called on any machine: its id, ``asset:NAME`` or its folder's last name; None: random."""
    timm = getattr(net, "pretrained_cfg", None)
    if timm:
        values = timm if isinstance(timm, dict) else vars(timm)
        return ".".join(str(values[key]) for key in ("architecture", "tag") if values.get(key)) or None
    given = str(getattr(getattr(net, "config", None), "_name_or_path", ""))
    if not given or not Path(given).exists():
        return given or None
    parts = Path(given).resolve().parts
    assets = [f"asset:{a.name}" for a in ASSETS.values() if f"{a.name}-{a.version}" in parts]
    hub = [part.removeprefix(_HUB).replace("--", "/") for part in parts if part.startswith(_HUB)]
    return next(iter(assets + hub), parts[-1])
