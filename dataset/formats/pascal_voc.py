"""pascal_voc: a tree with `JPEGImages/`, `ImageSets/Main/` and `Annotations/`; or several, `VOC2007/`, ... (only read).

Everingham et al., The PASCAL Visual Object Classes Challenge 2007 (VOC2007) Development Kit, section on the
classification image sets (http://host.robots.ox.ac.uk/pascal/VOC/voc2007/htmldoc). `<class>_<split>.txt` has lines
`000012 -1`: 1, an object of the class; -1, none, which is absent; 0, only objects that are marked as difficult, where
the kit says that a classifier's output "does not affect its evaluation": unknown.

Where no class has such lists, as in trees of other makers, an image's labels are the classes of the objects in
`Annotations/<image>.xml`, by the same rule; an image without such a file has none, as Datumaro writes it, and how many
these are is said. The splits are the lists train, val and test; trainval is train where there
is no list train.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dataset.class_names import to_nfc
from dataset.files import require_stems
from dataset.formats.base import Format, SplitSource
from dataset.image_finder import ImageFinder
from dataset.label_values import UNKNOWN, mark_columns
from dataset.rows import Rows, join_files
from dataset.table import SPLITS, Table
from dataset.text_files import read_lines
from dataset.xml_files import read_xml
from utils import InputError, warn

VALUES = {"1": 1, "-1": 0, "0": UNKNOWN}
LISTS = Path("ImageSets") / "Main"


def list_splits(root: Path) -> list[str]:
    found = {split for tree in find_trees(root) for split in name_lists(tree)}
    return [split for split in SPLITS if split in found]


def files_of_split(root: Path, split: str) -> list[Path]:
    return [tree / LISTS / f"{lists[split]}.txt" for tree in find_trees(root) if split in (lists := name_lists(tree))]


def find_trees(root: Path) -> list[Path]:
    """`root`, or the folders VOC* in it or in its VOCdevkit."""
    places = [[root], sorted(root.glob("VOC*")), sorted(root.glob("VOCdevkit/VOC*"))]
    trees = [[tree for tree in trees if (tree / LISTS).is_dir() and (tree / "JPEGImages").is_dir()] for trees in places]
    return next(filter(None, trees), [])


def name_lists(tree: Path) -> dict[str, str]:
    """{split: the name of its list}."""
    names = [*SPLITS, "trainval"]
    found = [name for name in names if (tree / LISTS / f"{name}.txt").is_file() or find_class_lists(tree, name)]
    lists = {name: name for name in found if name in SPLITS}
    return {"train": "trainval"} | lists if "trainval" in found else lists


def find_class_lists(tree: Path, name: str) -> dict[str, Path]:
    """{class: its list of that name}, sorted by class."""
    return {to_nfc(file.stem.removesuffix(f"_{name}")): file for file in sorted((tree / LISTS).glob(f"*_{name}.txt"))}


def read(source: SplitSource) -> Table:
    trees = [tree for tree in find_trees(source.root) if source.split in name_lists(tree)]
    return join_files([read_tree(tree, source) for tree in trees], trees)


def read_tree(tree: Path, source: SplitSource) -> Table:
    """The table of the split of one of the trees in the data set's folder."""
    root, name = source.root, name_lists(tree)[source.split]
    paths = ImageFinder(root, [tree / "JPEGImages"]).map_names()
    images = {stem: paths[image] for stem, image in require_stems(list(paths), f"{tree}/JPEGImages/").items()}
    found = read_class_lists(tree, name) if find_class_lists(tree, name) else read_annotations(tree, name, source)
    rows: Rows | None = None
    for stem, labels, where in found:
        if rows is None:
            rows = Rows(root, root, tuple(labels))
        rows.add(images.get(stem, f"{tree}/JPEGImages/{stem}.jpg"), bytes(labels.values()), where)
    return (rows or Rows(root, root, ())).make_table(tree / LISTS / f"{name}.txt")


Images = Iterable[tuple[str, dict[str, int], str]]  # (name without its ending, {class: label}, where that stands)


def read_class_lists(tree: Path, name: str) -> Images:
    """What the lists `<class>_<name>.txt` say, which all have the same images."""
    labels: dict[str, dict[str, int]] = {}
    wheres: dict[str, str] = {}
    first: Path | None = None
    for class_name, file in find_class_lists(tree, name).items():
        seen = set()
        for number, line in read_lines(file):
            words = line.rsplit(maxsplit=1)
            if len(words) != 2 or words[1] not in VALUES:
                raise InputError(f"{file}:{number}: expected an image and 1, 0 or -1: {line.strip()[:80]!r}")
            stem = words[0].strip()
            if first and stem not in labels:
                raise InputError(f"{file}:{number}: {stem!r} is missing in {first}")
            labels.setdefault(stem, {})[class_name] = VALUES[words[1]]
            wheres.setdefault(stem, f"{file}:{number}")
            seen.add(stem)
        if missing := next((stem for stem in labels if stem not in seen), None):
            raise InputError(f"{file}: {missing!r} is missing, which stands at {wheres[missing]}")
        first = first or file
    return [(stem, found, wheres[stem]) for stem, found in labels.items()]


def read_annotations(tree: Path, name: str, source: SplitSource) -> Images:
    """What the objects in the annotations of the images of one list are.

    The classes are those of all such lists of all trees in the data set's folder; `classes.txt` orders them.
    """
    lists = [(other, any_name) for other in find_trees(source.root) for any_name in name_lists(other).values()]
    listed = {other / LISTS / f"{any_name}.txt" for other, any_name in lists if not find_class_lists(other, any_name)}
    found: dict[Path, list[tuple[str, dict[str, int], str]]] = {}
    without: dict[Path, list[str]] = {}
    for file in sorted(listed):
        found[file] = []
        for number, line in read_lines(file):
            annotation = file.parents[2] / "Annotations" / f"{line.strip()}.xml"
            if annotation.is_file():
                found[file].append((line.strip(), read_objects(annotation), str(annotation)))
            else:
                found[file].append((line.strip(), {}, f"{file}:{number}"))
                without.setdefault(file, []).append(f"{file}:{number}: there is no {annotation}")
    if without and sum(map(len, without.values())) == sum(map(len, found.values())):
        raise InputError(next(iter(without.values()))[0])
    index = source.choose_classes(name for images in found.values() for _, labels, _ in images for name in labels)
    chosen = tree / LISTS / f"{name}.txt"
    if chosen in without:
        shown = f"{len(without[chosen]):,} of {len(found[chosen]):,} images have no file in Annotations, so no object"
        warn(f"{chosen}: {shown}; the first: {without[chosen][0].rpartition('/')[2]}")
    for stem, labels, where in found[chosen]:
        present = index.find_all([label for label, value in labels.items() if value == 1], where)
        unknown = index.find_all([label for label, value in labels.items() if value == UNKNOWN], where)
        values = mark_columns(present, unknown, len(index.classes), where)
        yield stem, dict(zip(index.classes, values, strict=True)), where


def read_objects(annotation: Path) -> dict[str, int]:
    """{class: 1, or UNKNOWN where all its objects are difficult}."""
    labels: dict[str, int] = {}
    for item in read_xml(annotation).iter("object"):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise InputError(f"{annotation}: an object has no name")
        if (item.findtext("difficult") or "").strip() != "1":
            labels[name] = 1
        labels.setdefault(name, UNKNOWN)
    return labels


FORMAT = Format(
    expects="ImageSets/Main and JPEGImages (pascal_voc)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
