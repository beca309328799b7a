"""dataset/formats/: each format's example says the same; any table comes back from any format; mistakes are told."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.class_names import NEAREST
from dataset.files import SYSTEM_FOLDERS
from dataset.formats import FORMATS, WRITABLE, base
from dataset.formats.base import ReadOptions
from dataset.table import SPLITS, Table
from dataset.tar_shards import read_bytes
from dataset_readers import find_formats, recognise_format
from tools.convert import convert_dataset
from utils import InputError

# ---- one small data set, written by hand in each format ----

CLASSES = ("person", "traffic light", "dog")
# image name -> labels: 1 present, 0 absent, -1 unknown
TRAIN = {"a b.jpg": (1, 0, 1), "sub/ü.png": (0, 0, 0), "z.jpg": (0, 1, -1)}
TEST = {"é.jpg": (0, 0, 1)}
SINGLE = {"a b.jpg": (1, 0, 0), "sub/ü.png": (0, 0, 1), "z.jpg": (0, 1, 0)}  # what an image_folder can hold
LISTS = ("train_list", "mlcls")
TEXTS = ("train_list", "mlcls", "classes_json", "coco_json", "csv")


def place(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def write_coco_cls(root: Path) -> None:
    place(root, *(f"images/train-resized/{name}" for name in TRAIN), "images/test-resized/é.jpg")
    labels = {"train/a b": "0\n2\n", "train/sub/ü": "", "train/z": "1\n?2\n", "test/é": "2\n"}
    write(root, {"classes.txt": "person\ntraffic light\ndog\n"} | {f"labels/{k}.cls": v for k, v in labels.items()})


def write_train_list(root: Path) -> None:
    place(root, *(f"photos/{name}" for name in (*TRAIN, *TEST)))
    train = "photos/a b.jpg\t1,0,1\nphotos/sub/ü.png\t0,0,0\nphotos/z.jpg\t0,1,-1\n"
    files = {"train_list.txt": train, "test_list.txt": "photos/é.jpg\t0,0,1\n"}
    write(root, {"classes.txt": "person\ntraffic light\ndog\n"} | files)


def write_mlcls(root: Path) -> None:
    place(root, *(f"images/{name}" for name in (*TRAIN, *TEST)))
    train = "images/a b.jpg\t1,0,1\nimages/sub/ü.png\t0,0,0\nimages/z.jpg\t0,1,-1\n"
    files = {"train.txt": train, "test.txt": "images/é.jpg\t0,0,1\n"}
    write(root, {"label.txt": "0 person\n1 traffic light\n2 dog\n"} | files)


def write_image_folder(root: Path) -> None:
    place(root, "train/person/a b.jpg", "train/dog/sub/ü.png", "train/traffic light/z.jpg", "test/dog/é.jpg")
    write(root, {"classes.txt": "person\ntraffic light\ndog\n"})


def write_classes_json(root: Path) -> None:
    place(root, *(f"photos/{name}" for name in (*TRAIN, *TEST)))
    images = [
        ["photos/z.jpg", ["traffic light"], ["dog"]],
        ["photos/a b.jpg", ["dog", "person"]],
        ["photos/sub/ü.png", []],
    ]
    for split, part in (("train", images), ("test", [["photos/é.jpg", ["dog"]]])):
        write(root, {f"{split}.json": json.dumps({"classes": CLASSES, "images": part})})


def write_coco_json(root: Path) -> None:
    place(root, *(f"train2017/{name}" for name in TRAIN), "images/test2017/é.jpg")
    categories = [{"id": 90, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 10, "name": "traffic light"}]
    train = {
        "images": [
            {"id": 7, "file_name": "a b.jpg"},
            {"id": 3, "file_name": "z.jpg", "unknown_category_ids": [90]},
            {"id": 5, "file_name": "sub/ü.png"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "iscrowd": 0, "bbox": [1, 2, 3, 4]},
            {"id": 2, "image_id": 7, "category_id": 90, "iscrowd": 0},
            {"id": 4, "image_id": 7, "category_id": 1},
            {"id": 9, "image_id": 3, "category_id": 10, "iscrowd": 1},
        ],
        "categories": categories,
    }
    test = {
        "images": [{"id": 1, "file_name": "é.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 90}],
        "categories": categories,
    }
    names = ("instances_train2017", "instances_test2017")
    write(root, {f"annotations/{name}.json": json.dumps(data) for name, data in zip(names, (train, test), strict=True)})


def write_csv(root: Path) -> None:
    place(root, *(f"photos/{name}" for name in (*TRAIN, *TEST)))
    rows = [
        "image_path,split,person,traffic light,dog",
        "photos/a b.jpg,train,1,0,1",
        "photos/é.jpg,test,0,0.0,1.0",
        "photos/sub/ü.png,train,0,0,0",
        "photos/z.jpg,train,0,1,",
    ]
    write(root, {"all.csv": "\n".join(rows) + "\n"})


def write_webdataset(root: Path) -> None:
    """As others write it: samples in any order, .cls or .json, members of other types between."""
    root.mkdir(parents=True, exist_ok=True)
    write(root, {"classes.txt": "person\ntraffic light\ndog\n"})
    json_of_z = b'{"caption": "a light", "labels": ["traffic light"], "unknown": ["dog"]}'
    for name, members in {
        "train-000000": {"z.jpg": b"z", "z.json": json_of_z, "z.txt": b"a light", "a b.json": b'{"labels": [0, "dog"]}',
                         "a b.jpg": b"a b"},
        "train-000001": {"sub/ü.cls": b"", "sub/ü.png": b"\xc3\xbc"},
        "test-000000": {"é.jpg": b"", "é.cls": b"2"},
    }.items():  # fmt: skip
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            for member, data in members.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def write_roboflow(root: Path) -> None:
    train = {"a b.jpg": "1, 0, 1", "ü.png": "0, 0, 0", "z.jpg": "0, 1, "}
    for split, labels in (("train", train), ("test", {"é.jpg": "0, 0, 1"})):
        place(root, *(f"{split}/{name}" for name in labels))
        lines = ["filename, person, traffic light, dog", *(f"{name}, {row}" for name, row in labels.items())]
        write(root, {f"{split}/_classes.csv": "\n".join(lines) + "\n"})


def write_label_studio(root: Path) -> None:
    def make_task(name: str, *labels: str) -> dict[str, object]:
        result = [{"from_name": "choice", "type": "choices", "value": {"choices": list(labels)}}] if labels else []
        annotation = {"id": 1, "result": result, "was_cancelled": False, "ground_truth": False}
        return {"id": 1, "data": {"image": f"/data/upload/3/01234abc-{name}"}, "annotations": [annotation]}

    place(root, *(f"photos/{name}" for name in (*TRAIN, *TEST)))
    train = [make_task("a b.jpg", "dog", "person"), make_task("z.jpg", "traffic light"), make_task("ü.png")]
    files = {"train.json": json.dumps(train), "test.json": json.dumps([make_task("é.jpg", "dog")])}
    write(root, {"classes.txt": "person\ntraffic light\ndog\n"} | files)


def write_cvat(root: Path) -> None:
    place(root, *(f"images/{name}" for name in (*TRAIN, *TEST)))
    images = {"a b.jpg": ("Train", "dog", "person"), "sub/ü.png": ("Train",), "z.jpg": ("Train", "traffic light")}
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    lines = [f"<annotations><meta><project><labels>{labels}</labels></project></meta>"]
    for name, (subset, *tags) in (images | {"é.jpg": ("Test", "dog")}).items():
        found = "".join(f'<tag label="{tag}" source="manual"></tag>' for tag in tags)
        lines.append(f'<image id="1" name="{name}" subset="{subset}">{found}</image>')
    write(root, {"annotations.xml": "\n".join(['<?xml version="1.0" encoding="utf-8"?>', *lines, "</annotations>"])})


def write_huggingface(root: Path) -> None:
    place(root, *(f"train/{Path(name).name}" for name in TRAIN), "test/é.jpg")
    train = "file_name,labels\na b.jpg,\"['person', 'dog']\"\nü.png,[]\nz.jpg,['traffic light']\n"
    files = {"train/metadata.csv": train, "test/metadata.csv": "file_name,labels\né.jpg,dog\n"}
    write(root, {"classes.txt": "person\ntraffic light\ndog\n"} | files)


BOXES = {"train": {"a b.jpg": (2, 0, 2), "ü.png": (), "z.jpg": (1,)}, "test": {"é.jpg": (2,)}}  # the class of each box


def write_yolo(root: Path) -> None:
    for split, images in BOXES.items():
        place(root, *(f"{split}/images/{name}" for name in images))
        for name, boxes in images.items():
            lines = "".join(f"{box} 0.5 0.5 0.25 0.125\n" for box in boxes)
            write(root, {f"{split}/labels/{Path(name).stem}.txt": lines})
    write(root, {"data.yaml": f"train: ../train/images\ntest: ../test/images\n\nnc: 3\nnames: {list(CLASSES)}\n"})


def write_createml(root: Path) -> None:
    for split, images in BOXES.items():
        place(root, *(f"{split}/{name}" for name in images))
        boxes = {
            name: [{"label": CLASSES[box], "coordinates": {"x": 1, "y": 2, "width": 3, "height": 4}} for box in found]
            for name, found in images.items()
        }
        entries = [{"image": name, "annotations": found} for name, found in boxes.items()]
        write(root, {f"{split}/_annotations.createml.json": json.dumps(entries)})
    write(root, {"classes.txt": "person\ntraffic light\ndog\n"})


def write_fiftyone(root: Path) -> None:
    for split, images in BOXES.items():
        place(root, *(f"{split}/data/{name}" for name in images))
        labels = {Path(name).stem: sorted(set(boxes)) or None for name, boxes in images.items()}
        write(root, {f"{split}/labels.json": json.dumps({"classes": CLASSES, "labels": labels})})


def write_via(root: Path) -> None:
    attribute = {"type": "dropdown", "description": "", "options": dict.fromkeys(CLASSES, ""), "default_options": {}}
    for split, images in BOXES.items():
        place(root, *(f"{split}/{name}" for name in images))
        metadata = {
            f"{name}512": {
                "filename": name,
                "size": 512,
                "regions": [{"shape_attributes": {}, "region_attributes": {"kind": CLASSES[box]}} for box in boxes],
                "file_attributes": {},
            }
            for name, boxes in images.items()
        }
        project = {"_via_settings": {"core": {"default_filepath": ""}}, "_via_img_metadata": metadata}
        project |= {"_via_attributes": {"region": {"kind": attribute}, "file": {}}}
        write(root, {f"{split}/via_project.json": json.dumps(project)})


def write_datumaro(root: Path) -> None:
    labels = [{"name": name, "parent": "", "attributes": []} for name in CLASSES]
    for split, images in BOXES.items():
        place(root, *(f"images/{split}/{name}" for name in images))
        items = [
            {
                "id": Path(name).stem,
                "annotations": [{"id": 0, "type": "bbox", "label_id": box, "bbox": [1, 2, 3, 4]} for box in boxes],
                "image": {"path": name, "size": [40, 48]},
            }
            for name, boxes in images.items()
        ]
        data = {"infos": {}, "categories": {"label": {"labels": labels, "attributes": []}}, "items": items}
        write(root, {f"annotations/{split}.json": json.dumps(data)})


def write_voc_xml(root: Path) -> None:
    for split, images in BOXES.items():
        place(root, *(f"{split}/{name}" for name in images))
        for name, boxes in images.items():
            objects = "".join(f"<object><name>{CLASSES[box]}</name><difficult>0</difficult></object>" for box in boxes)
            text = f"<annotation><filename>{name}</filename>{objects}</annotation>"
            write(root, {f"{split}/{Path(name).stem}.xml": text})
    write(root, {"classes.txt": "person\ntraffic light\ndog\n"})


def write_labelme(root: Path) -> None:
    for split, images in BOXES.items():
        place(root, *(f"{split}/{name}" for name in images))
        for name, boxes in images.items():
            shapes = [{"label": CLASSES[box], "points": [[1, 2], [3, 4]], "shape_type": "rectangle"} for box in boxes]
            content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
            write(root, {f"{split}/{Path(name).stem}.json": json.dumps(content)})
    write(root, {"classes.txt": "person\ntraffic light\ndog\n"})


EXAMPLES: dict[str, Callable[[Path], None]] = {
    "coco_cls": write_coco_cls,
    "train_list": write_train_list,
    "mlcls": write_mlcls,
    "image_folder": write_image_folder,
    "classes_json": write_classes_json,
    "coco_json": write_coco_json,
    "csv": write_csv,
    "webdataset": write_webdataset,
    "roboflow": write_roboflow,
    "label_studio": write_label_studio,
    "cvat": write_cvat,
    "huggingface": write_huggingface,
    "yolo": write_yolo,
    "createml": write_createml,
    "fiftyone": write_fiftyone,
    "via": write_via,
    "datumaro": write_datumaro,
    "voc_xml": write_voc_xml,
    "labelme": write_labelme,
}
WITHOUT_UNKNOWN = (
    "label_studio", "cvat", "huggingface", "yolo", "createml", "fiftyone", "via", "datumaro", "voc_xml", "labelme",
)  # fmt: skip


def as_rows(table: Table) -> dict[str, tuple[int, ...]]:
    """{name: labels}, for names that are unlike enough to be told by their last part."""
    return {Path(p).name: tuple(row) for p, row in zip(table.paths, table.targets.tolist(), strict=True)}


def by_last_part(labels: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {Path(name).name: row for name, row in labels.items()}


def test_every_format_has_an_example() -> None:
    assert {*EXAMPLES} >= {*WRITABLE}, "public data sets have theirs in test_public_datasets.py"


def test_every_file_is_a_format() -> None:
    files = {path.stem for path in Path(base.__file__).parent.glob("*.py")}
    assert files - {"__init__", "base"} == set(FORMATS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_formats_example_says_the_same(tmp_path: Path, name: str) -> None:
    EXAMPLES[name](tmp_path)
    format = FORMATS[name]
    assert find_formats(tmp_path) == [name]
    assert format.list_splits(tmp_path) == ["train", "test"]
    train, test = (format.read(tmp_path, split) for split in ("train", "test"))
    assert train.classes == test.classes == CLASSES
    assert train.targets.dtype == np.int8
    expected = SINGLE if name == "image_folder" else TRAIN
    if name in WITHOUT_UNKNOWN:
        expected = expected | {"z.jpg": (0, 1, 0)}
    assert as_rows(train) == by_last_part(expected)
    assert as_rows(test) == by_last_part(TEST)
    assert train.paths == sorted(train.paths)
    assert all(read_bytes(path) is not None and path.startswith(f"{tmp_path}/") for path in train.paths)
    assert train.groups is None


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_format_becomes_any_other_that_can_hold_it(tmp_path: Path, name: str) -> None:
    EXAMPLES[name](tmp_path / "set")
    before = {split: FORMATS[name].read(tmp_path / "set", split) for split in ("train", "test")}
    targets = np.concatenate([table.targets for table in before.values()])
    for to in WRITABLE:
        output = tmp_path / "more" / to
        if (to == "huggingface" and (targets == -1).any()) or (to == "image_folder" and (targets.sum(1) != 1).any()):
            with pytest.raises(InputError, match="choose another format"):
                convert_dataset(tmp_path / "set", "auto", to, output)
            assert not output.parent.exists() or to not in [path.name for path in output.parent.iterdir()]
            continue
        assert convert_dataset(tmp_path / "set", "auto", to, output) == {"train": 3, "test": 1}
        assert find_formats(output) == [to]
        for split, table in before.items():
            after = FORMATS[to].read(output, split)
            assert after.classes == table.classes
            assert {Path(path).stem: row for path, row in as_rows(after).items()} == {
                Path(path).stem: row for path, row in as_rows(table).items()
            }
        assert {path.name for path in output.parent.iterdir()} <= {*WRITABLE}, "nothing half written"


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_split_that_is_not_there(tmp_path: Path, name: str) -> None:
    EXAMPLES[name](tmp_path)
    with pytest.raises(InputError, match=r"has no split 'val' in this format; it has train, test"):
        FORMATS[name].read(tmp_path, "val")


# ---- any table, through any format ----

SAFE = st.characters(exclude_categories=["Cs"], exclude_characters="/\0")
WORDS = st.text(SAFE, min_size=1, max_size=12)
FOLDERS = st.lists(WORDS.filter(lambda word: word not in (".", "..")), max_size=2)
ENDINGS = st.sampled_from([".jpg", ".JPEG", ".png", ".tif", ".webp"])
NAMES = st.tuples(FOLDERS, WORDS, ENDINGS).map(lambda parts: "/".join([*parts[0], parts[1] + parts[2]]))
CLASS_NAMES = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    .map(lambda text: unicodedata.normalize("NFC", text).strip())  # as names come back
    .filter(bool)
)


def fit_together(names: list[str]) -> bool:
    """Whether no name is another's folder, which no file system allows, and none differs in its ending only."""
    stems = {name.rpartition(".")[0] for name in names}
    parents = {str(parent) for name in names for parent in Path(name).parents}
    labels = {f"{stem}.cls" for stem in stems}
    return len(stems) == len(names) and not parents & {*names, *stems, *labels}


