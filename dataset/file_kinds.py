"""What a file is, from its first bytes or from the ending of its name: for those that cannot be read as images.

recognise(b"version https://git-lfs.github.com/spec/v1\\n...")    # a Git LFS pointer: run `git lfs pull`
"""

from __future__ import annotations

from importlib.util import find_spec

READS_HEIF = any(find_spec(name) for name in ("pi_heif", "pillow_heif"))
READS_AVIF = find_spec("PIL") is not None and find_spec("PIL._avif") is not None  # scripts say what is not installed
GET_HEIF = "pip install pi-heif"  # pillow-heif reads it, too, but its packages hold x265, which is under the GPL
GET_AVIF = "pip install -U pillow"
CONVERT = "save it as JPEG or PNG"
FETCH = "fetch it again"

# ---- by the ending ----

HEIF_ENDINGS = (".heic", ".heif", ".hif")
AVIF_ENDINGS = (".avif", ".avifs")
# that are not read; videos, too
OTHER_PICTURES = frozenset({
    ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jxl", ".jxr", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
    ".pcx", ".ico", ".svg", ".svgz", ".pdf", ".eps", ".psd", ".psb", ".xcf", ".exr", ".hdr", ".dds", ".djvu", ".dcm",
    ".nii", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".raf", ".orf", ".rw2", ".rwl",
    ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".erf", ".kdc", ".dcr", ".mrw", ".mos", ".raw", ".mp4", ".m4v", ".mov",
    ".avi", ".mkv", ".webm", ".3gp", ".mpg", ".mpeg", ".wmv", ".split",
})  # fmt: skip

# ---- by the first bytes ----

# (how the file begins, what it is, what to do); the longest beginnings first where one begins another
SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the image", "run `git lfs pull`"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image", CONVERT),
    (b"\xff\x0a", "a JPEG XL image", CONVERT),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image", CONVERT),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image", CONVERT),
    (b"\0\x05\x16\x07", "an AppleDouble file, which macOS puts beside a file", "delete it"),
    (b"%PDF", "a PDF document", CONVERT),
    (b"%!PS", "a PostScript document", CONVERT),
    (b"8BPS", "a Photoshop document", CONVERT),
    (b"PK\3\4", "a ZIP archive", "unpack it"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"BZh", "a bzip2 archive", "unpack it"),
    (b"\xfd7zXZ\0", "an xz archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video", "save its frames as images"),
    (b"FUJIFILMCCD-RAW", "a raw file of a camera", CONVERT),
    (b"IIRO", "a raw file of a camera", CONVERT),
    (b"IIU\0", "a raw file of a camera", CONVERT),
    (b"II*\0", "a TIFF or raw file of a camera that Pillow does not read", CONVERT),
    (b"MM\0*", "a TIFF or raw file of a camera that Pillow does not read", CONVERT),
    (b"II+\0", "a BigTIFF image", CONVERT),
    (b"MM\0+", "a BigTIFF image", CONVERT),
    (b"\0\0\1\0", "an icon", CONVERT),
    (b"v/1\1", "an OpenEXR image", CONVERT),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    (b"\x89HDF", "an HDF5 file", CONVERT),
    (b"\xff\xd8\xff", "a JPEG that is cut off or damaged", FETCH),
    (b"\x89PNG\r\n\x1a\n", "a PNG that is cut off or damaged", FETCH),
    (b"GIF8", "a GIF that is cut off or damaged", FETCH),
    (b"BM", "a BMP that is cut off or damaged", FETCH),
)
BRANDS = {  # of files that begin with a box `ftyp` (ISO 14496-12)
    b"avif": ("an AVIF image", GET_AVIF), b"avis": ("an AVIF image", GET_AVIF),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"), ("a HEIC image", GET_HEIF)
    ),
    b"crx ": ("a raw file of a camera", CONVERT),
}  # fmt: skip
READ = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
MOST_BYTES = 1024  # of a file's beginning that are looked at
MOST_TEXT = 60  # letters of a text that are quoted


def name_picture(start: bytes) -> str:
    """The type of a picture that begins so, such as "JPEG" or "HEIC"; "" where it is none."""
    for beginning, name in READ.items():
        if start.startswith(beginning):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:2] == b"BM" and start[6:10] == b"\0\0\0\0":  # two letters alone may begin a text
        return "BMP"
    if start[4:8] == b"ftyp" and start[8:12] in BRANDS:
        return BRANDS[start[8:12]][0].split()[1]
    return ""


def recognise(data: bytes) -> str:
    """What a file with these bytes is, and what to do; "" where that is not seen. Give its beginning, or all of it.

    Example: "a HEIC image: pip install pi-heif".
    """
    start = data[:MOST_BYTES]
    if not data.strip(b"\0"):
        return f"{len(data):,} zero bytes: {FETCH}" if data else ""
    if start[4:8] == b"ftyp":
        what, advice = BRANDS.get(start[8:12], ("a video", "save its frames as images"))
        if (what == "a HEIC image" and READS_HEIF) or (what == "an AVIF image" and READS_AVIF):
            return f"{what} that is cut off or damaged: {FETCH}"
        return f"{what}: {advice}"
    if start[:4] == b"RIFF":
        what = {b"WEBP": "a WEBP that is cut off or damaged", b"AVI ": "a video"}.get(start[8:12], "a RIFF file")
        return f"{what}: {FETCH if start[8:12] == b'WEBP' else 'save its frames as images'}"
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it"
    if start[128:132] == b"DICM":
        return f"a DICOM image: {CONVERT}"
    for beginning, what, advice in SIGNATURES:
        if start.startswith(beginning):
            return f"{what}: {advice}"
    return recognise_text(start)


def recognise_text(start: bytes) -> str:
    """The same for a text: a page, a drawing, what a server answered in place of the image."""
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # not only the last letter, which is cut
            return ""
        text = start[: error.start].decode("utf-8-sig")
    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return ""
    words = text.strip()
    lower = words.lower()
    if "<svg" in lower:
        return f"an SVG drawing: {CONVERT}"
    if lower.startswith(("<!doctype html", "<html", "<head", "<body")) or "<html" in lower:
        return f"an HTML page, as a server sends in place of the image: {FETCH}"
    if not words:
        return f"blanks only: {FETCH}"
    kind = "XML" if lower.startswith("<?xml") else "JSON" if lower[0] in "{[" else "text"
    return f"{kind}, not an image: {' '.join(words.split())[:MOST_TEXT]!r}"
