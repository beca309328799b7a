"""voc_xml: a file `a.xml` as in Pascal VOC for each image `a.jpg`, without VOC's lists (LabelImg, Roboflow, FiftyOne).

It is only read. The files lie beside the images, as in Roboflow's `train/`, `valid/` and `test/`, or in another folder,
as `Annotations/a.xml` and `JPEGImages/a.jpg`. Without folders of splits all is training data. An image's labels are the
classes of its objects; one whose objects are all difficult is unknown, as in pascal_voc. Images without a file are left
out, and said. `classes.txt`, where it is there, orders the classes.

https://roboflow.com/formats/pascal-voc-xml, https://github.com/HumanSignal/labelImg,
https://docs.voxel51.com/user_guide/export_datasets.html (VOCDetectionDataset)
"""

from __future__ import annotations

from pathlib import Path

from dataset.annotation_files import Labels, find_places, read_table
from dataset.formats.base import Format, SplitSource
from dataset.formats.pascal_voc import find_trees, read_objects
from dataset.table import Table


def list_splits(root: Path) -> list[str]:
    return list(find(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return find(root).get(split, [])


def find(root: Path) -> dict[str, list[Path]]:
    return {} if find_trees(root) else find_places(root, ".xml", is_annotation)


def is_annotation(start: bytes) -> bool:
    return b"<annotation>" in start or b"<annotation " in start


def read(source: SplitSource) -> Table:
    return read_table(source, find(source.root), ".xml", read_labels)


def read_labels(file: Path) -> Labels:
    return Labels(read_objects(file))


FORMAT = Format(
    expects="train/a.jpg and train/a.xml (voc_xml)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
