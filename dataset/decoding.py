"""Decodes images: a file, a member of a shard, a PIL image or an array becomes upright RGB uint8 (H, W, 3).

pixels = decode_image("photograph.jpg")
complaint = find_damage("photograph.jpg")    # what the decoder says is lost or wrong; "" for a whole image
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dataset.file_kinds import READS_AVIF, READS_HEIF, recognise
from dataset.tar_shards.reading import read_bytes, stamp_images
from utils import SHORTAGES, InputError, warn

if READS_HEIF:
    try:
        from pi_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
    except ImportError:
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
    register_heif_opener()

ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
IMAGE_FORMATS = (  # that PIL may open: for these it starts no program
    "JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", *["AVIF"] * READS_AVIF, *["HEIF"] * READS_HEIF,
)  # fmt: skip
MAX_PIXELS = 2 * 89_478_485  # from there on PIL speaks of a decompression bomb
DECODER_ERRORS = (  # what PIL raises over damaged files
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, ZeroDivisionError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
BACKGROUND = (255, 255, 255)  # behind transparent pixels: white, as on a page
TURNS: dict[int, Callable[[NDArray[np.void]], NDArray[np.void]]] = {  # by ORIENTATION; 1 is upright
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}

# ---- what libraries say while they decode ----
# Pillow warns through `warnings`, libtiff writes to stderr: neither knows the file. Both are caught by thread.

HARMLESS = ("Palette images with Transparency", "could be decompression bomb DOS attack")  # their pixels are right


class _Heard(threading.local):
    """What was said about the image that this thread decodes; None while it decodes none."""

    remarks: list[str] | None = None


_heard = _Heard()
_show_other_warning = warnings.showwarning


def _hear_warning(message: Warning | str, category: type[Warning], filename: str, *place: Any, **more: Any) -> None:
    if _heard.remarks is None:
        _show_other_warning(message, category, filename, *place, **more)
    else:
        _heard.remarks.append(" ".join(str(message).split()))


@ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
def _hear_libtiff(module: bytes | None, text: bytes, values: int | None) -> None:
    """libtiff's error handler: `text` is a pattern of printf, whose words before the first value tell enough."""
    if _heard.remarks is not None:
        _heard.remarks.append(f"{(module or b'libtiff').decode()}: {text.decode().partition('%')[0].strip(' (:')}")


def _listen() -> None:
    """From now on, let remarks about an image go to `_heard`."""
    warnings.filterwarnings("always", module=r"PIL\.")  # else the second file with the same fault is not spoken of
    warnings.showwarning = _hear_warning
    with suppress(OSError, AttributeError):  # a Pillow without libtiff, or which hides it, as on Windows
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(_hear_libtiff)


_listen()


@contextmanager
def _hear_remarks() -> Iterator[list[str]]:
    """Until the end of `with`, collect what is said in this thread."""
    before, _heard.remarks = _heard.remarks, []
    try:
        yield _heard.remarks
    finally:
        _heard.remarks = before


# ---- files ----


class Decoded(NamedTuple):
    """An image, and what its decoder said about it."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB
    lost: str  # what says that pixels are lost: they are grey or wrong; "" for none
    remark: str  # what else was said, for example of damaged Exif data; "" for nothing


def decode_image(path: str | Path) -> NDArray[np.uint8]:
    """The image file, or member of a shard, as upright RGB uint8 (H, W, 3). Raises InputError when it cannot be read.

    A file with several pictures gives the first one. 16 bits are scaled to 8. Transparent pixels become white. Warns of
    an image that is damaged but can be read.
    """
    return decode_content(read_content(path), path)


def decode_content(data: bytes, path: str | Path) -> NDArray[np.uint8]:
    """`decode_image` for the content `data` of the file, which is read already."""
    decoded = judge_bytes(data, str(path))
    _warn_of_damage(decoded, str(path), ' (BAD_IMAGES = "skip" leaves it out)')
    return decoded.pixels


def read_content(path: str | Path) -> bytes:
    """The bytes of the image file, or member of a shard. Raises InputError when it cannot be read."""
    try:
        return read_bytes(path)
    except OSError as error:
        if error.errno in SHORTAGES:  # the image may be whole
            raise
        raise InputError(f"cannot read image {path}: {error.strerror}") from error


def judge_image(path: str | Path) -> Decoded:
    """`decode_image` with what the decoder said, which is not printed."""
    return judge_bytes(read_content(path), str(path))


def find_damage(path: str | Path) -> str:
    """What the decoder says is lost or wrong in an image that can be read; "" for a whole one. Raises InputError."""
    decoded = judge_image(path)
    return decoded.lost or decoded.remark


def decode_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode the content of an image file, as `decode_image` does; messages say `name`."""
    decoded = judge_bytes(data, name)
    _warn_of_damage(decoded, name)
    return decoded.pixels


MOST_LINES = 5  # about damaged images that a process prints: `check` names them all
_said: set[str] = set()


