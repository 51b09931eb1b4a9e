"""Pictures from an archive to small grey PNG files, several at once."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from fusionbench.data.images import resize
from fusionbench.data.prepare.archives import stream_archive
from fusionbench.errors import UserError
from fusionbench.files import write_bytes

_AHEAD = 4  # pictures read ahead for each thread, which bounds the memory


def convert_pictures(archive: Path, names: Set[str], folder: Path, size: int) -> set[str]:
    """Write ``<name>.png``, grey and (size, size), for each wanted picture of an archive; one that is there stays.

    Each file appears whole or not at all, so that the same call goes on where another was stopped. The archive is read
    once, up to the last wanted picture, and not at all if none is left to do.

    Args:
        archive: A tar archive of ``.png`` files.
        names: The wanted pictures, without extension.
        folder: Where they go.
        size: Height and width in pixels; shrunk by area average, whatever the aspect.

    Returns:
        The names that the archive lacks.

    Raises:
        UserError: The archive or a wanted picture is damaged; those before it are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.tmp"):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    left = set(names) - {path.stem for path in folder.glob("*.png")}
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=len(names), completed=len(names) - len(left))
        if left:
            for name in _convert(archive, frozenset(left), folder, size):
                left.discard(name)
                bar.advance(task)
    return left


def _convert(archive: Path, names: Set[str], folder: Path, size: int) -> Iterator[str]:
    """Convert in threads, which decoding leaves free to run, and yield each picture's name once it is written."""
    threads = min(8, os.cpu_count() or 1)
    running: set[Future[str]] = set()
    with ThreadPoolExecutor(threads) as pool:
        for name, content in _wanted(archive, names):
            running.add(pool.submit(_store, name, content, folder, size))
            if len(running) >= _AHEAD * threads:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in running)


def _wanted(archive: Path, names: Set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield each wanted picture's name and content, and stop after the last of them."""
    left = set(names)
    for file, content in stream_archive(archive, lambda file: file.removesuffix(".png") in left):
        name = file.removesuffix(".png")
        left.remove(name)
        yield name, content
        if not left:
            return


def _store(name: str, content: bytes, folder: Path, size: int) -> str:
    """Write one picture and return its name."""
    picture = resize(_grey(name, content), size)
    _, encoded = cv2.imencode(".png", picture)
    write_bytes(folder / f"{name}.png", encoded.tobytes())
    return name


def _grey(name: str, content: bytes) -> np.ndarray:
    """Decode a picture to uint8 (H, W, 1)."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits a pixel")
            return np.asarray(image.convert("L"))[..., None]
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise UserError(
            f"cannot read the picture '{name}' in the archive ({error}): fetch the archive again"
        ) from error
