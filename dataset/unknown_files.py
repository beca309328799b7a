"""What a file of another tool is, by its name and its beginning, and the one step that makes a data set of it.

    explain_file(Path("~/photos/labels.xlsx").expanduser(), "labels.xlsx")
    # 'labels.xlsx is a spreadsheet: save it as CSV with the name train.csv, ...'

Each kind is a line of a table: TOOLS for JSON, LISTS for the lines of text files, ENDINGS for all others. A new one
needs no more than that. Only the beginning of a file is read, whatever its size; nothing is executed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from dataset.csv_files import (
    FOREIGN_IMAGE_COLUMNS,
    IMAGE_COLUMNS,
    guess_encoding,
    is_image,
    read_first_rows,
    require_encoding,
    simplify,
    stamp,
)
from dataset.files import open_file
from dataset.label_values import VALUES
from dataset.splits import find_split
from dataset.text_files import HEAD_BYTES, read_first_lines
from utils import InputError

LONGEST = 50  # letters of a name, or of a line, that is shown
MOST_NAMES = 6  # columns or keys that are shown
WRITE_CSV = "write train.csv with the columns image_path and labels (cat;dog)"
EXPORT_COCO = "export it as COCO JSON, or write train.csv with the columns image_path and labels (cat;dog)"


def explain_file(file: Path, name: str, is_of_many: bool = False) -> str | None:
    """What `file` is, and the step to take, in a sentence that calls it `name`; None where nothing is known of it.

    `is_of_many` says that there are many such files beside it: one for each image.
    """
    if is_of_many and name.lower().endswith(".txt"):
        return explain_label_file(file, name)
    for pattern, explain in READERS:
        if re.search(pattern, name, re.IGNORECASE):
            return explain(file, name)
    return next((f"{name} {text}" for pattern, text in ENDINGS if re.search(pattern, name, re.IGNORECASE)), None)


def cut(text: str) -> str:
    """`text` in quotes, without what is too long to show."""
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")


def show(names: Iterable[str]) -> str:
    """The first names in quotes, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(cut, names[:MOST_NAMES])) + more


# ---- tables ----

USUAL_COLUMNS = IMAGE_COLUMNS | FOREIGN_IMAGE_COLUMNS | {"url", "imageurl"}  # the last: images that lie elsewhere
CLASS_COLUMNS = ("class", "label", "category", "class_name", "label_name", "labelname", "name")
BOXES = ({"xmin", "ymin"}, {"x_min", "y_min"}, {"x1", "y1"}, {"bbox"}, {"bbox_x"}, {"left", "top"})


class Columns(NamedTuple):
    """The columns of a table that is not read, and its first rows."""

    file: str
    separator: str
    header: list[str]
    rows: list[list[str]]

    def list_images(self) -> list[str]:
        """The columns that hold images: those with such a name or such values; with both, where there are any."""
        named = [name for name in self.header if simplify(name) in USUAL_COLUMNS]
        cells = self.rows[0] if self.rows else []
        found = [name for name, cell in zip(self.header, cells, strict=False) if is_image(cell)]
        return [name for name in named if name in found] or found or named

    def find_classes(self) -> str:
        """The column that names a class."""
        found = [name for wanted in CLASS_COLUMNS for name in self.header if name.lower() == wanted]
        return found[0] if found else "its class"

    def has_values(self) -> bool:
        """Whether there is a column `labels`, or one of 1 and 0, as for a class."""
        return "labels" in self.header or any({*column} <= {*VALUES} for column in zip(*self.rows, strict=False))

    def has_boxes(self) -> bool:
        return any(box <= {name.lower() for name in self.header} for box in BOXES)


# kinds of tables, in the order in which they are asked: the step
TABLES: list[tuple[Callable[[Columns], bool], str]] = [
    (
        lambda table: any(map(is_image, table.header)) or not re.search(r"[^\d.,;\s-]", "".join(table.header)),
        "these are data, not names of columns: write a first line with names, such as image_path,labels",
    ),
    (
        lambda table: "submission" in table.file.lower(),
        "it is a sample of what to hand in: the labels that a competition gives are in another file",
    ),
    (
        Columns.has_boxes,
        "each row is a box: keep two columns, {image} as image_path and {label} as label, with commas, in a file "
        "train.csv; an image's labels are then the classes of its boxes",
    ),
    (
        lambda table: not {*table.header} - {*table.list_images()},
        "it has no labels: to predict these images set TEST_IMAGES_DIR to their folder; to train add a column labels "
        "(cat;dog)",
    ),
    (
        lambda table: not table.list_images(),
        "none of them holds names of image files: call the one that should image_path, and write the names with their "
        "ending (a.jpg)",
    ),
]
# what keeps any other table from being read: the step; all that apply are said
REPAIRS: list[tuple[Callable[[Columns], bool], str]] = [
    (lambda table: "image_path" not in table.header, "call the column {image} image_path"),
    (lambda table: not table.has_values(), "call the one that names the classes labels"),
    (lambda table: find_split(Path(table.file).stem) is None, "call the file train.csv"),
    (lambda table: "/" in table.file, "move it into the data set's folder itself"),
]
USUAL = "have one column image_path, and either one column labels (cat;dog) or a column for each class (1, 0)"