@st.composite
def tables(draw: st.DrawFn, values: tuple[int, ...] = (0, 1, -1)) -> tuple[list[str], Table]:
    """(the images' names, their table): any names and labels."""
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True).filter(fit_together))
    classes = draw(st.lists(CLASS_NAMES, min_size=1, max_size=4, unique=True))
    rows = st.lists(st.sampled_from(values), min_size=len(classes), max_size=len(classes))
    targets = np.array(draw(st.lists(rows, min_size=len(names), max_size=len(names))), dtype=np.int8)
    return names, Table(names, targets, tuple(classes))


def has_blanks(name: str) -> bool:
    return name != name.strip()


def holds(name: str, names: list[str], table: Table) -> bool:
    """Whether the format can write these names down."""
    lines = {
        "coco_cls": table.classes,
        "webdataset": table.classes,
        "huggingface": table.classes,
        "mlcls": (*table.classes, *names),
        "train_list": (*table.classes, *names),
    }
    if name == "huggingface" and (table.targets == -1).any():
        return False
    on_lines = all(not {"\n", "\r"} & set(text) and text[0] != "\ufeff" for text in lines.get(name, ()))
    hidden = name == "coco_cls" and any("/." in f"/{image}" for image in names)
    taken = name == "csv" and set(table.classes) & {"image_path", "labels", "split", "group"}
    taken = taken or (name == "roboflow" and ("filename" in table.classes or any(map(has_blanks, names))))
    return on_lines and not hidden and not taken


