"""Decodes images: a file, a member of a shard, a PIL image or an array becomes upright RGB uint8 (H, W, 3).

pixels = decode_image("photograph.jpg")
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dataset.tar_shards.reading import read_bytes, stamp_images
from utils import SHORTAGES, InputError

ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")  # that PIL may open: for these it starts no program
MAX_PIXELS = 2 * 89_478_485  # from there on PIL speaks of a decompression bomb
DECODER_ERRORS = (  # what PIL raises over damaged files
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, ZeroDivisionError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
BACKGROUND = (255, 255, 255)  # behind transparent pixels: white, as on a page


def decode_image(path: str | Path) -> NDArray[np.uint8]:
    """The image file, or member of a shard, as upright RGB uint8 (H, W, 3). Raises InputError when it cannot be read.

    A file with several pictures gives the first one. 16 bits are scaled to 8. Transparent pixels become white.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        if error.errno in SHORTAGES:  # the image may be whole
            raise
        raise InputError(f"cannot read image {path}: {error.strerror}") from error
    return decode_bytes(data, str(path))


def decode_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode the content of an image file, as `decode_image` does; an InputError says `name`."""
    try:
        if data[:2] == b"\xff\xd8":
            try:
                if _is_plain_jpeg(data):
                    return simplejpeg.decode_jpeg(data)  # the same pixels as PIL's in half the time
            except ValueError:
                pass  # damaged: PIL decides
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            return make_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        reason = f"it is no {', '.join(IMAGE_FORMATS)} file" if data else "the file is empty"
        raise InputError(f"cannot read image {name}: {reason}") from error
    except DECODER_ERRORS as error:
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise InputError(f"cannot read image {name}: {reason}") from error


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether simplejpeg may decode a JPEG: it is not too large, not CMYK, and has no Exif data, which may turn it."""
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    if int(height) * int(width) > MAX_PIXELS or colorspace in ("CMYK", "YCCK"):
        return False
    start = 2
    while data[start : start + 1] == b"\xff" and data[start + 1] != 0xDA:  # up to where the pixels begin
        if data[start + 1] == 0xFF:  # padding
            start += 1
        elif data[start + 1] == 0xE1 and data[start + 4 : start + 10] == b"Exif\0\0":
            return False
        else:
            start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return True


def make_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels as a person sees them: RGB uint8 (H, W, 3). Raises ValueError for pixels of 32 bits."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)  # convert() would clip
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, of which none says what is white; save it with 8 or 16")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return np.array(image.convert("RGB"))


def stamp_files(paths: Sequence[str]) -> NDArray[np.int64]:
    """(N, 2) size in bytes and time of last change in nanoseconds of each file."""
    try:
        return np.array(list(stamp_images(paths)), dtype=np.int64).reshape(-1, 2)
    except OSError as error:
        raise InputError(f"cannot read image {error.filename}: {error.strerror}") from error


# a file, or what is in memory: the content of a file, a PIL image, or an array (H, W, 3) RGB
Picture = str | Path | bytes | Image.Image | NDArray[np.uint8]


def decode(image: Picture) -> NDArray[np.uint8]:
    """Any picture as upright RGB uint8 (H, W, 3). Raises InputError for what is none."""
    if isinstance(image, str | Path):
        return decode_image(image)
    if isinstance(image, bytes):
        return decode_bytes(image, f"in memory ({len(image):,} bytes)")
    if isinstance(image, Image.Image):
        try:
            return make_rgb(ImageOps.exif_transpose(image))
        except DECODER_ERRORS as error:
            raise InputError(f"cannot read a PIL image: {str(error) or type(error).__name__}") from error
    is_rgb = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if is_rgb and image.size:
        return np.require(image, requirements=["C", "W"])  # as torch takes it
    found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise InputError(f"an image is a file, its bytes, a PIL image or an array uint8 (H, W, 3) RGB, not {found}")
