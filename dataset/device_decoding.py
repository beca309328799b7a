"""Decodes JPEGs on a GPU, a whole batch at once (PICTURES_ON = "gpu"). What it cannot decode, the CPU's decoder does.

    part = take_file(data, path, draw)    # in a loading process: the file or, where the GPU cannot, part of its pixels
    images = send([part, ...])            # stands where Batch.images stands
    pictures = images.to(device)          # in the process that trains: uint8 (B, 3, h, w)

A GPU's decoder cannot run in forked processes: these send the bytes of files. Its pixels differ by some levels from
those of the CPU's decoder, which smooths colours where they are stored more coarsely than brightness.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from dataset import device_pictures
from dataset.decoding import DECODER_ERRORS, MAX_PIXELS, decode_bytes, decode_content, find_turn, list_segments
from dataset.device_pictures import SentImages
from dataset.plans import Part, Plan, take_part
from utils import InputError, first_line

BASELINE = 0xC0  # the segment of a JPEG that is neither progressive nor arithmetically coded, of 8 bits a colour
START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # segments that say how the pixels are coded
COLOURS = ("YCbCr", "Gray")
Decoder = Callable[[list[Tensor], torch.device], list[Tensor]]  # (files uint8 (n,), device) -> images (3, H, W)
SAMPLINGS = ("444", "422", "420", "440", "411", "Gray")  # of colours, which nvJPEG takes


class File(NamedTuple):
    """A JPEG file that the GPU can decode, and the plan of what becomes of its image."""

    data: bytes
    name: str
    plan: Plan


def take_file(data: bytes, path: str | Path, draw: Callable[[int, int], Plan], is_whole: bool = False) -> File | Part:
    """What a loading process sends of the image file `path` with the content `data`.

    It is the file itself where the GPU can decode it, else what `draw(height, width)` needs of the pixels, which are
    decoded here. `is_whole`: no damage was found before. Raises InputError for an image that cannot be read, and warns
    of damage, as `decode_image` does.
    """
    size = find_size(data, is_whole)
    if size:
        return File(data, str(path), draw(*size))
    pixels = decode_content(data, path)
    return take_part(pixels, draw(*pixels.shape[:2]))


def find_size(data: bytes, is_whole: bool = False) -> tuple[int, int] | None:
    """(height, width) of a JPEG that the GPU decodes to the same picture as the CPU; None for any other file.

    It is upright, whole, and not progressive: such scans are decoded by one core even with a GPU, so the loading
    processes, of which there are many, do that sooner. Unless the file `is_whole`, libjpeg looks for damage, of which a
    GPU may not tell: it reads the file through, to an eighth of its size, in two thirds of the time of decoding it.
    """
    if data[:2] != b"\xff\xd8":
        return None
    try:
        *sides, colours, sampling = simplejpeg.decode_jpeg_header(data)
        height, width = map(int, sides)
        frames = [marker for marker, _ in list_segments(data) if marker in START_OF_FRAME]
        if colours not in COLOURS or sampling not in SAMPLINGS or frames != [BASELINE]:
            return None
        if height * width > MAX_PIXELS or find_turn(data):
            return None
        if not is_whole:
            simplejpeg.decode_jpeg(data, min_height=1, min_width=1, min_factor=1)
    except DECODER_ERRORS:  # the CPU's decoder finds it again, and says it
        return None
    return height, width


class Sent(NamedTuple):
    """What was sent of one image: a file, or pixels."""

    num_bytes: int
    plan: Plan
    name: str  # of the file
    shape: tuple[int, ...]  # (h, w, 3) of the pixels; () for a file


@dataclass
class SentFiles:
    """The images of a batch before they are decoded. It stands where `Batch.images` stands."""

    data: Tensor  # uint8, files and pixels one after the other: one tensor, since processes pass each as an open file
    sent: list[Sent]

    def __len__(self) -> int:
        return len(self.sent)

    def pin_memory(self) -> SentFiles:
        """The same in pinned memory: the loader calls it."""
        return replace(self, data=self.data.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tensor:
        """The pictures, uint8 (B, 3, h, w) on `device`."""
        pieces = self.data.split([sent.num_bytes for sent in self.sent])
        files = [(piece, sent.name) for piece, sent in zip(pieces, self.sent, strict=True) if not sent.shape]
        images = iter(decode_jpegs(files, torch.device(device)))
        parts = []
        for piece, sent in zip(pieces, self.sent, strict=True):
            if sent.shape:
                parts.append(Part(piece.view(sent.shape).to(device, non_blocking=non_blocking), sent.plan))
            else:
                parts.append(take_part(next(images).permute(1, 2, 0), sent.plan))
        return device_pictures.send(parts).to(device, non_blocking=non_blocking)


def send(images: Sequence[File | Part]) -> SentFiles | SentImages:
    """Put the files and parts of a batch's images together."""
    parts = [image for image in images if isinstance(image, Part)]
    if len(parts) == len(images):
        return device_pictures.send(parts)
    pieces, sent = [], []
    for image in images:
        if isinstance(image, File):
            pieces.append(np.frombuffer(image.data, np.uint8))
            sent.append(Sent(len(image.data), image.plan, image.name, ()))
        else:
            pieces.append(image.pixels.numpy().ravel())
            sent.append(Sent(image.pixels.numel(), image.plan, "", tuple(image.pixels.shape)))
    return SentFiles(torch.from_numpy(np.concatenate(pieces)), sent)


def decode_jpegs(files: Sequence[tuple[Tensor, str]], device: torch.device) -> list[Tensor]:
    """The images uint8 (3, H, W) on `device` of JPEGs: (content uint8 (n,) on the CPU, name) each.

    Where the decoder refuses one of them, each is decoded by itself, and the CPU decodes those that it refuses.
    """
    if not files:
        return []
    decode = find_decoder(device)
    try:
        return decode([content for content, _ in files], device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        if len(files) > 1:
            return [image for file in files for image in decode_jpegs([file], device)]
    content, name = files[0]
    return [torch.from_numpy(decode_bytes(content.numpy().tobytes(), name)).permute(2, 0, 1).to(device)]


@functools.cache
def find_decoder(device: torch.device) -> Decoder:
    """A function (files, device) -> images, by nvJPEG on a GPU: of torchcodec or, without it, of torchvision.

    torchvision's is to go, and torch points to torchcodec, which has it since 0.16. Raises InputError where neither
    decodes a JPEG.
    """
    black = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    example = torch.frombuffer(bytearray(black), dtype=torch.uint8)
    reason = ""
    for make in DECODERS:
        try:
            decode = make()
            decode([example], device)
        except torch.OutOfMemoryError:
            raise
        except (ImportError, OSError, RuntimeError) as error:
            reason = first_line(error)
        else:
            return decode
    raise InputError(
        f"PICTURES_ON is gpu, and no JPEG can be decoded on {device} ({reason}): pip install torchcodec, or set "
        "PICTURES_ON to auto"
    )


def use_torchcodec() -> Decoder:
    from torchcodec.decoders import decode_jpeg  # pyright: ignore[reportMissingImports]

    return lambda files, device: decode_jpeg(files, mode="RGB", device=device)


def use_torchvision() -> Decoder:
    from torchvision.io import ImageReadMode, decode_jpeg

    return lambda files, device: cast("list[Tensor]", decode_jpeg(files, ImageReadMode.RGB, device))


DECODERS: tuple[Callable[[], Decoder], ...] = (use_torchcodec, use_torchvision)