def explain_table(file: Path, name: str) -> str:
    """What the columns of a CSV file say."""
    try:
        separator, rows = read_first_rows(file)
    except csv.Error as error:
        return f"{name} is no CSV ({error}): {WRITE_CSV}"
    if not rows:
        return f"{name} is empty: {WRITE_CSV}"
    if any("\ufffd" in cell or "\0" in cell for row in rows for cell in row):
        try:
            require_encoding(file, *stamp(file))
        except InputError as error:
            return name + str(error).removeprefix(str(file))
    header, *rows = rows
    table = Columns(file=name, separator=separator, header=header, rows=rows)
    steps = (
        [step for fits, step in TABLES if fits(table)][:1] or [step for fits, step in REPAIRS if fits(table)] or [USUAL]
    )
    image = cut(next(iter(table.list_images()), "the image's"))
    step = ", and ".join(steps).format(image=image, label=cut(table.find_classes()))
    columns = f"the column {show(header)}" if len(header) == 1 else f"the columns {show(header)}"
    separated = f", separated by {SEPARATORS.get(separator, repr(separator))}" if separator != "," else ""
    return f"{name} has {columns}{separated}: {step}"


SEPARATORS = {";": "';'", "\t": "TABs", "|": "'|'"}

# ---- JSON ----


class Tool(NamedTuple):
    """JSON files of a tool, known by keys that its first object has."""

    keys: set[str]
    is_list: bool | None  # whether the file is a list of such objects; None: it may be
    what: str
    step: str = EXPORT_COCO


ADD = "add it; of COCO's own files, instances_*.json have the labels"
TOOLS = [
    Tool({"images", "annotations"}, False, 'like COCO\'s, but the list "categories" is missing', ADD),
    Tool({"images", "categories"}, False, 'like COCO\'s, but the list "annotations" is missing', ADD),
    Tool({"annotations", "categories"}, False, 'like COCO\'s, but the list "images" is missing', "add it"),
    Tool(
        {"image_id", "category_id", "score"},
        True,
        "what a detector found, in the form of COCO's results",
        "labels are in the instances_*.json that it was made for",
    ),
    Tool({"shapes", "imagePath"}, None, "of LabelMe, which writes one for each image"),
    Tool({"asset", "regions"}, None, "of VoTT, which writes one for each image"),
    Tool({"assets", "tags"}, False, "a whole project of VoTT", "export it there as CSV"),
    Tool({"size", "objects"}, False, "of Supervisely, which writes one for each image"),
    Tool({"classes", "tags"}, False, "of Supervisely, and names classes only"),
    Tool({"task_id", "response"}, None, "of Scale AI"),
    Tool({"data_row", "projects"}, None, "of Labelbox"),
    Tool({"Labeled Data", "Label"}, None, "of Labelbox"),
    Tool({"item", "annotations", "version"}, None, "of V7 Darwin, which writes one for each image"),
    Tool({"dataset", "image", "annotations"}, None, "of V7 Darwin, which writes one for each image"),
    Tool({"info", "categories", "items"}, False, "of Datumaro"),
    Tool({"_via_img_metadata"}, False, "of the VGG Image Annotator"),
    Tool({"samples"}, False, "a whole data set of FiftyOne", "export it as a FiftyOneImageClassificationDataset"),
    Tool({"metadata", "instances"}, None, "of SuperAnnotate"),
    Tool({"label_hash", "data_units"}, None, "of Encord"),
    Tool({"jsonResponse"}, None, "of Kili"),
    Tool({"project_name", "label_classes"}, False, "of Hasty"),
    Tool({"annotationsCount"}, None, "of Dataloop"),
    Tool({"openlabel"}, False, "in the form of OpenLABEL"),
    Tool({"_input_hash", "_task_hash"}, None, "of Prodigy", WRITE_CSV),
    Tool({"source-ref"}, None, "a manifest of SageMaker Ground Truth or Rekognition", WRITE_CSV),
    Tool({"imageGcsUri"}, None, "an import file of Vertex AI", f"use its CSV form, or {WRITE_CSV}"),
    Tool({"name", "labels"}, True, "of Scalabel (BDD100K)"),
    Tool(
        {"data"},
        True,
        "a list of Label Studio's tasks, none of them annotated",
        "export the project when it is (JSON, JSON-MIN or CSV)",
    ),
]
OURS = 'write {"classes": ["cat"], "images": [["a.jpg", ["cat"]], ...]}, or ' + WRITE_CSV.removeprefix("write ")


