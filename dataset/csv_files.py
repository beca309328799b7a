"""CSV files, whoever wrote them: in which encoding, with which delimiter, the columns they have, and their rows.

    for line, (image, label) in read_cells(file, ("ImageID", "LabelName")):

Row by row, so that a file of gigabytes needs little memory. Columns and rows without any text, as Excel leaves them,
are skipped; so is a column without a name that numbers the rows, as pandas writes it.
"""

from __future__ import annotations

import codecs
import csv
import functools
import io
import mmap
import os
import re
import string
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from dataset.class_names import to_nfc
from dataset.files import IMAGE_EXTENSIONS, has_image_ending, list_files, open_file
from dataset.label_values import VALUES
from dataset.text_files import list_lines_left_out, read_first_lines
from utils import InputError, warn, warn_once

MOST_ROWS = 1000  # that are looked at to tell what a column holds
MOST_STEMS = 50  # rows that are looked at to tell whether a column names images without their endings
MOST_HEADER_BYTES = 1 << 22  # of the first line of a file that may be anything
BLOCK = 1 << 22  # bytes that are decoded at a time
ENDINGS = (".csv", ".tsv")

DELIMITERS = {",": "commas", ";": "';', as Excel does in many countries", "\t": "TABs", "|": "'|'"}
MOST_ZEROS = 10  # of so many bytes of a text one may be 0, in a strange name; of other encodings more are
SEP_LINE = re.compile(r"sep=(.)\r?\n")  # Excel's own note of the delimiter, before the header
UNNAMED = re.compile(r"(Unnamed: \d+(\.\d+)?)?")  # the second is what pandas makes of a column without a name

# The column of the images, in small letters and without blanks, _ and -
IMAGE_COLUMNS = {
    "image", "images", "img", "imagepath", "imgpath", "imagefile", "imgfile", "imagefilename", "imagefilepath",
    "imagename", "imgname", "imageid", "imgid", "imageindex", "filename", "filenames", "filepath", "filepaths", "file",
    "files", "fname", "path", "paths", "photo", "picture",
}  # fmt: skip
# The same in German, French, Spanish, Italian and Portuguese, where no column has one of the former names
FOREIGN_IMAGE_COLUMNS = {
    "dateiname", "datei", "dateien", "dateipfad", "pfad", "bild", "bilder", "bilddatei", "bildname", "bildpfad", "foto",
    "fotos", "fotodatei", "fotoname", "fichier", "fichiers", "nomfichier", "nomdufichier", "chemin", "imagen",
    "imágenes", "imagenes", "archivo", "archivos", "nombrearchivo", "nombredearchivo", "ruta", "immagine", "immagini",
    "nomefile", "percorso", "imagem", "arquivo", "ficheiro", "nomedoarquivo", "caminho",
}  # fmt: skip


# ---- encoding and delimiter ----

MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
WINDOWS = "cp1252"  # Excel's "CSV" in Western Europe
# Letters that are the same in the code pages of Western and Central Europe and of Turkey
SAME_LETTERS = bytes(
    byte
    for byte in range(0xC0, 0x100)
    if len({bytes([byte]).decode(page, "replace") for page in (WINDOWS, "cp1250", "cp1254")}) == 1
    and bytes([byte]).decode(WINDOWS).isalpha()
)
_LETTER, _HIGH = string.ascii_letters.encode(), rb"\x80-\xff"
# A byte that is none of these letters, or does not stand by itself beside ASCII letters, as they do in a word
UNSURE = re.compile(
    rb"[%b]{2}|[^\x00-\x7f%b]|(?<![%b])[%b](?![%b])" % (_HIGH, re.escape(SAME_LETTERS), _LETTER, _HIGH, _LETTER)
)


def guess_encoding(data: bytes) -> str:
    """The encoding of a file that begins with `data`; UTF-8 where it cannot be told."""
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return encoding
    head = data[:200]
    for first, encoding in ((0, "utf-16-le"), (1, "utf-16-be")):  # ASCII letters in UTF-16 without its mark
        if len(head) > 3 and all(head[first::2]) and not any(head[1 - first :: 2]):
            return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return "utf-8" if UNSURE.search(data) else WINDOWS
    return "utf-8"


