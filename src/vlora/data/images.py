"""Anything that may be an image becomes an RGB `PIL.Image`, or a one-sentence `ImageError`.

    str, path ─ read ─┐
    bytes ────────────┴─► header ─ size? ─► decode ─┐
    PIL image, array ───────────── size? ───────────┴─► upright ─► 8 bit ─► on white ─► RGB

The rules, because an image may come from a stranger:

- No address is ever opened, only local files; a file is read whole and closed before it is decoded.
- Only the decoders in `FORMATS` are tried, and the size in the header is checked before a pixel is decoded.
- A decoder's own words never reach the message: they help no user, and have leaked memory addresses.

And how the unusual becomes ordinary: of an animation the first frame; EXIF orientation applied; transparency
laid on white; 16-bit grey by its full range; 32-bit integers and floats, which have no agreed white, from
their smallest value (black) to their largest (white). Colour profiles are not applied.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlora.errors import ImageError

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
"""A path, the bytes of a file, a PIL image, or a uint8 array `[height, width, 3]` or `[height, width]`."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""The only decoders that are tried."""

MAX_PIXELS = 50_000_000
"""The largest image that is decoded, well under the limit of Pillow itself."""

MAX_BYTES = 256 * 1024 * 1024
"""The largest file that is read."""

_ALLOWED = "PNG, JPEG, WEBP, GIF, BMP or TIFF"
_ADDRESS = re.compile(r"\s*([a-z][a-z0-9+.-]*://|(https?|data|file|ftp):)", re.IGNORECASE)

_OWN_SIGNATURES = (
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_OTHER_SIGNATURES = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript file"),
    (b"8BPS", "a Photoshop file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\0\0\1\0", "an icon (ICO) file"),
)


def open_image(source: ImageLike) -> Image.Image:
    """Decode an image, safely, to RGB.

    Args:
        source: a path, the bytes of an image file, a PIL image, or a uint8 array.

    Returns:
        A new image of mode RGB that holds its own pixels and no metadata.

    Raises:
        ImageError: the source is not a usable image; the message says what it is and what to do.
    """
    given: object = source  # callers without a type checker give anything
    if isinstance(given, Image.Image):
        return _from_pil(given)
    if isinstance(given, np.ndarray):
        return _from_array(given)
    if isinstance(given, bytes):
        return _decode(given, "the given data")
    if isinstance(given, (str, os.PathLike)):
        path = os.fsdecode(given)
        _refuse_address(path)
        return _decode(read_file(path), _label(path))
    raise ImageError(
        f"an image was given as {type(given).__name__}: give a path, the bytes of a file, a PIL image or a uint8 array."
    )


def image_hash(image: ImageLike) -> str:
    """Return the SHA-256 of an image's size and decoded RGB pixels, whatever file it came from.

    Raises:
        ImageError: the image cannot be opened.
    """
    rgb = open_image(image)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


# -- from a source to pixels ------------------------------------------------------------------------------


def _refuse_address(path: str) -> None:
    """Raise if `path` is an address: fetching one for a stranger opens the network behind us to him."""
    if not _ADDRESS.match(path):
        return
    if path.lstrip().lower().startswith("data:"):
        advice = "decode it and give its bytes"
    else:
        advice = "download it first and give the path of the file"
    raise ImageError(f"{_label(path)} is an address, and images are read from local files only: {advice}.")


def read_file(path: str) -> bytes:
    """Read a regular file, of one that is too large only one byte more than is allowed.

    Raises:
        ImageError: it cannot be read.
    """
    name = _label(path)
    if "\0" in path:
        raise ImageError(f"{name} is no path: give the path of a {_ALLOWED} file, or the bytes as `bytes`.")
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name} is a folder: give the path of one {_ALLOWED} file.")
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device may block, or never end
            raise ImageError(f"{name} is a pipe or a device: give the path of a {_ALLOWED} file.")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)  # one more than allowed, so that _decode sees the excess
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{name} does not exist: give the path of a {_ALLOWED} file.") from None
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise ImageError(f"{name} cannot be read ({reason}): give a readable {_ALLOWED} file.") from None