def explain_json(file: Path, name: str) -> str:
    """Which tool wrote a JSON file or JSON lines; else the keys that it has."""
    keys, is_list = list_keys(file)
    is_list |= not name.lower().endswith(".json")
    for tool in TOOLS:
        if tool.keys <= {*keys} and tool.is_list in (None, is_list):
            return f"{name} is {tool.what} (it has the keys {show(sorted(tool.keys))}): {tool.step}"
    if not keys:
        return f"{name} is no JSON, or has no object with keys: {OURS}"
    what = "a list of objects" if is_list else "an object"
    return f"{name} is {what} with the keys {show(keys)}, which no tool known here writes: {OURS}"


TOKENS = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?|[\[\]{}]')


def list_keys(file: Path) -> tuple[list[str], bool]:
    """(the keys of the first object in a JSON file, whether it is in a list), by the beginning of the file."""
    keys: dict[str, None] = {}
    opened: list[str] = []
    is_list = False
    for token in TOKENS.finditer(read_head(file)):
        text = token[0]
        if text in ("[", "{"):
            opened.append(text)
            is_list |= opened == ["["]
        elif text in ("]", "}"):
            if not opened or (opened.pop() == "{" and "{" not in opened):
                break
        elif token[2] and opened in (["{"], ["[", "{"]):
            keys[token[1]] = None
    return list(keys), is_list


def read_head(file: Path) -> str:
    """The beginning of a file, as text. Raises InputError where it cannot be read."""
    try:
        with open_file(file) as stream:
            return stream.read(HEAD_BYTES).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


# ---- XML ----


def explain_xml(file: Path, name: str) -> str:
    """What the first element of an XML file says."""
    head = read_head(file)
    element = next(iter(re.findall(r"<([A-Za-z][\w.:-]*)", head)), None)
    if element == "annotation" and "<object" in head:
        return (
            f"{name} has the boxes of an image, as in Pascal VOC: put such files into Annotations/, the images into "
            "JPEGImages/, and their names without the ending, one a line, into ImageSets/Main/train.txt"
        )
    what = f"XML that begins with <{element[:LONGEST]}>" if element else "no XML"
    return f"{name} is {what}: {EXPORT_COCO}"


# ---- lists ----

NUMBER = r"-?\d*\.?\d+"
# what a line of a list looks like, in the order in which it is asked: what it is, and the step
LISTS = [
    (r"\S.*[\s,]\S+\.(xml|json|txt|png)\s*", f"an image and a file of its boxes or its mask: {WRITE_CSV}"),
    (
        r"[^,;\t]*[^,;\s]\s*[,;\s]\s*\d+\s*",
        "an image and the number of its only class: write the number's name into train.csv with the columns image_path "
        "and labels, or as many 1 and 0 as there are classes (a.jpg<TAB>0,1,0)",
    ),
    (
        r"[^,;\t]*[^,;\s]\s*[,;\s][-\d\s,;.]+",
        "an image and values: put a TAB behind the image, and commas between the values (a.jpg<TAB>0,1,0)",
    ),
    (r"[^,;\t]+\.\w{3,4}\s*[,;\s].*", f"an image and names: {WRITE_CSV}"),
    (r"[^\s,;]+\s*", f"an image without labels: {WRITE_CSV}"),
]
LIST_STEP = "write path<TAB>0,1,0 with a 1 or a 0 for each line of classes.txt, or a train.csv"
# what the first line of a file looks like of which there is one for each image
LABEL_FILES = [
    (rf"\d+(\s+{NUMBER}){{4,}}\s*", f"the boxes of an image, as in YOLO: {EXPORT_COCO}"),
    (
        r"\d+\s*",
        "the number of a class: call such files .cls and put them into labels/train/, the images into "
        "images/train-resized/, and the names of the classes into classes.txt",
    ),
    (r".*", f"which may be labels or a text: for labels {WRITE_CSV}"),
]