@functools.lru_cache
def require_encoding(file: Path, size: int, changed: int) -> str:
    """The encoding of a file of that size that was last `changed` at that time. Warns where it is not UTF-8.

    Raises InputError where it cannot be told: with its line, and what the line says in Excel's encoding.
    """
    line = 1
    with open_file(file) as data:
        first = data.read(BLOCK)
        encoding = guess_encoding(first)
        if encoding.startswith("utf-16"):
            warn(f"{file} is in UTF-16, and read so")
            return encoding
        if first.count(b"\0") > len(first) // MOST_ZEROS:
            raise InputError(f"{file}: bytes of zero stand in it: save it as text in UTF-8, in Excel as 'CSV UTF-8'")
        data.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while block := data.read(BLOCK):
                decoder.decode(block)
                line += block.count(b"\n")
            decoder.decode(b"", final=True)
            return "utf-8-sig"
        except UnicodeDecodeError as error:
            before, after = error.object[: error.start], error.object[error.start :]
            line += before.count(b"\n")
            odd = before.rpartition(b"\n")[2] + after.partition(b"\n")[0]
        text = odd.decode(WINDOWS, "replace").strip()[:80]
        with mmap.mmap(data.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            if UNSURE.search(whole):
                raise InputError(
                    f"{file}:{line}: this is not UTF-8 text. Read as {WINDOWS}, which Excel writes in Western Europe, "
                    f"it says {text!r}: save the file as 'CSV UTF-8'"
                )
    warn(f"{file}:{line}: this is not UTF-8; it is read as Excel's {WINDOWS}, and says {text!r}")
    return WINDOWS


def read_first_row(text: str, delimiter: str) -> list[str]:
    """The cells of the first row; none where it is no CSV."""
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        return [name.strip() for name in next(rows, [])]
    except csv.Error:
        return []


def find_delimiter(text: str) -> str:
    """What separates the columns, by the first line: that which makes a name of an image's column, else of two columns.

    Commas, where those do.
    """
    if match := SEP_LINE.match(text):
        return match[1]
    rows = {delimiter: read_first_row(text, delimiter) for delimiter in DELIMITERS}
    fitting = [delimiter for delimiter, row in rows.items() if find_image_columns(row)]
    fitting = fitting or [delimiter for delimiter, row in rows.items() if len(row) > 1]
    if len(fitting) > 1 and "," not in fitting:
        return max(fitting, key=lambda delimiter: len(rows[delimiter]))
    return fitting[0] if fitting else ","


@functools.lru_cache
def _find_layout(file: Path, size: int, changed: int) -> tuple[str, list[str]]:
    """(delimiter, the first row) of a file of that size that was last `changed` at that time."""
    with open_file(file) as stream:
        data = stream.read(MOST_HEADER_BYTES)
    text = data.decode(guess_encoding(data), errors="replace").removeprefix("\ufeff")
    delimiter = find_delimiter(text)
    return delimiter, read_first_row(SEP_LINE.sub("", text, count=1) if SEP_LINE.match(text) else text, delimiter)


@functools.lru_cache
def _say_delimiter(file: Path, delimiter: str, size: int, changed: int) -> None:
    """Say once how a file of that size that was last `changed` at that time is read."""
    warn(f"{file}: its columns are separated by {DELIMITERS.get(delimiter, repr(delimiter))}, and read so")


def stamp(file: Path) -> tuple[int, int]:
    """A file's size and time, which another content seldom has, too."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


# ---- columns ----


def read_header(file: Path) -> list[str]:
    """The names of the columns in NFC, without those that have none; no names where the file is something else."""
    try:
        return [to_nfc(name) for name in _find_layout(file, *stamp(file))[1] if not UNNAMED.fullmatch(name)]
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def simplify(name: str) -> str:
    """The name of a column in small letters, without blanks, _ and -: `Image Index` is `imageindex`."""
    return re.sub(r"[\s_-]+", "", name.lower())


def find_image_columns(header: Sequence[str]) -> list[str]:
    """The columns that may be that of the images: `image_path`, this project's own, or else all with a usual name."""
    if "image_path" in header:
        return ["image_path"]
    found = ([name for name in header if simplify(name) in known] for known in (IMAGE_COLUMNS, FOREIGN_IMAGE_COLUMNS))
    return next(filter(None, found), [])


def find_column(header: Sequence[str], name: str, file: Path) -> int:
    """The place of the column `name`. Raises InputError where it is missing or stands twice."""
    if header.count(name) != 1:
        raise InputError(f"{file}:1: the column {name!r} stands {header.count(name)} times: it must stand once")
    return header.index(name)


def read_first(file: Path, column: str) -> list[str]:
    """The first cells of a column."""
    return [cell for _, (cell,) in islice(read_cells(file, (column,)), MOST_ROWS)]


def holds_names(file: Path, column: str) -> bool:
    """Whether a column holds names, anywhere in it: not only 1, 0, -1 or blank, as that of a class."""
    return _holds_names(file, column, *stamp(file))


@functools.lru_cache  # a column of values is read to its end
def _holds_names(file: Path, column: str, size: int, changed: int) -> bool:
    """`holds_names` for a file of that size that was last `changed` at that time."""
    are_names = (cell.lower() not in VALUES for _, (cell,) in read_cells(file, (column,)))
    if any(islice(are_names, MOST_ROWS)):
        return True
    try:
        return any(are_names)
    except InputError:
        return False  # reading it will say what is wrong


def holds_images(file: Path, column: str) -> bool:
    """Whether a column holds names of image files."""
    cells = read_first(file, column)
    return bool(cells) and all(map(is_image, cells))


def is_image(text: str) -> bool:
    """Whether a text is the name of an image file, by its ending."""
    return has_image_ending(text.strip())


def find_stem_columns(file: Path, header: Sequence[str]) -> list[str]:
    """The columns whose first cells are names, without ending, of images in the folder of `file` or below.

    One of 1 and 0 is none, nor one that numbers few rows beside many images, as a list of classes does. Where there are
    several, those count whose cells are all different.
    """
    columns: dict[str, list[str]] = {}
    rows = [cells for _, cells in islice(read_cells(file, header), MOST_STEMS)]
    for name, cells in zip(header, zip(*rows, strict=True), strict=False):
        names = [cell.replace("\\", "/").rpartition("/")[2].casefold() for cell in cells]
        if all(names) and not {*names} <= {*VALUES}:
            columns[name] = names
    stems = list_stems(file.parent, *stamp(file.parent)) if columns else frozenset()
    columns = {name: names for name, names in columns.items() if stems.issuperset(names)}
    columns = {name: names for name, names in columns.items() if not numbers_few(names, len(stems))}
    different = [name for name, names in columns.items() if len({*names}) == len(names)]
    return different if len(columns) > 1 and different else list(columns)


def numbers_few(names: Sequence[str], images: int) -> bool:
    """Whether `names` count from 0 or 1 on, and are less than half of the `images`."""
    counted = ([str(number) for number in range(first, first + len(names))] for first in (0, 1))
    return list(names) in counted and 2 * len(names) < min(images, 2 * MOST_STEMS)


@functools.lru_cache(maxsize=8)
def list_stems(folder: Path, size: int, changed: int) -> frozenset[str]:
    """The names of the images in `folder` and below, without endings, in small letters."""
    names, _ = list_files(folder, IMAGE_EXTENSIONS)
    return frozenset(os.path.splitext(name.rpartition("/")[2])[0].casefold() for name in names)


def read_first_rows(file: Path, most: int = 20) -> tuple[str, list[list[str]]]:
    """(delimiter, the first rows that have text) of a file that may be anything, as it would be read as a CSV.

    Raises InputError where it cannot be read, and csv.Error for what is no CSV.
    """
    try:
        delimiter, _ = _find_layout(file, *stamp(file))
        lines = read_first_lines(file, most + 1, guess_encoding)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    lines = lines[bool(lines and SEP_LINE.fullmatch(f"{lines[0]}\n")) :][:most]
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    return delimiter, [[cell.strip() for cell in row] for row in rows]


# ---- rows ----


def read_cells(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line, the cells of `columns`, without white space around them) of each row below the header.

    Raises InputError for a column that is missing or stands twice, for a row with more or fewer cells than the header,
    for a column without a name that is neither empty nor a number of the row, and for what is no CSV.
    """
    rows = read_rows(file)
    _, header = next(rows, (1, []))
    header = [to_nfc(name.strip()) for name in header]
    places = [find_column(header, name, file) for name in columns]
    unnamed = {place: Unnamed(file, place, header) for place, name in enumerate(header) if UNNAMED.fullmatch(name)}
    for line, row in rows:
        if len(row) != len(header):
            row = fit_row(row, len(header), f"{file}:{line}")
        for place, column in unnamed.items():
            column.add(row[place].strip(), line)
        yield line, [row[place].strip() for place in places]
    for column in unnamed.values():
        column.require_nothing()


def read_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, all cells) of each row that has text, the header too. Raises InputError for what is no CSV."""
    line, left_out = 0, list_lines_left_out(file)
    try:
        found = stamp(file)
        encoding = require_encoding(file, *found)
        delimiter, _ = _find_layout(file, *found)
        if delimiter != "," and file.suffix.lower() != ".tsv":
            _say_delimiter(file, delimiter, *found)
        with open_file(file) as data, io.TextIOWrapper(data, encoding=encoding, newline="") as text:
            reader = csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=True)
            for row in reader:
                line = reader.line_num
                if line in left_out:
                    continue
                if row and (row[0].strip() or any(map(str.strip, row))) and not (line == 1 and is_sep_line(row)):
                    yield line, row
    except csv.Error as error:
        raise InputError(f"{file}:{line + 1}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: below line {line}, this is not {error.encoding} text") from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def is_sep_line(row: Sequence[str]) -> bool:
    """Whether a first row is Excel's `sep=;`."""
    return row == ["sep=", ""] or (len(row) == 1 and bool(SEP_LINE.fullmatch(f"{row[0]}\n")))


