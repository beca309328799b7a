"""What a decoder says of a damaged image, what a file is that is no image, and pictures turned by their Exif data."""

from __future__ import annotations

import base64
import io
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dataset import bad_images, decoding, file_kinds
from dataset.decoding import decode_image, find_damage, judge_image
from dataset.file_kinds import recognise
from dataset.table import Table
from utils import InputError

HEIC = (  # 64 x 48 pixels: brighter to the right in red, upwards in green
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA"
    "AAAERAAAEAAQAAAAABoQABAAAAAAAAAFQAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAA"
    "AADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkA"
    "AAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAA"
    "AAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAF"
    "xtZGF0AAAAUCgBrxOA9ZzbFToQB4RUUBtuDEJXn+0NW0SyFsmbNz2jFtJgHP0F7KZoYcHcJu4O/CYB0vvIBYYSDMbgkT8do0BDxT8Rm7Vzm4LE"
    "hd84yyuA"
)


@pytest.fixture(autouse=True)
def say_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has said nothing yet. pytest's own catching of warnings would come before the product's."""
    monkeypatch.setattr(decoding, "_said", set())
    monkeypatch.setattr(warnings, "showwarning", decoding._hear_warning)
    warnings.filterwarnings("always", module=r"PIL\.")


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_picture() -> Image.Image:
    """64 x 48 pixels without symmetry: a turn or a mirror is seen."""
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((64, 48), Image.Resampling.NEAREST)


def lose_half(data: bytes) -> bytes:
    """A JPEG whose second half is gone, but for the mark at its end: libjpeg makes the rest grey."""
    return data[: len(data) * 6 // 10] + b"\xff\xd9"


@pytest.mark.parametrize("kind", ["plain", "exif", "cmyk"])
def test_a_jpeg_that_lost_its_half_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    options = {"exif": exif} if kind == "exif" else {}
    data = encode(make_picture().convert("CMYK" if kind == "cmyk" else "RGB"), "JPEG", quality=95, **options)
    whole, lost = tmp_path / "whole.jpg", tmp_path / "lost.jpg"
    whole.write_bytes(data)
    lost.write_bytes(lose_half(data))
    assert find_damage(whole) == ""
    assert find_damage(lost) == "Corrupt JPEG data: premature end of data segment"
    assert capsys.readouterr().err == "", "only decoding for use speaks"
    for path in (whole, lost, lost):
        assert decode_image(path).shape == (48, 64, 3)
    assert capsys.readouterr().err == (
        f"warning: {lost}: Corrupt JPEG data: premature end of data segment: part of the picture is lost "
        '(BAD_IMAGES = "skip" leaves it out)\n'
    ), "once"
    table = Table([str(lost), str(whole)], np.zeros((2, 1), dtype=np.int8), ("cat",))
    good, bad = bad_images.leave_out_bad_images(table)
    assert good.paths == [str(whole)]
    assert bad == {str(lost): f"{lost}: Corrupt JPEG data: premature end of data segment"}


def test_bytes_too_many_are_harmless(tmp_path: Path) -> None:
    """Some cameras write them."""
    data = encode(make_picture(), "JPEG")
    path = tmp_path / "a.jpg"
    tables = data.index(b"\xff\xdb")
    path.write_bytes(data[:tables] + b"\x12\x34\x56" + data[tables:])
    decoded = judge_image(path)
    assert decoded.lost == ""
    assert "extraneous" in decoded.remark
    path.write_bytes(data + bytes(100))
    assert judge_image(path)[1:] == ("", "")


def test_few_lines_are_printed_about_many_damaged_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = lose_half(encode(make_picture(), "JPEG", quality=95))
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_bytes(data)
        decode_image(tmp_path / f"{number}.jpg")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[-1].endswith("; `dataset_tools.py check` names any others")


# ---- what libraries say ----


def make_broken_exif() -> bytes:
    """A JPEG with Exif data of which only the beginning is there."""
    data = encode(make_picture(), "JPEG")
    content = b"Exif\0\0" + b"II*\0\x08\0\0\0" + b"\x05\0"
    return data[:2] + b"\xff\xe1" + (2 + len(content)).to_bytes(2, "big") + content + data[2:]


def test_remarks_of_pillow_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(make_broken_exif())
        assert find_damage(tmp_path / name).startswith("Corrupt EXIF data"), "of the second, too"
    assert capsys.readouterr().err == ""
    decode_image(tmp_path / "a.jpg")
    line = capsys.readouterr().err
    assert line.startswith(f"warning: {tmp_path}/a.jpg: Corrupt EXIF data")
    assert line.count("\n") == 1
    assert "UserWarning" not in line


def test_harmless_remarks_are_not_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = Image.new("P", (8, 8))
    picture.putpalette([value for value in range(256) for _ in range(3)])
    picture.info["transparency"] = bytes(range(256))
    picture.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    assert decode_image(tmp_path / "palette.png").shape == (8, 8, 3)
    assert find_damage(tmp_path / "palette.png") == ""
    assert capsys.readouterr().err == ""


def test_each_thread_hears_of_its_own_image(tmp_path: Path) -> None:
    """Both are being decoded when the one is warned of."""
    (tmp_path / "broken.jpg").write_bytes(make_broken_exif())
    (tmp_path / "whole.jpg").write_bytes(encode(make_picture(), "JPEG"))
    meeting = threading.Barrier(2)

    def judge(name: str) -> str:
        with decoding._hear_remarks() as remarks:
            meeting.wait(timeout=60)
            if name == "broken.jpg":
                warnings.warn("about broken.jpg", stacklevel=1)
            meeting.wait(timeout=60)
            return " ".join(remarks)

    with ThreadPoolExecutor(2) as pool:
        warnings.simplefilter("always")
        assert list(pool.map(judge, ["broken.jpg", "whole.jpg"])) == ["about broken.jpg", ""]


def test_warnings_of_others_are_shown_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(decoding, "_show_other_warning", lambda message, *_, **__: shown.append(str(message)))
    warnings.simplefilter("always")
    warnings.warn("from elsewhere", stacklevel=1)
    assert shown == ["from elsewhere"]


def test_what_libtiff_writes_to_stderr_names_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    lzw = bytearray(encode(Image.fromarray(noise), "TIFF", compression="tiff_lzw"))
    lzw[len(lzw) // 2 : len(lzw) // 2 + 200] = bytes(200)
    (tmp_path / "a.tif").write_bytes(lzw)
    with pytest.raises(InputError, match=r"cannot read image .*a\.tif: decoder error -2 \(LZWDecode: "):
        decode_image(tmp_path / "a.tif")
    fax = bytearray(encode(Image.fromarray(noise).convert("1"), "TIFF", compression="group4"))
    fax[60:100] = b"\xff" * 40
    (tmp_path / "b.tif").write_bytes(fax)
    capfd.readouterr()
    assert "Fax4Decode" in judge_image(tmp_path / "b.tif").lost, "it can be read, but lines of it are wrong"
    assert capfd.readouterr().err == ""


# ---- pictures turned by their Exif data ----


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_that_of_pillow(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    path = tmp_path / "a.jpg"
    make_picture().save(path, quality=95, exif=exif)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    found = decode_image(path)
    assert found.shape == ((64, 48, 3) if 5 <= orientation <= 8 else (48, 64, 3))
    assert found.flags.c_contiguous
    assert np.array_equal(found, expected)


# ---- what a file is ----


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "a Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html><head><title>404</title>", "an HTML page"),
        (b"\n\n  <HTML>\n<body>Sign in</body>", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML, not an image: .*AccessDenied"),
        (b'{"message": "Not Found"}', 'JSON, not an image: .*"message": "Not Found"'),
        (b"404: Not Found", "text, not an image: '404: Not Found'"),
        ("\ufeffNicht gefunden: Käfer".encode(), "text, not an image: 'Nicht gefunden: Käfer'"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b" \n ", "blanks only"),
        (bytes(5000), "5,000 zero bytes"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", "an AVIF image"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "a raw file of a camera"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "a video"),
        (b"\0\0\0\x14ftypqt  \0\0\2\0", "a video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"\xff\x0a\x00", "a JPEG XL image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"PK\3\4\x14", "a ZIP archive: unpack it"),
        (b"\x1f\x8b\x08", "a gzip archive: unpack it"),
        (bytes(257) + b"ustar", "a tar archive"),
        (b"II*\0\x10\0\0\0CR\2\0", "a TIFF or raw file of a camera"),
        (b"\0\x05\x16\x07\0\2\0\0Mac OS X", "an AppleDouble file, .*: delete it"),
        (bytes(128) + b"DICM", "a DICOM image"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG that is cut off"),
        (b"\x89PNG\r\n\x1a\n", "a PNG that is cut off"),
    ],
)
def test_a_file_that_is_no_image_is_named_by_its_first_bytes(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match=rf"^cannot read image .*a\.jpg: (it is {what}|Truncated File)"):
        decode_image(tmp_path / "a.jpg")
    assert recognise(content).startswith(what.partition(":")[0].partition(",")[0].partition(".*")[0])


def test_nothing_is_guessed_of_other_bytes() -> None:
    assert recognise(b"") == ""
    assert recognise(bytes(range(200, 256))) == ""


def test_heic_is_read_where_a_plug_in_is_installed(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(base64.b64decode(HEIC))
    if not file_kinds.READS_HEIF:
        with pytest.raises(InputError, match="it is a HEIC image: pip install pi-heif"):
            decode_image(tmp_path / "a.heic")
        pytest.skip("pi-heif is not installed")
    pixels = decode_image(tmp_path / "a.heic")
    assert pixels.shape == (48, 64, 3)
    assert pixels[0, 0, 0] < 20 < 200 < pixels[-1, -1, 0]


@pytest.mark.skipif(not file_kinds.READS_AVIF, reason="this Pillow does not read AVIF")
def test_avif_is_read_upright(tmp_path: Path) -> None:
    picture, exif = make_picture(), Image.Exif()
    exif[decoding.ORIENTATION] = 6
    picture.save(tmp_path / "a.avif", "AVIF", quality=100, subsampling="4:4:4")
    picture.save(tmp_path / "turned.avif", "AVIF", quality=100, subsampling="4:4:4", exif=exif)
    upright = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(decode_image(tmp_path / "a.avif") - upright).mean() < 4
    turned = np.rot90(upright, -1)
    assert np.abs(decode_image(tmp_path / "turned.avif") - turned).mean() < 4