def explain_list(file: Path, name: str) -> str | None:
    """What the first lines of a text file say; None for a file that seems to be no list."""
    lines = read_first_lines(file, guess_encoding=guess_encoding)
    if not lines:
        return f"{name} is empty" if find_split(name) else None
    if "\0" in lines[0]:
        return None
    starts_with_image = is_image(re.split(r"[\s,;]", lines[0].strip())[0])
    if len(lines) > 1 and not starts_with_image:
        counts = ({line.count(separator) for line in lines} for separator in ",;\t")
        if any(len(count) == 1 and 0 not in count for count in counts):
            return explain_table(file, name)
    if not starts_with_image and find_split(name) is None:
        return None
    found = next((text for pattern, text in LISTS if re.fullmatch(pattern, lines[0])), None)
    shown = f"{name} begins with the line {cut(lines[0])}"
    return f"{shown}, {found}" if found else f"{shown}, which is no path with labels: {LIST_STEP}"


def explain_label_file(file: Path, name: str) -> str | None:
    """What a text file says of which there is one for each image."""
    lines = read_first_lines(file, 1, guess_encoding)
    if not lines:
        return None
    text = next(text for pattern, text in LABEL_FILES if re.fullmatch(pattern, lines[0], re.DOTALL))
    return f"{name} begins with the line {cut(lines[0])}, {text}"


# ---- by the ending alone ----

READERS: list[tuple[str, Callable[[Path, str], str | None]]] = [
    (r"\.(csv|tsv|tab)$", explain_table),
    (r"\.(json|jsonl|ndjson|manifest)$", explain_json),
    (r"\.xml$", explain_xml),
    (r"\.txt$", explain_list),
]
ENDINGS = [
    (r"\.(xlsx?|xlsm|ods|numbers)$", 'is a spreadsheet: save it as "CSV UTF-8" with the name train.csv, with columns '
     "image_path and labels (cat;dog)"),
    (r"\.(parquet|arrow|feather)$", "is a table of Parquet or Arrow, often with images inside: make files of them, and "
     "train.csv with the columns image_path and labels (cat;dog)"),
    (r"\.cls$", "has the labels of an image: put such files into labels/train/, the images into images/train-resized/, "
     "and the names of the classes into classes.txt"),
    (r"ubyte(\.gz)?$", f"is in the form of MNIST: {WRITE_CSV}, and images as files"),
    (r"(^|/)(data_batch_\d|batches\.meta)", f"is of CIFAR, a pickle of Python, which is not opened here: {WRITE_CSV}"),
    (r"\.mat$", f"is a file of MATLAB: {WRITE_CSV}"),
    (r"\.(npy|npz)$", f"is a file of NumPy: {WRITE_CSV}, and images as files"),
    (r"\.(pkl|pickle|joblib)$", f"is a pickle of Python, which is a program and is not opened here: {WRITE_CSV}"),
    (r"\.(h5|hdf5)$", f"is an HDF5 file: {WRITE_CSV}, and images as files"),
    (r"\.tfrecords?(-\d+-of-\d+)?$|-\d{5}-of-\d{5}$", f"is a TFRecord of TensorFlow: {WRITE_CSV}, and images as files"),
    (r"\.(mdb|lmdb)$", f"is a data base (LMDB): {WRITE_CSV}, and images as files"),
    (r"\.(sqlite3?|db)$", f"is a data base (SQLite): {WRITE_CSV}"),
    (r"\.(rec|idx)$", f"is a RecordIO of MXNet: {WRITE_CSV}, and images as files"),
    (r"\.(ya?ml)$", "names classes and folders, as for YOLO, which trains on boxes: " + EXPORT_COCO),
    (r"\.zip$", "is an archive: unpack it (unzip), and set DATASET_FOLDER to the folder that comes out"),
    (r"\.(tar\.\w+|tgz|tbz2|txz)$", "is an archive: unpack it (tar xf), and set DATASET_FOLDER to what comes out"),
    (r"\.tar$", "is an archive: unpack it (tar xf), and set DATASET_FOLDER to what comes out; or, if it is a shard of "
     "webdataset, call it train-000000.tar"),
    (r"\.(7z|rar|gz|bz2|xz|zst)$", "is an archive: unpack it, and set DATASET_FOLDER to what comes out"),
    (r"\.(pth?|ckpt|onnx|safetensors)$", "is a model, not a data set: set DATASET_FOLDER to where the data set is"),
]  # fmt: skip
ARCHIVE = re.compile(r"\.(zip|tar|tar\.\w+|tgz|tbz2|txz|7z|rar)$", re.IGNORECASE)