def fit_row(row: list[str], width: int, where: str) -> list[str]:
    """`row` without empty cells beyond the header's `width`. Raises InputError for other cells there, or too few."""
    if len(row) > width and not any(map(str.strip, row[width:])):
        return row[:width]
    advice = ": a cell that holds the delimiter stands in quotes" if len(row) > width else ""
    raise InputError(f"{where}: {len(row)} cells, but {width} columns{advice}")


class Unnamed:
    """A column without a name: it may be empty, as Excel leaves it, or number the rows, as pandas does at the left.

    Where pandas has joined tables, the numbers repeat.
    """

    def __init__(self, file: Path, place: int, header: Sequence[str]) -> None:
        self.what = f"column {place + 1}" + (f" ({header[place]})" if header[place] else "")
        self.file, self.first = file, ""
        self.texts: set[str] = set()
        self.count = 0
        self.numbers_rows = all(map(UNNAMED.fullmatch, header[:place]))

    def add(self, text: str, line: int) -> None:
        """Look at the cell on `line`."""
        if text:
            self.first = self.first or f"{text[:80]!r} on line {line}"
        self.count += 1
        if self.numbers_rows:
            self.texts.add(text)
            self.numbers_rows = text.isascii() and text.isdigit()

    def require_nothing(self) -> None:
        """Raise InputError, after the last row, for a column that is neither, or may be a class. Warn of repeats."""
        repeats = len(self.texts) < self.count
        if self.numbers_rows and repeats and not self.texts <= {"0", "1"}:
            warn_once(f"{self.file}: {self.what} has no name; its numbers repeat, and are taken for those of rows")
            return
        self.numbers_rows &= not repeats
        if self.first and not self.numbers_rows:
            raise InputError(
                f"{self.file}:1: {self.what} has no name, but holds {self.first}: give it one, or remove it"
            )


def read_dicts(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {column: cell}) of each row below the header. Raises InputError for a column that stands twice."""
    header = read_header(file)
    for line, cells in read_cells(file, header):
        yield line, dict(zip(header, cells, strict=True))