REFUSALS = r"cannot stand on a line|means something else in a csv|hidden|unknown labels|in Roboflow's CSV"


def write_and_read(root: Path, name: str, names: list[str], table: Table, split: str) -> Table:
    """What comes back of `table` when it is written into `root`, its images in place, and read again."""
    format = FORMATS[name]
    images = root / format.images_folder(split)
    place(images, *names)
    format.write(replace(table, paths=[f"{images}/{image}" for image in names]), root, split, names)
    assert format.list_splits(root) == [split]
    return format.read(root, split)


@pytest.mark.parametrize("name", [name for name in WRITABLE if name != "image_folder"])
@settings(max_examples=40, deadline=None)
@given(drawn=tables(), split=st.sampled_from(SPLITS))
def test_any_table_comes_back(name: str, drawn: tuple[list[str], Table], split: str) -> None:
    names, table = drawn
    if name == "huggingface" and table.targets[0, 0] != -1:  # else almost no table could be held
        table = replace(table, targets=np.maximum(table.targets, 0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        if not holds(name, names, table):
            with pytest.raises(InputError, match=REFUSALS):
                write_and_read(root, name, FORMATS[name].name_images(table, names), table, split)
            return
        names = FORMATS[name].name_images(table, names)
        again = write_and_read(root, name, names, table, split)
        images = root / (f"{split}-000000.tar" if name == "webdataset" else FORMATS[name].images_folder(split))
        order = np.argsort(np.array(names, dtype=object))
        assert again.paths == [f"{images}/{names[i]}" for i in order]
        assert np.array_equal(again.targets, table.targets[order])
        assert again.classes == table.classes


@settings(max_examples=40, deadline=None)
@given(drawn=tables(values=(0,)), seed=st.integers(0, 99))
def test_any_table_of_single_labels_comes_back_from_an_image_folder(drawn: tuple[list[str], Table], seed: int) -> None:
    names, table = drawn
    format = FORMATS["image_folder"]
    table.targets[np.arange(len(names)), np.random.default_rng(seed).integers(0, len(table.classes), len(names))] = 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        odd = any("/" in c or "\0" in c or c[0] == "." or len(c.encode()) > 255 for c in table.classes)
        odd = odd or bool(SYSTEM_FOLDERS & set(table.classes))
        lines = all(not {"\n", "\r"} & set(text) and text[0] != "\ufeff" for text in table.classes)
        if odd or not lines or any("/." in f"/{image}" for image in names):
            with pytest.raises(InputError, match=r"cannot be that of a folder|cannot stand on a line|hidden"):
                format.write(table, root, "train", format.name_images(table, names))
            return
        placed = format.name_images(table, names)
        again = write_and_read(root, "image_folder", placed, table, "train")
        assert again.classes == table.classes
        short = format.shorten_names(again, [path.removeprefix(f"{root}/train/") for path in again.paths])
        assert dict(zip(short, map(tuple, again.targets.tolist()), strict=True)) == dict(
            zip(names, map(tuple, table.targets.tolist()), strict=True)
        )


def test_groups_come_back_from_a_csv(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg"]
    table = Table(names, np.eye(3, dtype=np.int8), ("x", "y", 'z "q", r'), ("camera 1", "", "camera, 2"))
    again = write_and_read(tmp_path, "csv", names, table, "val")
    assert again.groups == table.groups
    assert again.classes == table.classes


# ---- tolerated: byte order mark, Windows line ends and separators, blank lines, repeated lines ----


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "image_folder"])
def test_files_from_windows(tmp_path: Path, name: str) -> None:
    EXAMPLES[name](tmp_path)
    expected = {split: FORMATS[name].read(tmp_path, split) for split in ("train", "test")}
    for file in [p for p in tmp_path.rglob("*") if p.suffix in (".txt", ".cls", ".json", ".csv", ".xml", ".yaml")]:
        text = file.read_text(encoding="utf-8").replace("\n", "\r\n\r\n" if file.suffix in (".txt", ".cls") else "\r\n")
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    if name in (*LISTS, "csv"):
        for file in tmp_path.glob("*t.txt" if name == "train_list" else "t*.txt" if name == "mlcls" else "*.csv"):
            file.write_bytes(file.read_bytes().replace(b"/", b"\\"))
    if (file := tmp_path / "classes.txt").is_file():  # blank lines would be nameless classes
        file.write_bytes(file.read_bytes().replace(b"\r\n\r\n", b"\r\n"))
    for split, table in expected.items():
        again = FORMATS[name].read(tmp_path, split)
        assert again.paths == table.paths
        assert np.array_equal(again.targets, table.targets)
        assert again.classes == table.classes


@pytest.mark.parametrize("name", LISTS)
def test_a_line_that_stands_twice_counts_once(tmp_path: Path, name: str) -> None:
    EXAMPLES[name](tmp_path)
    file = tmp_path / ("train_list.txt" if name == "train_list" else "train.txt")
    file.write_text(file.read_text() + file.read_text().splitlines()[0].replace("/a b", "/./sub/../a b") + "\n")
    assert as_rows(FORMATS[name].read(tmp_path, "train")) == by_last_part(TRAIN)


@pytest.mark.parametrize("between", [" ", "  ", "\t"])
@pytest.mark.parametrize("name", LISTS)
def test_lists_with_blanks_between_path_and_values(tmp_path: Path, name: str, between: str) -> None:
    EXAMPLES[name](tmp_path)
    for file in tmp_path.glob("t*.txt"):
        file.write_text(file.read_text(encoding="utf-8").replace("\t", between).replace(",", between), encoding="utf-8")
    assert recognise_format(tmp_path) == name
    assert as_rows(FORMATS[name].read(tmp_path, "train")) == by_last_part(TRAIN)
    file = tmp_path / FORMATS[name].files_of_split(tmp_path, "test")[0]
    file.write_text(f"{file.read_text(encoding='utf-8').rstrip()}{between}1\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"{file.name}:1: 4 labels, but there are 3 classes"):
        FORMATS[name].read(tmp_path, "test")


def test_lists_of_bare_names_are_of_another_tool(tmp_path: Path) -> None:
    place(tmp_path, "images/a.jpg")
    names = "\n00000012_000.png\n00000013_000.png\n"
    write(tmp_path, {"test_list.txt": names, "train.txt": names, "label.txt": "0 cat\n", "classes.txt": "cat\n"})
    assert [name for name in FORMATS if FORMATS[name].recognise(tmp_path)] == []


def test_values_as_pandas_writes_them(tmp_path: Path) -> None:
    import pandas as pd

    paths = ["a.jpg", "b.jpg", "c.jpg"]
    place(tmp_path, *paths)
    pd.DataFrame({"image_path": paths, "x": [1.0, 0.0, np.nan], "y": [True, False, True]}).to_csv(
        tmp_path / "train.csv", index=False
    )
    assert FORMATS["csv"].read(tmp_path, "train").targets.tolist() == [[1, 1], [0, 0], [-1, 1]]


def test_names_in_one_column_of_a_csv(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    write(tmp_path, {"train.csv": 'image_path,labels\na.jpg,dog; cat\nb.jpg,\nc.jpg,"""x;y"";dog"\n'})
    write(tmp_path, {"test.csv": "image_path,labels\nc.jpg,emu\n"})
    table = FORMATS["csv"].read(tmp_path, "train")
    assert table.classes == ("cat", "dog", "emu", "x;y"), "what is named in any split, in alphabetical order"
    assert table.targets.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]
    write(tmp_path, {"classes.txt": "dog\ncat\nx;y\nemu\n"})
    assert FORMATS["csv"].read(tmp_path, "train").targets.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
    write(tmp_path, {"train.csv": "image_path,labels\na.jpg,dog|cat\n"})
    bars = FORMATS["csv"].read(tmp_path, "train", options=ReadOptions(separator="|"))
    assert bars.targets.tolist() == [[1, 1, 0, 0]]


def test_crowds_count_unless_told_otherwise(tmp_path: Path) -> None:
    write_coco_json(tmp_path)
    without = FORMATS["coco_json"].read(tmp_path, "train", options=ReadOptions(count_crowds=False))
    assert as_rows(without) == by_last_part(TRAIN | {"z.jpg": (0, 0, -1)})


def test_several_annotation_files_are_joined_by_class_name(tmp_path: Path) -> None:
    write_coco_json(tmp_path)
    data = json.loads((tmp_path / "annotations" / "instances_train2017.json").read_text())
    data["images"] = [{"id": 1, "file_name": "more.jpg"}]
    data["annotations"] = [{"id": 1, "image_id": 1, "category_id": 5}]
    data["categories"] = [{"id": 9, "name": "person"}, {"id": 5, "name": "dog"}, {"id": 7, "name": "traffic light"}]
    place(tmp_path, "images/train_more/more.jpg")
    write(tmp_path, {"annotations/instances_train_more.json": json.dumps(data)})
    table = FORMATS["coco_json"].read(tmp_path, "train")
    assert table.classes == CLASSES
    assert as_rows(table) == by_last_part(TRAIN) | {"more.jpg": (0, 0, 1)}


def test_an_image_in_two_annotation_files(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path, {"1.csv": "image_path,split,x\na.jpg,train,1\n", "2.csv": "image_path,split,x\nb.jpg,train,0\n"})
    assert FORMATS["csv"].read(tmp_path, "train").targets.tolist() == [[1], [0]]
    write(tmp_path, {"2.csv": "image_path,split,x\nb.jpg,train,0\na.jpg,train,0\n"})
    with pytest.raises(InputError, match=r"/a\.jpg is listed in more than one of .*1\.csv, .*2\.csv"):
        FORMATS["csv"].read(tmp_path, "train")


def test_other_csv_files_are_no_data_set(tmp_path: Path) -> None:
    write(tmp_path, {"statistics.csv": "class,count\nx,3\n", "train.csv": "name,x\na,1\n", "odd.csv": '"a\n\0'})
    assert not FORMATS["csv"].recognise(tmp_path)


def test_annotations_and_images_of_coco_elsewhere(tmp_path: Path) -> None:
    write_coco_json(tmp_path / "first")
    (tmp_path / "first" / "train2017").rename(tmp_path / "resized")
    (tmp_path / "first" / "annotations").rename(tmp_path / "labels")
    read = FORMATS["coco_json"].read
    assert as_rows(read(tmp_path / "first", "train", tmp_path / "resized", tmp_path / "labels")) == by_last_part(TRAIN)
    with pytest.raises(InputError, match=r"labels holds no instances_val\*\.json"):
        read(tmp_path / "first", "val", tmp_path / "resized", tmp_path / "labels")


def test_class_names_by_the_caller_where_their_number_agrees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_train_list(tmp_path)
    (tmp_path / "classes.txt").unlink()
    assert FORMATS["train_list"].read(tmp_path, "train", classes=("x", "y", "z")).classes == ("x", "y", "z")
    assert capsys.readouterr().err == ""
    for classes in (("x", "y"), None):
        numbered = FORMATS["train_list"].read(tmp_path, "train", classes=classes).classes
        assert numbered == ("label_0", "label_1", "label_2")
        output = " ".join(capsys.readouterr().err.split())
        assert "nothing names its 3 labels, so they are label_0 to label_2: write their names into" in output


def test_class_folders_without_a_list_are_classes_in_alphabetical_order(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "classes.txt").unlink()
    place(tmp_path, "train/.ipynb_checkpoints/a.jpg", "test/emu/e.jpg")
    table = FORMATS["image_folder"].read(tmp_path, "train")
    assert table.classes == ("dog", "emu", "person", "traffic light"), "emu is in test only"
    assert as_rows(table) == {"a b.jpg": (0, 0, 1, 0), "ü.png": (1, 0, 0, 0), "z.jpg": (0, 0, 0, 1)}


# ---- writing ----


@pytest.mark.parametrize("name", TEXTS)
def test_replaced_lists_are_kept(tmp_path: Path, name: str) -> None:
    names = ["a.jpg", "b.jpg"]
    table = Table(names, np.array([[1, 0], [0, 1]], np.int8), ("x", "y"))
    format = FORMATS[name]
    write_and_read(tmp_path, name, names, table, "train")
    before = {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.suffix in (".txt", ".json", ".csv")}
    format.write(table, tmp_path, "train", names)
    assert not list(tmp_path.rglob("*.bak*")), "what stays the same is not replaced"
    for labels in ([[1, 1], [0, 1]], [[1, 1], [1, 1]]):
        format.write(Table(names, np.array(labels, np.int8), ("x", "y")), tmp_path, "train", names)
    (first,) = tmp_path.rglob("*.bak")
    assert first.read_bytes() == before[first.name.removesuffix(".bak")]
    (second,) = tmp_path.rglob("*.bak2")
    assert second.read_bytes() != first.read_bytes()
    assert format.read(tmp_path, "train").targets.tolist() == [[1, 1], [1, 1]]


def test_replaced_label_files_are_kept(tmp_path: Path) -> None:
    names = ["a.jpg", "sub/b.jpg"]
    format = FORMATS["coco_cls"]
    write_and_read(tmp_path, "coco_cls", names, Table(names, np.array([[1, 0], [0, -1]], np.int8), ("x", "y")), "val")
    assert (tmp_path / "labels/val/sub/b.cls").read_text() == "?1\n"
    format.write(Table(names, np.array([[1, 0], [0, -1]], np.int8), ("x", "y")), tmp_path, "val", names)
    assert not (tmp_path / "labels/val.bak").exists()
    format.write(Table(names[:1], np.array([[0, 1]], np.int8), ("x", "y")), tmp_path, "val", names[:1])
    assert (tmp_path / "labels/val.bak/sub/b.cls").read_text() == "?1\n"
    assert sorted(p.name for p in (tmp_path / "labels/val").rglob("*")) == ["a.cls"]


def test_label_files_that_cannot_all_be_written_leave_nothing(tmp_path: Path) -> None:
    write_coco_cls(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    names = ["a.jpg", f"{'b' * 252}.jpg", f"{'c' * 300}.jpg"]  # the last is too long for a file system
    with pytest.raises(InputError, match=r"cannot write .*labels/train: .*File name too long"):
        FORMATS["coco_cls"].write(Table(names, np.ones((3, 3), np.int8), CLASSES), tmp_path, "train", names)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_coco_json_is_written_with_ids_from_1_on(tmp_path: Path) -> None:
    FORMATS["coco_json"].write(
        Table(["a", "b"], np.array([[0, 1], [1, -1]], np.int8), ("x", "y")), tmp_path, "val", ["a.jpg", "b.jpg"]
    )
    assert json.loads((tmp_path / "annotations/instances_val.json").read_text()) == {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg", "unknown_category_ids": [2]}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 2, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 1, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}],
    }


def test_images_elsewhere_in_the_data_set_can_be_listed(tmp_path: Path) -> None:
    place(tmp_path, "photos/a.jpg")
    for name in TEXTS:
        format = FORMATS[name]
        folders = "../" * (format.images_folder("train").count("/") + 1)
        table = Table(["a"], np.ones((1, 1), np.int8), ("x",))
        format.write(table, tmp_path, "train", [f"{folders}photos/a.jpg"])
        assert format.read(tmp_path, "train").paths == [f"{tmp_path}/photos/a.jpg"]


@pytest.mark.parametrize(
    ("name", "row", "image", "message"),
    [
        ("image_folder", [1, 1], "a.jpg", r"/a\.jpg has 2 label\(s\) x, y, and 0 unknown"),
        ("image_folder", [0, 0], "a.jpg", r"/a\.jpg has 0 label\(s\)"),
        ("image_folder", [1, -1], "a.jpg", r"has 1 label\(s\) x, and 1 unknown"),
        ("image_folder", [1, 0], "a.dat", r"a\.dat has none of the endings \.avif"),
        ("coco_cls", [1, 0], "a.dat", r"a\.dat has none of the endings \.avif"),
        ("train_list", [1, 0], "a\nb.jpg", r"'a\\nb\.jpg' cannot stand on a line"),
        ("mlcls", [1, 0], "a\rb.jpg", r"cannot stand on a line"),
        ("classes_json", [1, 0], "\udcff.jpg", r"train\.json: a name is not valid UTF-8"),
        ("csv", [1, 0], "\udcff.jpg", r"train\.csv: a name is not valid UTF-8.*udcff"),
    ],
)
def test_what_a_format_cannot_hold(tmp_path: Path, name: str, row: list[int], image: str, message: str) -> None:
    table = Table([f"/somewhere/{image}"], np.array([row], np.int8), ("x", "y"))
    with pytest.raises(InputError, match=message) as error:
        FORMATS[name].write(table, tmp_path, "train", [image])
    assert "\n" not in str(error.value)


def test_images_that_differ_in_their_ending_only_have_no_two_label_files(tmp_path: Path) -> None:
    table = Table(["a.jpg", "a.png"], np.ones((2, 1), np.int8), ("x",))
    with pytest.raises(InputError, match=r"a\.jpg and a\.png differ in their extension only"):
        FORMATS["coco_cls"].write(table, tmp_path, "train", table.paths)


def test_a_format_that_is_only_read(tmp_path: Path) -> None:
    table = Table(["a.jpg"], np.ones((1, 1), np.int8), ("x",))
    with pytest.raises(InputError, match=r"a data set of train_list\.txt is only read: convert it to another format"):
        replace(FORMATS["train_list"], writer=None).write(table, tmp_path, "train", table.paths)
    assert not list(tmp_path.iterdir())


# ---- mistakes ----

COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "x"}]}


