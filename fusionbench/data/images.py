"""Read pictures of any make as uint8, and keep them decoded and resized in memory-mapped files.

The cache is keyed by content and size, so a picture that two datasets or two modalities share is decoded once, and an
epoch decodes nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fusionbench.data.assets import home
from fusionbench.data.threads import in_threads
from fusionbench.errors import UserError
from fusionbench.files import write_bytes

DECODER = "1"  # goes up with any change to the pixels that reading or resizing gives
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_DEPTHS = (8, 10, 12, 14, 16)
_digests: dict[tuple[str, int, int], str] = {}
R = TypeVar("R")
Resize = Callable[[np.ndarray, int], np.ndarray]


class Source(Protocol):
    """Whose pictures a cache holds: a dataset, or what makes other pictures of one."""

    def read_image(self, item: str) -> np.ndarray:
        """Decode one item to uint8: a picture (H, W, C) with C 1 or 3, or a volume (S, H, W)."""
        ...

    def digest(self, item: str) -> str:
        """Return a sha256 of all that the pixels depend on."""
        ...


def read_image(path: Path) -> np.ndarray:
    """Decode a picture to uint8 (H, W, 1) or (H, W, 3), or a ``.npy`` volume to uint8 (S, H, W).

    EXIF orientation is applied; transparency is laid on black; palettes, CMYK and other colour spaces become RGB.
    Deeper pixels are scaled by their real range: full scale is the smallest of 8, 10, 12, 14 and 16 bits that holds the
    largest value of the file, so 65535 becomes 255 in a 16-bit picture and 4095 does in a 12-bit one that is stored in
    16. Floats in [0, 1] are multiplied by 255; whatever is negative or exceeds 16 bits is stretched from its
    least value to its greatest.

    Raises:
        UserError: The file is missing, empty, truncated, or no picture; names it.
    """
    try:
        content = path.read_bytes()
        if not content:
            raise ValueError("it is empty")
        return _read_volume(content) if path.suffix.lower() == ".npy" else _read_picture(content)
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise UserError(
            f"cannot read the image '{path}' ({_reason(error)}); repair or remove it, or set data.on_unreadable=missing"
        ) from error


def header_shape(path: Path) -> tuple[int, int] | None:
    """Return height and width as ``read_image`` gives them, decoding nothing; None if only it can tell."""
    try:
        with Image.open(path) as image:
            if image.format == "TIFF":  # whose size Pillow turns by itself, in some versions
                return None
            wide, high = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _SIDEWAYS
    except Exception:  # decoders raise whatever they like on damaged bytes; read_image says what is wrong
        return None
    return (wide, high) if turned else (high, wide)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture"  # Pillow names its buffer instead
    if isinstance(error, OSError) and error.strerror:
        return "it is not there" if isinstance(error, FileNotFoundError) else error.strerror.lower()
    return str(error) or type(error).__name__


def _read_volume(content: bytes) -> np.ndarray:
    volume = np.load(io.BytesIO(content), allow_pickle=False)
    if volume.ndim != 3 or 0 in volume.shape:
        raise ValueError(f"a volume has shape (slices, height, width), this array {volume.shape}")
    return _to_uint8(volume)


def _read_picture(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        deep_colour = any(";16" in str(tile.args) for tile in image.tile)
        image.load()
        upright = ImageOps.exif_transpose(_to_eight_bits(image, content, deep_colour))
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
        upright = flat.convert("L" if upright.mode in ("L", "LA", "La") else "RGB")
    array = np.array(upright.convert("L" if upright.mode in ("1", "L") else "RGB"))
    return array[..., None] if array.ndim == 2 else array


def _to_eight_bits(image: Image.Image, content: bytes, deep_colour: bool) -> Image.Image:
    """Return the picture with 8 bits a channel, its orientation kept."""
    array: np.ndarray
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        array = np.asarray(image)
    elif deep_colour:
        # Pillow drops the low byte of 16-bit colour, which turns a 12-bit picture black.
        array = np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED))
        array = cv2.cvtColor(array, cv2.COLOR_BGRA2RGBA if array.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    else:
        return image
    result = Image.fromarray(_to_uint8(array))
    if orientation := image.getexif().get(ExifTags.Base.Orientation):
        result.getexif()[ExifTags.Base.Orientation] = orientation
    return result


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Scale numbers of any type to 0..255 by the rule of ``read_image``."""
    if array.dtype == np.uint8:
        return array
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    full = next((2.0**bits - 1 for bits in _DEPTHS if high < 2**bits), None)
    if array.dtype.kind in "fb" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and full is not None:
        low, high = 0.0, full
    return np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 (H, W, C) to (size, size, C), whatever the aspect: area average where it shrinks, else bilinear."""
    height, width, channels = image.shape
    small = min(height, size), min(width, size)
    if small != (height, width):
        image = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
    if small != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return image.reshape(size, size, channels)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, computed once in a process as long as size and time of change stay the same.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        status = path.stat()
        key = (str(path.absolute()), status.st_size, status.st_mtime_ns)
        if key not in _digests:
            with path.open("rb") as file:
                _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return _digests[key]
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror}); is the path right and the file readable?") from error


class ImageCache:
    """Decoded pictures of one size, one ``.npy`` file (S, H, W, C) uint8 for each content.

    Several processes may fill one folder at once: a file appears under its name only when it is whole.

    Args:
        folder: Where the files lie; None is ``images`` in ``home()``. Below it they are at
            ``<decoder>/<size>/<first two of digest>/<digest>.npy``, where the decoder is the class whose
            ``read_image`` made the pixels and ``DECODER``: other pixels of the same content lie elsewhere.
        size: Height and width in pixels.
        shrink: Resizes one picture (H, W, C) to (size, size, C).
        noun: What the items are called in errors.
    """

    def __init__(self, folder: Path | None, size: int, shrink: Resize = resize, noun: str = "images") -> None:
        self._folder = folder or home() / "images"
        self.size, self._shrink, self._noun = size, shrink, noun
        self._path_of: dict[str, Path] = {}

    def prepare(
        self, dataset: Source, items: Iterable[str], on_unreadable: Literal["stop", "missing"] = "stop"
    ) -> set[str]:
        """Decode, resize and store each distinct content that is not stored yet.

        Returns:
            The items that could not be read; always empty with ``"stop"``.

        Raises:
            UserError: With ``"stop"``, some items cannot be read; names the first and says how many.
        """
        wanted = sorted(set(items) - self._path_of.keys())
        digests = self._hash(dataset, wanted)
        errors = {item: digest for item, digest in digests.items() if isinstance(digest, UserError)}
        items_of: dict[Path, list[str]] = {}
        for item in sorted(digests.keys() - errors.keys()):
            items_of.setdefault(self._place(dataset, str(digests[item])), []).append(item)
        outcomes = in_threads(lambda pair: self._store(dataset, pair[1][0], pair[0]), items_of.items(), "decoding")
        for (path, same), error in zip(items_of.items(), outcomes, strict=True):
            if error:
                errors.update(dict.fromkeys(same, error))
            else:
                self._path_of.update(dict.fromkeys(same, path))
        if errors and on_unreadable == "stop":
            first = min(errors)
            told = f"{len(errors)} of {len(wanted)} {self._noun} are unreadable"
            raise UserError(f"{told}, '{first}' first: {errors[first]}")
        return set(errors)

    def open(self, item: str) -> np.ndarray:
        """Return the pictures of a prepared item, uint8 (S, H, W, C), mapped from their file and read-only."""
        pictures: np.ndarray = np.load(self.path(item), mmap_mode="r")
        return pictures

    def path(self, item: str) -> Path:
        """Return the file of a prepared item.

        Raises:
            UserError: The item was never prepared, or could not be read.
        """
        if item not in self._path_of:
            raise UserError(f"'{item}' is not in the image cache; prepare() it first, or it was unreadable")
        return self._path_of[item]

    def _place(self, dataset: Source, digest: str) -> Path:
        decoder = next(c for c in type(dataset).__mro__ if "read_image" in vars(c))
        folder = self._folder / f"{decoder.__module__}.{decoder.__qualname__}-{DECODER}" / str(self.size)
        return folder / digest[:2] / f"{digest}.npy"

    def _hash(self, dataset: Source, items: list[str]) -> dict[str, str | UserError]:
        """Return each item's digest, or why it has none; files which an earlier run hashed are not read."""
        table = self._folder / "digests.json"
        known = _load_digests(table)
        digests = in_threads(lambda item: _attempt(dataset.digest, item), items, "hashing")
        if len(_digests) > known:
            _load_digests(table)
            write_bytes(table, json.dumps([[*key, digest] for key, digest in sorted(_digests.items())]).encode())
        return dict(zip(items, digests, strict=True))

    def _store(self, dataset: Source, item: str, path: Path) -> UserError | None:
        """Store an item unless its content is stored already; returns why it cannot be read."""
        if path.exists():
            return None
        image = _attempt(dataset.read_image, item)
        if isinstance(image, UserError):
            return image
        volume = image[None] if image.shape[-1] in (1, 3) else image[..., None]
        buffer = io.BytesIO()
        np.save(buffer, np.stack([self._shrink(picture, self.size) for picture in volume]))
        write_bytes(path, buffer.getvalue())
        return None


def _attempt(function: Callable[[str], R], item: str) -> R | UserError:
    try:
        return function(item)
    except UserError as error:
        return error


def _load_digests(table: Path) -> int:
    """Take over what other runs hashed and return how many are known; a damaged table is ignored, as a hint may be."""
    try:
        rows = json.loads(table.read_text("utf-8"))
        _digests.update({(str(path), int(size), int(mtime)): str(digest) for path, size, mtime, digest in rows})
    except (OSError, ValueError, TypeError):
        return len(_digests)
    return len(_digests)