def _warn_of_damage(decoded: Decoded, name: str, advice: str = "") -> None:
    what = (decoded.lost or decoded.remark).rstrip(".")
    if what and name not in _said and len(_said) < MOST_LINES:
        _said.add(name)
        loss = f"part of the picture is lost{advice}" if decoded.lost else "it is used as it is"
        more = "; `dataset_tools.py check` names any others" if len(_said) == MOST_LINES else ""
        warn(f"{name}: {what}: {loss}{more}")


def judge_bytes(data: bytes, name: str) -> Decoded:
    """`judge_image` for the content of an image file; messages say `name`."""
    complaint = ""
    with _hear_remarks() as remarks:
        try:
            if data[:2] == b"\xff\xd8":
                pixels, complaint = _decode_jpeg(data)
                if pixels is not None:
                    return Decoded(pixels, "", _join(remarks))
            with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                pixels = make_rgb(ImageOps.exif_transpose(image))
        except UnidentifiedImageError as error:
            raise InputError(f"cannot read image {name}: {tell_content(data)}") from error
        except DECODER_ERRORS as error:
            reason = str(error).replace("\n", " ") or type(error).__name__
            said = _join(remarks)
            raise InputError(f"cannot read image {name}: {reason}{f' ({said})' if said else ''}") from error
    if complaint:
        remarks.append(complaint)
    return Decoded(pixels, _join(filter(_tells_loss, remarks)), _join(remarks))


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """The image as PIL opens it, its pixels not yet decoded. What libraries say about it is not printed."""
    with _hear_remarks(), Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
        yield image


def tell_content(data: bytes) -> str:
    """What a file is that is no image: "it is a HEIC image: pip install pi-heif"."""
    if not data:
        return "the file is empty"
    what = recognise(data)
    return f"it is {what}" if what else f"it is no {', '.join(IMAGE_FORMATS)} file"


def _join(remarks: Iterable[str]) -> str:
    """The different remarks that matter, in one line."""
    return "; ".join(dict.fromkeys(remark for remark in remarks if not any(words in remark for words in HARMLESS)))


def _tells_loss(remark: str) -> bool:
    """Whether it says that pixels are lost. Bytes too many are harmless: some cameras leave them."""
    words = remark.lower()
    return "extraneous" not in words and any(
        word in words for word in ("corrupt jpeg data", "premature end", "decode", "jpeglib", "scanline")
    )


def _decode_jpeg(data: bytes) -> tuple[NDArray[np.uint8] | None, str]:
    """(the pixels, or None where PIL is to decode; what libjpeg complains of).

    simplejpeg gives the same pixels as PIL in half the time, and says where libjpeg had to guess. PIL decodes what is
    too large, has another colour space, or is damaged.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if int(height) * int(width) > MAX_PIXELS:
            return None, ""
        if colorspace in ("CMYK", "YCCK"):
            simplejpeg.decode_jpeg(data, "CMYK")
            return None, ""
        pixels = simplejpeg.decode_jpeg(data)
    except ValueError as error:
        return None, str(error)
    return _turn(pixels, data), ""


def _turn(pixels: NDArray[np.uint8], data: bytes) -> NDArray[np.uint8]:
    """The pixels upright, by the Exif data of their file."""
    turn = find_turn(data)
    if turn is None:
        return pixels
    turned = np.ascontiguousarray(turn(pixels.view("V3")[..., 0]))  # a pixel as one element: in half the time
    return turned.view(np.uint8).reshape(*turned.shape, 3)


def find_turn(data: bytes) -> Callable[[NDArray[np.void]], NDArray[np.void]] | None:
    """What makes the pixels of a JPEG upright, by its Exif data; None where they are."""
    if not any(marker == 0xE1 and data[start : start + 6] == b"Exif\0\0" for marker, start in list_segments(data)):
        return None
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))


def list_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, where its content starts) of each segment of a JPEG before the pixels begin."""
    start = 2
    while data[start : start + 1] == b"\xff" and data[start + 1] != 0xDA:
        if data[start + 1] == 0xFF:  # padding
            start += 1
        else:
            yield data[start + 1], start + 4
            start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")


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


def fingerprint_sizes(stamps: NDArray[np.int64]) -> str:
    """16 hexadecimal digits that change with the size of a file, as it does where another picture has the same name.

    `stamps` (N, 2) are those of `stamp_files`. Times change with every copy, and to read all files would take long.
    """
    return hashlib.sha256(stamps[:, 0].tobytes()).hexdigest()[:16]


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
            with _hear_remarks():  # its file is not known
                return make_rgb(ImageOps.exif_transpose(image))
        except DECODER_ERRORS as error:
            raise InputError(f"cannot read a PIL image: {str(error) or type(error).__name__}") from error
    is_rgb = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if is_rgb and image.size:
        return np.require(image, requirements=["C", "W"])  # as torch takes it
    found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise InputError(f"an image is a file, its bytes, a PIL image or an array uint8 (H, W, 3) RGB, not {found}")