def coco(**changed: object) -> str:
    return json.dumps(COCO | changed)


MISTAKES = [
    # file, its text, the message
    ("train_list.txt", "a.jpg\t1,0,1\nb.jpg 0,1,0\n", r"train_list\.txt:2: no TAB between path and labels: 'b\.jpg 0"),
    (
        "train_list.txt",
        "a.jpg\t1,0,1\n\nb.jpg\t1,0\n",
        r"train_list\.txt:3: 2 labels, but there are 3 classes in classes\.txt",
    ),
    ("train_list.txt", "a.jpg\t1,0,2\n", r"train_list\.txt:1: '2' for class 'dog' is none of 1 \(present\), 0"),
    ("train_list.txt", "../a.jpg\t1,0,0\n", r"train_list\.txt:1: the path '\.\./a\.jpg' leaves the data set's folder"),
    ("train_list.txt", "a.jpg\t1,0,0\n/etc/b.jpg\t1,0,0\n", r":2: the path '/etc/b\.jpg' leaves the data set"),
    ("train_list.txt", "x\\..\\..\\a.jpg\t1,0,0\n", r"train_list\.txt:1: the path .* leaves the data set's folder"),
    ("train_list.txt", "\t1,0,0\n", r"train_list\.txt:1: the path of the image is missing"),
    ("train_list.txt", "a.jpg\t1,0,0\nb.jpg\t1,0,0\n./a.jpg\t1,0,1\n", r":3: '\./a\.jpg' has other labels .*:1$"),
    (
        "train_list.txt",
        "a.jpg\t1,0,0\nx.jpg\t1,0,0\ny/z.jpg\t1,0,0\n",
        r"2 of 3 images do not exist, .*x\.jpg \(.*:2\)",
    ),
    ("train_list.txt", "\n \n", r"train_list\.txt lists no images"),
    ("train_list.txt", b"a.jpg\t1,0,0\n\xff.jpg\t1,0,0\n", r"train_list\.txt:2: this is not UTF-8 text"),
    ("classes.txt", "person\n\ndog\n", r"classes\.txt:2: a class name is empty"),
    ("classes.txt", "person\ndog\nperson \n", r"classes\.txt:3: class 'person' stands here a second time"),
    ("classes.txt", "\n", r"classes\.txt is empty"),
    ("classes.txt", "person\ndog\n", r"train_list\.txt:1: 3 labels, but there are 2 classes"),
    (
        "label.txt",
        "0 person\n2 dog\n",
        r"label\.txt:2: '2 dog' does not begin with an index 0\.\.\.1, as the 2 classes",
    ),
    ("label.txt", "1 person\n90 dog\n", r"label\.txt:2: '90 dog' does not begin with an index"),
    ("label.txt", "person\ndog\n", r"label\.txt:1: 'person' does not begin with an index"),
    ("label.txt", "0 a\n0 b\n2 c\n", r"label\.txt:2: index 0 stands here a second time"),
    ("label.txt", "0 a\n1 b\n2 a\n", r"label\.txt:3: class 'a' stands here a second time"),
    ("label.txt", "0 a\n1\n2 b\n", r"label\.txt:2: a class name is empty"),
    ("label.txt", "", r"label\.txt is empty"),
    ("train.txt", "a.jpg\t1,0\n", r"train\.txt:1: 2 labels, but there are 3 classes in label\.txt"),
    ("train/cow/a.jpg", "", r"train/cow/a\.jpg: 'cow' is no class; the nearest: dog, "),
    ("train/a.jpg", "", r"train/a\.jpg lies in no class folder"),
    ("train.json", '{"classes": ["x"],\n "images": }', r"train\.json:2: Expecting value: this is not JSON"),
    ("train.json", '{"classes": ["x"]}', r'train\.json: expected \{"classes"'),
    ("train.json", '{"classes": ["x", "y",\n"x"], "images": []}', r"train\.json:2: class 'x' stands here a second"),
    ("train.json", '{"classes": ["x", 3], "images": []}', r"train\.json:1: a class name is empty, or no text: 3"),
    ("train.json", '{"classes": ["x"], "images": []}', r"train\.json lists no images"),
    ("train.json", '{"classes": ["x"], "images": [["a.jpg", "x"]]}', r"train\.json: image 1 is \['a\.jpg', 'x'\], not"),
    ("train.json", '{"classes": ["xa"],\n "images": [\n["a.jpg", ["x"]]]}', r":3: 'x' is no class; the nearest: xa;"),
    ("train.json", '{"classes": ["x"],\n "images": [\n["a.jpg", ["x"], ["x"]]]}', r":3: a class is both present and"),
    (
        "train.json",
        '{"classes": ["x"],\n "images": [["a.jpg", ["x"]],\n["b.jpg", []],\n["a.jpg", []]]}',
        r"train\.json:4: 'a\.jpg' has other labels here than at .*train\.json:2$",
    ),
    (
        "train.json",
        '{"classes": ["x"],\n "images": [["../a.jpg", []]]}',
        r"train\.json:2: the path '\.\./a\.jpg' leaves",
    ),
    ("train.json", '{"classes": ["x"],\n "images": [["é.jpg", []]]}', r"1 of 1 images do not exist, .*json:2\)"),
    ("annotations/instances_train.json", "[]", r'instances_train\.json: expected \{"images"'),
    (
        "annotations/instances_train.json",
        coco(categories={}),
        r'instances_train\.json: the list "categories" is missing',
    ),
    ("annotations/instances_train.json", coco(images=[]), r"instances_train\.json lists no images"),
    ("annotations/instances_train.json", coco(images=[{"id": 1}]), r"json: image 1: 'file_name' is missing"),
    ("annotations/instances_train.json", coco(images=[1]), r"instances_train\.json: image 1 of 1 is 1, no object"),
    (
        "annotations/instances_train.json",
        coco(annotations=[{"id": 7, "image_id": 1, "category_id": 91}]),
        r"instances_train\.json: annotation 7 \(image 1\): category_id 91 is the id of no category",
    ),
    (
        "annotations/instances_train.json",
        coco(annotations=[{"id": 7, "image_id": 2, "category_id": 1}]),
        r"instances_train\.json: annotation 7: image_id 2 is the id of no image",
    ),
    (
        "annotations/instances_train.json",
        coco(annotations=[{"id": 7, "image_id": 1}]),
        r"instances_train\.json: annotation 7 \(image 1\): 'category_id' is missing",
    ),
    (
        "annotations/instances_train.json",
        coco(categories=[{"id": 1, "name": "x"}, {"id": 1, "name": "y"}]),
        r"json: category 1 stands there twice: 'x' and 'y'",
    ),
    (
        "annotations/instances_train.json",
        coco(images=[{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]),
        r"json: image 1 stands there twice: 'a\.jpg' and 'b\.jpg'",
    ),
    (
        "annotations/instances_train.json",
        coco(annotations=[{"id": 7, "image_id": 1, "category_id": "1"}]),
        r"annotation 7 \(image 1\): category_id '1' is the id of no category, while 1 is: write both as numbers",
    ),
    (
        "annotations/instances_train.json",
        coco(annotations=[{"id": 7, "image_id": "1", "category_id": 1}]),
        r"annotation 7: image_id '1' is the id of no image, while 1 is: write both as numbers",
    ),
    ("annotations/instances_train.json", coco(annotations=None), r'json: the list "annotations" is missing'),
    ("annotations/instances_train.json", coco(images=[{"file_name": "a.jpg"}]), r"image 1 of 1: 'id' is missing"),
    ("annotations/instances_train.json", coco(images=[{"id": None}]), r"image 1 of 1: its id is None"),
    ("annotations/instances_train.json", coco(categories=[{"id": 3}]), r"category 3: 'name' is missing, or is no text"),
    (
        "annotations/instances_train.json",
        coco(categories=[{"id": 1, "name": "x"}, {"id": "2", "name": "y"}]),
        r"some ids of category entries are numbers, and some are texts",
    ),
    (
        "annotations/instances_train.json",
        coco(images=[{"id": 1, "file_name": "a.jpg", "unknown_category_ids": [5]}]),
        r"json:1: unknown_category_ids: 5 is the id of no category",
    ),
    (
        "annotations/instances_train.json",
        coco(categories=[{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]),
        r"category \(2, 'x'\): class 'x' stands here a second time",
    ),
    (
        "annotations/instances_train.json",
        coco(images=[{"id": 1, "file_name": "../../a.jpg"}]),
        r"instances_train\.json:1: the path '\.\./\.\./a\.jpg' leaves the data set's folder",
    ),
    (
        "annotations/instances_train2014.json",
        coco(images=[{"id": 1, "file_name": "nowhere.jpg"}]),
        r"1 of 1 images do not exist, the first: .*nowhere\.jpg \(.*instances_train2014\.json:1\)",
    ),
    ("train.csv", "image_path,x\na.jpg,1,0\n", r"train\.csv:2: 3 cells, but 2 columns"),
    ("train.csv", "image_path,x\na.jpg,1\nb.jpg,maybe\n", r"train\.csv:3: 'maybe' for class 'x' is none of 1"),
    ("train.csv", "image_path,x,x\na.jpg,1,0\n", r"train\.csv:1: column 3: class 'x' stands here a second time"),
    ("train.csv", 'image_path,x\n"a.jpg,1\n', r"train\.csv:2: unexpected end of data"),
    ("train.csv", "image_path,labels\na.jpg,dgo\n", r"train\.csv:2: 'dgo' is no class; the nearest: dog, "),
    ("train.csv", "image_path,x\n\n", r"train\.csv lists no images"),
    (
        "all.csv",
        "image_path,split,x\na.jpg,train,1\nb.jpg,holdout,1\n",
        r"all\.csv:3: the split 'holdout' is none of train",
    ),
]
FORMAT_OF = {"train_list.txt": "train_list", "classes.txt": "train_list", "label.txt": "mlcls", "train.txt": "mlcls"}
FORMAT_OF |= {"train.json": "classes_json", "train.csv": "csv", "all.csv": "csv"}


@pytest.mark.parametrize(("file", "text", "message"), MISTAKES)
def test_mistakes_are_told_by_file_and_line(tmp_path: Path, file: str, text: str | bytes, message: str) -> None:
    name = FORMAT_OF.get(file, "coco_json" if "instances" in file else "image_folder")
    place(tmp_path, "a.jpg", "b.jpg")
    if name == "coco_json":
        (tmp_path / "train").mkdir()
    write(tmp_path, {"classes.txt": "person\ntraffic light\ndog\n", "train_list.txt": "a.jpg\t1,0,0\n"})
    write(tmp_path, {"label.txt": "0 person\n1 traffic light\n2 dog\n", "train.txt": "a.jpg\t1,0,0\n"})
    place(tmp_path, *(["train/dog/c.jpg"] if name == "image_folder" else []))
    if ",x" in str(text):
        (tmp_path / "classes.txt").unlink()  # it would choose the columns
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as error:
        FORMATS[name].read(tmp_path, "train")
    assert "\n" not in str(error.value)


def test_the_nearest_ten_of_many_classes(tmp_path: Path) -> None:
    names = [f"class{number:02}" for number in range(40)] + ["person"]
    write(tmp_path, {"train.json": json.dumps({"classes": names, "images": [["a.jpg", ["persn"]]]})})
    with pytest.raises(InputError) as error:
        FORMATS["classes_json"].read(tmp_path, "train")
    nearest = str(error.value).partition("the nearest: ")[2].split(", ")
    assert nearest[0] == "person"
    assert len(nearest) == NEAREST == 10