def _decode(data: bytes, name: str) -> Image.Image:
    if not data:
        raise ImageError(f"{name} is empty (0 bytes): give a {_ALLOWED} file, or fetch this one again.")
    if len(data) > MAX_BYTES:
        raise ImageError(
            f"{name} has more than the {MAX_BYTES >> 20} MiB allowed: save it smaller, as JPEG for example."
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _decode_opened(image, name)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        # Pillow's own limit. Where its warning is no error, the check in _decode_opened does.
        raise _too_large(name, "more") from None
    except Exception:  # a decoder fed with noise raises almost anything
        raise ImageError(f"{name} is {_found(data)}.") from None


def _from_array(array: NDArray[Any]) -> Image.Image:
    name = "the given array"
    shape = "x".join(str(side) for side in array.shape) or "no shape"
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ImageError(f"{name} is {shape} of {array.dtype}: give height x width x 3, or height x width, of uint8.")
    if array.size == 0:
        raise ImageError(f"{name} is {shape}, without a pixel: give at least 1x1.")
    _check_size((array.shape[1], array.shape[0]), name)
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _from_pil(image: Image.Image) -> Image.Image:
    name = "the given PIL image"
    try:
        return _decode_opened(image, name)
    except ImageError:
        raise
    except Exception:  # it may still be an open, damaged file
        raise ImageError(f"{name} (mode {image.mode}) cannot be decoded: convert it to RGB first.") from None


def _decode_opened(image: Image.Image, name: str) -> Image.Image:
    """Check the size, and only then decode: an image fresh from `Image.open` has read its header only."""
    _check_size(image.size, name)
    image.load()
    return _to_rgb(image)


# -- from pixels to RGB -----------------------------------------------------------------------------------


def _to_rgb(image: Image.Image) -> Image.Image:
    """Make a decoded image of any mode upright, 8-bit, opaque and RGB; always a copy."""
    image = _upright(image)
    if image.mode.startswith("I;16"):
        image = _grey_from_16_bit(image)
    elif image.mode in ("I", "F"):
        image = _grey_by_range(image)
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, straight.convert("RGBA"))
    rgb = image.convert("RGB")
    # An orientation or a transparent colour that stayed behind would be applied again by the next reader.
    rgb.info = {}
    return rgb


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken metadata does not spoil the pixels: they stay as stored
        return image


def _grey_from_16_bit(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255, rounded (Pillow's own conversion has clipped in some versions)."""
    values = np.asarray(image).astype(np.uint32)
    grey = ((values + 128) // 257).astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):
        grey[values == key] = 255
    return Image.fromarray(grey)


def _grey_by_range(image: Image.Image) -> Image.Image:
    """Stretch 32-bit integers or floats from their smallest to their largest value; a constant is black."""
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    with np.errstate(invalid="ignore"):
        scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    scaled = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


# -- what to say ------------------------------------------------------------------------------------------


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width}x{height}, without a pixel: give at least 1x1.")
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width}x{height} pixels, more")


def _too_large(name: str, size: str) -> ImageError:
    return ImageError(f"{name} has {size} than the {MAX_PIXELS // 10**6} million pixels allowed: make it smaller.")


def _label(path: str) -> str:
    """Make a path fit for a one-line message: printable and short."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in path.strip())
    if len(shown) > 100:
        shown = f"{shown[:60]}...{shown[-30:]}"
    return shown or "the empty path"


def _found(data: bytes) -> str:
    """Say what undecodable bytes are, from their first ones, and what to do about it."""
    convert = f"not a {_ALLOWED} image: convert it to PNG first"
    for signature, kind in _OWN_SIGNATURES:
        if data.startswith(signature):
            return _damaged(kind)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _damaged("WEBP")
    for signature, what in _OTHER_SIGNATURES:
        if data.startswith(signature):
            return f"{what}, {convert}"
    if data[4:8] == b"ftyp":
        return f"a HEIC or AVIF image or a video, {convert}"
    text = _as_text(data[:1024])
    if "<svg" in text:
        return f"an SVG drawing, {convert}"
    if "<html" in text or "<!doctype html" in text:
        return f"a web page, not a {_ALLOWED} image: download the image itself"
    if text:
        return f"a text file, not a {_ALLOWED} image: give the path of an image file"
    if data.startswith(b"BM"):
        return _damaged("BMP")
    return f"of an unknown kind, {convert}"


def _damaged(kind: str) -> str:
    return (
        f"a {kind} file that is damaged, incomplete or of a rare variety: fetch it again or save it anew as {_ALLOWED}"
    )


def _as_text(head: bytes) -> str:
    """Return the lower-case text of `head`, or nothing if it is binary."""
    text = head.decode("utf-8", errors="replace").rstrip("\ufffd")  # the cut may split the last letter
    if "\ufffd" in text or not all(letter.isprintable() or letter.isspace() for letter in text):
        return ""
    return text.lower()
