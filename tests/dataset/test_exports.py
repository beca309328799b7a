"""What other tools export, in the form they write it: read as it comes, or refused in one line that says why."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from dataset.formats import FORMATS
from dataset.formats.base import ReadOptions
from dataset.splits import find_split, sort_files
from dataset.table import Table
from dataset_readers import read_dataset, recognise_format
from utils import InputError


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def place(root: Path, *names: str) -> None:
    write(root, dict.fromkeys(names, ""))


def as_rows(table: Table) -> dict[str, list[int]]:
    return {Path(path).name: row for path, row in zip(table.paths, table.targets.tolist(), strict=True)}


# ---- splits ----


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instance_train", "train"),
        ("instances_Validation", "val"),
        ("valid", "val"),
        ("my-dev.2017", "val"),
        ("instances_test2017", "test"),
        ("train_val", None),
        ("instances_default", None),
        ("contest", None),
    ],
)
def test_the_split_in_a_name(name: str, split: str | None) -> None:
    assert find_split(name) == split


def test_files_without_a_split_are_train_where_none_has_one() -> None:
    both, named = [Path("b.json"), Path("a.json")], Path("my_val.json")
    assert sort_files(both) == {"train": [Path("a.json"), Path("b.json")]}
    assert sort_files([*both, named]) == {"val": [named]}
    assert sort_files([]) == {}


# ---- Roboflow ----


def write_roboflow(root: Path) -> None:
    for split, names in (("train", ("a.jpg", "b.jpg")), ("valid", ("c.jpg",))):
        place(root, *(f"{split}/{name}" for name in names))
        rows = "".join(f"{name}, 0, 1\n" for name in names)
        write(root, {f"{split}/_classes.csv": f"filename, cat, traffic light\n{rows}"})
    place(root, "README.roboflow.txt")


def test_roboflows_valid_is_val(tmp_path: Path) -> None:
    write_roboflow(tmp_path)
    assert recognise_format(tmp_path) == "roboflow"
    assert FORMATS["roboflow"].list_splits(tmp_path) == ["train", "val"]
    table = read_dataset(tmp_path, split="val")
    assert (table.classes, as_rows(table)) == (("cat", "traffic light"), {"c.jpg": [0, 1]})
    assert as_rows(read_dataset(tmp_path, split="train")) == {"a.jpg": [0, 1], "b.jpg": [0, 1]}
    write(tmp_path, {"val/_classes.csv": "filename, cat\nc.jpg, 1\n"})
    with pytest.raises(InputError, match=r"val/_classes\.csv and .*valid/_classes\.csv are both for val: remove one"):
        read_dataset(tmp_path, split="val")


def test_classes_of_roboflow_that_are_called_like_columns_of_a_csv(tmp_path: Path) -> None:
    place(tmp_path, "train/a.jpg")
    write(tmp_path, {"train/_classes.csv": "filename, labels, split, group, path\na.jpg, 1, 0, 1, 0\n"})
    table = read_dataset(tmp_path, "roboflow", "train")
    assert table.classes == ("labels", "split", "group", "path")
    assert (table.targets.tolist(), table.groups) == ([[1, 0, 1, 0]], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename\na.jpg\n", r"train/_classes\.csv:1: no column of labels: neither"),
        ("filename, cat\na.jpg, 1\nb.jpg, maybe\n", r"_classes\.csv:3: 'maybe' for class 'cat' is none of 1"),
        ("filename, cat, cat\na.jpg, 1, 1\n", r"_classes\.csv:1: column 3: class 'cat' stands here a second time"),
        ("filename, cat\nd.jpg, 1\n", r"1 of 1 images do not exist, the first: .*train/d\.jpg \(.*_classes\.csv:2\)"),
    ],
)
def test_mistakes_in_a_roboflow_csv(tmp_path: Path, text: str, message: str) -> None:
    write_roboflow(tmp_path)
    write(tmp_path, {"train/_classes.csv": text})
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, split="train")


# ---- COCO JSON ----


def coco(names: list[str], labels: list[list[int]], names_by_id: dict[int, str], **changed: object) -> str:
    """Images with the ids 100, 101 and so on; `labels` are the ids of each one's categories."""
    pairs = [(100 + index, category) for index, ids in enumerate(labels) for category in ids]
    lists: dict[str, object] = {
        "info": {"description": ""},
        "images": [{"id": 100 + index, "file_name": name, "width": 8} for index, name in enumerate(names)],
        "annotations": [
            {"id": 600 + index, "image_id": image, "category_id": category, "bbox": [0, 0, 1, 1], "iscrowd": 0}
            for index, (image, category) in enumerate(pairs)
        ],
        "categories": [{"id": id, "name": name, "supercategory": ""} for id, name in names_by_id.items()],
    }
    return json.dumps(lists | changed, indent=1)


ANIMALS = {7: "cat", 3: "dog"}
TWO = coco(["a.jpg", "b.jpg"], [[7, 3, 3], []], ANIMALS)
FOLDERS_FIRST = coco(["train2017/a.jpg", "train2017/b.jpg"], [[7, 3, 3], []], ANIMALS)
ELSEWHERE = coco(["C:\\x\\a.jpg", "/data/upload/1/0123abcd-b.jpg"], [[7, 3, 3], []], ANIMALS)


@pytest.mark.parametrize(
    ("file", "text", "folder"),
    [
        ("annotations/instances_default.json", TWO, "images"),  # CVAT
        ("annotations/instances_default.json", TWO, "images/default"),
        ("annotations/instances_Train.json", TWO, "images/Train"),
        ("annotations/instance_train.json", TWO, "images"),  # PaddleX
        ("train.json", TWO, "train"),
        ("train.json", TWO, "images/train"),
        ("train.json", TWO, "."),
        ("result.json", TWO, "images"),  # Label Studio
        ("result.json", coco(["images\\a.jpg", "images/b.jpg"], [[7, 3, 3], []], ANIMALS), "images"),
        ("labels.json", TWO, "data"),  # FiftyOne
        ("annotations/instances_train2017.json", FOLDERS_FIRST, "train2017"),
        ("annotations/instances_train.json", TWO, "photos/mine"),
        ("result.json", ELSEWHERE, "photos/mine"),
        ("train/_annotations.coco.json", TWO, "train"),  # Roboflow
    ],
)
def test_coco_json_whatever_its_name_and_wherever_its_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, folder: str
) -> None:
    place(tmp_path, f"{folder}/a.jpg", f"{folder}/b.jpg")
    write(tmp_path, {file: text})
    assert recognise_format(tmp_path) == "coco_json"
    assert FORMATS["coco_json"].list_splits(tmp_path) == ["train"]
    table = read_dataset(tmp_path, split="train")
    assert table.classes == ("dog", "cat"), "by rising id"
    assert as_rows(table) == {"a.jpg": [1, 1], "b.jpg": [0, 0]}
    assert ("all 2 are taken so" in capsys.readouterr().err) == (folder == "photos/mine")


def test_splits_of_coco_json_are_in_the_names_of_files_or_folders(tmp_path: Path) -> None:
    place(tmp_path, "images/a.jpg", "images/b.jpg")
    one = coco(["b.jpg"], [[3]], ANIMALS)
    write(tmp_path, {"annotations/instance_train.json": TWO, "annotations/instance_val.json": one})
    write(tmp_path, {"annotations/captions.json": '{"images": [], "annotations": []}', "annotations/all.json": TWO})
    assert FORMATS["coco_json"].list_splits(tmp_path) == ["train", "val"]
    assert as_rows(read_dataset(tmp_path, split="val")) == {"b.jpg": [1, 0]}
    for split in ("valid", "val"):
        place(tmp_path, f"{split}/b.jpg")
        write(tmp_path, {f"{split}/_annotations.coco.json": one})
    assert FORMATS["coco_json"].list_splits(tmp_path) == ["val"]
    with pytest.raises(InputError, match=r"val/_annotations\.coco\.json and .*valid/_.* are both for val"):
        read_dataset(tmp_path, split="val")


def test_images_of_cvats_default_subset_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path, "images/a.jpg", "images/b.jpg")
    one, other = (coco([name], [[7]], ANIMALS) for name in ("a.jpg", "b.jpg"))
    write(tmp_path, {"annotations/instances_Train.json": one, "annotations/instances_Validation.json": other})
    write(tmp_path, {"annotations/person_keypoints_train.json": TWO})
    assert as_rows(read_dataset(tmp_path, split="train")) == {"a.jpg": [0, 1]}
    assert capsys.readouterr().err == "", "COCO's keypoints are of the same images"
    write(tmp_path, {"annotations/instances_default.json": TWO})
    assert as_rows(read_dataset(tmp_path, split="train")) == {"a.jpg": [0, 1]}
    said = "instances_default.json is not read: its name says no split, as that of instances_Train.json does"
    assert capsys.readouterr().err == f"warning: {tmp_path}/annotations/{said}\n"


def test_the_category_that_roboflow_adds_is_no_class(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "dog", "supercategory": "animals"},
    ]
    for split, labels in (("train", [[1], []]), ("valid", [[2], [1]])):
        place(tmp_path, f"{split}/a.jpg", f"{split}/b.jpg")
        text = coco(["a.jpg", "b.jpg"], labels, {}, categories=categories)
        write(tmp_path, {f"{split}/_annotations.coco.json": text})
    for split, rows in (("train", [[1, 0], [0, 0]]), ("val", [[0, 1], [1, 0]])):
        table = read_dataset(tmp_path, split=split)
        assert (table.classes, table.targets.tolist()) == (("cat", "dog"), rows)
    text = coco(["a.jpg", "b.jpg"], [[0], [1]], {}, categories=categories)
    write(tmp_path, {"valid/_annotations.coco.json": text})
    for split in ("train", "val"):
        assert read_dataset(tmp_path, split=split).classes == ("animals", "cat", "dog"), (
            "an image of val is labelled so"
        )
    around = [dict(category, supercategory=name) for category, name in zip(categories[1:], ("dog", "cat"), strict=True)]
    for split in ("train", "valid"):
        text = coco(["a.jpg", "b.jpg"], [[], []], {}, categories=around)
        write(tmp_path, {f"{split}/_annotations.coco.json": text})
    assert read_dataset(tmp_path, split="train").classes == ("cat", "dog"), "each groups the other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (coco(["a.jpg"], [[2]], ANIMALS), r"annotation 600 \(image 100\): category_id 2 is the id of no category"),
        (coco(["a.jpg"], [], ANIMALS, categories=None), r'instances_train\.json: the list "categories" is missing'),
        (coco(["a.jpg"], [], ANIMALS, annotations=[{"id": 1, "image_id": 5}]), r"1: image_id 5 is the id of no image$"),
        (
            coco(["c.jpg", "a.jpg"], [], ANIMALS),
            r"1 of 2 images do not exist, the first: .*images/c\.jpg \(.*json:\d+\)",
        ),
        (coco(["c.jpg", "d.jpg"], [], ANIMALS), r"2 of 2 images do not exist, the first: .*c\.jpg \(.*json:\d+\)$"),
    ],
)
def test_mistakes_in_coco_json_name_annotation_image_and_category(tmp_path: Path, text: str, message: str) -> None:
    place(tmp_path, "images/a.jpg")
    write(tmp_path, {"annotations/instances_train.json": text})
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, split="train")


def test_a_name_that_two_images_have_is_not_guessed(tmp_path: Path) -> None:
    place(tmp_path, "x/1/a.jpg", "x/2/a.jpg", "x/1/b.jpg")
    write(tmp_path, {"result.json": coco(["/mnt/2/a.jpg", "b.jpg"], [[3], [7]], ANIMALS)})
    table = read_dataset(tmp_path, split="train")
    assert [path.removeprefix(f"{tmp_path}/") for path in table.paths] == ["x/1/b.jpg", "x/2/a.jpg"], (
        "the folders agree"
    )
    write(tmp_path, {"result.json": coco(["/mnt/a.jpg", "b.jpg"], [[3], [7]], ANIMALS)})
    with pytest.raises(
        InputError,
        match=r"exist; 1 of them is there .* but not /mnt/a.jpg .*, which leaves .*; there are x/1/a.jpg and x/2/a.jpg",
    ):
        read_dataset(tmp_path, split="train")


def test_files_of_other_formats_are_not_taken_for_coco_json(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg")
    write(tmp_path, {"train.json": json.dumps({"classes": ["x"], "images": [["a.jpg", ["x"]]]}), "empty.json": ""})
    write(tmp_path, {"list.json": f"[{TWO}]", "maps.json": '{"images": {}, "annotations": {}, "categories": {}}'})
    assert recognise_format(tmp_path) == "classes_json"


# ---- Label Studio ----


def make_task(
    image: str, *labels: str, id: int = 1, control: str = "choice", **annotation: object
) -> dict[str, object]:
    """A task of Label Studio's JSON with one annotation, as the fields in its documentation."""
    result = {"from_name": control, "to_name": "image", "type": "choices", "value": {"choices": list(labels)}}
    made: dict[str, object] = {"id": id, "completed_by": 1, "was_cancelled": False, "ground_truth": False}
    made["result"] = [result] if labels else []
    return {"id": id, "data": {"image": image, "note": "x"}, "annotations": [made | annotation], "predictions": []}


def make_box(*labels: str, kind: str = "rectanglelabels") -> dict[str, object]:
    return {"type": kind, "from_name": "label", "value": {"x": 1, "y": 2, "width": 3, "height": 4, kind: list(labels)}}


ALWAYS = {"annotator": 1, "annotation_id": 5, "created_at": "2024", "updated_at": "2024", "lead_time": 3.2}
UPLOADED = "/data/upload/1/00000000-"
LOCAL = "/data/local-files/?d=sets/photos/"
CHOICES_CSV = f"""annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at
1,1,cat,2024,1,{UPLOADED}a.jpg,3.2,2024
2,1,"{{""choices"": [""cat"", ""dog""]}}",2024,2,{UPLOADED}b.jpg,3.2,2024
3,1,,2024,3,{UPLOADED}c.jpg,3.2,2024
"""
EXPORTS = {
    "choices.json": [
        make_task(f"{UPLOADED}a.jpg", "cat"),
        make_task(f"{LOCAL}b%20.jpg".replace("%20", ""), "cat", "dog"),
        make_task("https://example.com/photos/c.jpg"),
        make_task("d.jpg", "cat", was_cancelled=True),
        {"id": 9, "data": {"image": "d.jpg"}, "annotations": []},
    ],
    "boxes.json": [
        make_task("a.jpg", result=[make_box("cat"), make_box("cat")]),
        make_task("b.jpg", result=[make_box("cat"), make_box("dog", kind="brushlabels"), {"value": {"rating": 3}}]),
        make_task("s3://bucket/c.jpg", result=[]),
    ],
    "min.json": [
        {"image": f"{UPLOADED}a.jpg", "id": 1, "choice": "cat"} | ALWAYS,
        {"image": f"{UPLOADED}b.jpg", "id": 2, "choice": {"choices": ["cat", "dog"]}} | ALWAYS | {"annotation_id": 6},
        {"image": f"{UPLOADED}c.jpg", "id": 3} | ALWAYS | {"annotation_id": 7},
    ],
    "min_boxes.json": [
        {"image": "a.jpg", "id": 1, "caption": "x", "label": [{"x": 1, "rectanglelabels": ["cat"]}]} | ALWAYS,
        {"image": "b.jpg", "id": 2, "caption": "y", "label": [{"polygonlabels": ["dog", "cat"]}]} | ALWAYS
        | {"annotation_id": 6},
        {"image": "c.jpg", "id": 3, "caption": "y", "label": []} | ALWAYS | {"annotation_id": 7},
    ],
    "project-1-at-2024-05-01-10-00-abcdef.csv": CHOICES_CSV,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        *((name, "") for name in EXPORTS),
        ("min.json", "00000000-"),
        ("project-1-at-2024-05-01-10-00-abcdef.csv", "00000000-"),
    ],
)
def test_each_export_of_label_studio(tmp_path: Path, name: str, prefix: str) -> None:
    place(tmp_path, *(f"photos/{prefix}{image}.jpg" for image in "abcd"))
    text = EXPORTS[name]
    write(tmp_path, {name: text if isinstance(text, str) else json.dumps(text, indent=2)})
    assert recognise_format(tmp_path) == "label_studio"
    assert FORMATS["label_studio"].list_splits(tmp_path) == ["train"]
    table = read_dataset(tmp_path, split="train")
    assert table.classes == ("cat", "dog")
    expected = {f"{prefix}a.jpg": [1, 0], f"{prefix}b.jpg": [1, 1], f"{prefix}c.jpg": [0, 0]}
    assert as_rows(table) == expected, "d.jpg was skipped, and c.jpg was looked at and has nothing"


def test_what_label_studio_leaves_open_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    write(tmp_path, {"choices.json": json.dumps(EXPORTS["choices.json"])})
    read_dataset(tmp_path, split="train")
    assert "choices.json: 2 task(s) were skipped or have no annotation, and are left out" in capsys.readouterr().err
    write(tmp_path, {"choices.json": json.dumps(EXPORTS["min_boxes.json"])})
    read_dataset(tmp_path, split="train")
    assert "labels are read from label, not from caption" in capsys.readouterr().err
    tasks = [make_task("a.jpg", "cat"), make_task("b.jpg", "sunny", control="weather")]
    write(tmp_path, {"choices.json": json.dumps(tasks)})
    read_dataset(tmp_path, split="train")
    assert "the labels of choice, weather are all classes" in capsys.readouterr().err


def make_nested(*paths: list[str], key: str = "taxonomy") -> dict[str, object]:
    """A result of choices that lie in others."""
    return {"type": key, "from_name": "kind", "to_name": "image", "value": {key: [*paths]}}


CAT, DOG, CAR = ["Animal", "Cat"], ["Animal", "Dog"], ["Car"]


def write_nested(kind: str, paths: dict[str, list[list[str]]]) -> str:
    """Choices of each image in one of the three kinds of an export."""
    if kind == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["image", "kind", *ALWAYS])
        writer.writerows([name, json.dumps([{"taxonomy": found}]), *ALWAYS.values()] for name, found in paths.items())
        return buffer.getvalue()
    if kind == "min":
        cells = [{"image": name, "kind": [{"taxonomy": found}]} for name, found in paths.items()]
        return json.dumps([cell | ALWAYS | {"annotation_id": number} for number, cell in enumerate(cells)])
    return json.dumps([make_task(name, result=[make_nested(*found, key=kind)]) for name, found in paths.items()])


@pytest.mark.parametrize("kind", ["taxonomy", "choices", "min", "csv"])
def test_choices_that_lie_in_others_are_named_by_their_paths(tmp_path: Path, kind: str) -> None:
    place(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    text = write_nested(kind, {"a.jpg": [CAT, CAR], "b.jpg": [DOG], "c.jpg": []})
    write(tmp_path, {"x.csv" if kind == "csv" else "x.json": text})
    assert recognise_format(tmp_path) == "label_studio"
    table = read_dataset(tmp_path, split="train")
    assert table.classes == ("Animal / Cat", "Animal / Dog", "Car")
    assert as_rows(table) == {"a.jpg": [1, 0, 1], "b.jpg": [0, 1, 0], "c.jpg": [0, 0, 0]}


def test_an_outer_choice_that_every_image_of_its_inner_ones_has(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path, {"x.json": write_nested("taxonomy", {"a.jpg": [["Animal"], CAT], "b.jpg": [["Animal"]]})})
    table = read_dataset(tmp_path, split="train")
    assert (table.classes, as_rows(table)) == (("Animal", "Animal / Cat"), {"a.jpg": [1, 1], "b.jpg": [1, 0]})
    write(tmp_path, {"x.json": json.dumps([make_task("a.jpg", "Car / Van"), make_task("b.jpg", "Car")])})
    table = read_dataset(tmp_path, split="train")
    assert as_rows(table) == {"a.jpg": [0, 1], "b.jpg": [1, 0]}, "these are names, not paths"


def test_several_annotations_of_one_image(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg")
    both = make_task("a.jpg", "cat")
    second = make_task("a.jpg", "dog", id=2)["annotations"]
    assert isinstance(both["annotations"], list)
    assert isinstance(second, list)
    both["annotations"] += second
    write(tmp_path, {"x.json": json.dumps([both])})
    with pytest.raises(InputError, match=r"x\.json: task 1: 'a\.jpg' has other labels here than at .*task 1"):
        read_dataset(tmp_path, split="train")
    second[0]["ground_truth"] = True
    write(tmp_path, {"x.json": json.dumps([both, make_task("a.jpg", "dog", id=2)]), "classes.txt": "dog\ncat\n"})
    assert read_dataset(tmp_path, split="train").targets.tolist() == [[1, 0]]


TWO_IMAGES = {"id": 4, "data": {"left": "a.jpg", "right": "b.jpg"}, "annotations": [{"result": []}]}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            [make_task("https://x.org/photo.jpg?v=2", "cat", id=3)],
            r"1 of 1 .*: https://x\.org/photo\.jpg\?v=2 \(.*task 3\); images on the web are not fetched",
        ),
        (
            [make_task("/data/upload/1/c.jpg", "cat", id=3)],
            r"task 3: the path '/data/upload/1/c\.jpg' leaves the data set's folder .*",
        ),
        (
            [make_task("x/b.jpg", "cat"), make_task("y/b.jpg", "cat")],
            r"'y/b\.jpg' and 'x/b\.jpg' would both be b\.jpg: is an image missing",
        ),
        ([make_task("a.jpg", "cat")], r"'a\.jpg' may be 1/a\.jpg or 2/a\.jpg in .*: remove one"),
        (
            [make_task("b.jpg", "yes"), make_task("b.jpg", "yes", control="cat")],
            r"'yes' is a label of choice and of cat",
        ),
        (
            [make_task("b.jpg", result=[make_nested(["Animal"])]), make_task("c.jpg", id=7, result=[make_nested(CAT)])],
            r"task 7: is 'Animal / Cat' also 'Animal', which is chosen elsewhere\? Choose both",
        ),
        (
            [make_task("b.jpg", result=[make_nested(CAT, [])])],
            r"task 1: the labels of kind are \{'taxonomy': \[\['Animal', 'Cat'\], \[\]\]\}, which is no list of names",
        ),
        ([TWO_IMAGES], r"task 4: one image a task is read, but left and right name one"),
        ([make_task("note.txt", "cat")], r"task 1: one image a task is read, but none of image, note name one"),
        ([make_task("b.jpg")], r"no annotation has a choice or a label of a box"),
        (
            [make_task("b.jpg", "cat") | {"annotations": 3}, make_task("b.jpg", "cat")],
            r"is no export of Label Studio: TypeError",
        ),
        (
            [{"image": "b.jpg", "x": "cat", "y": "u"} | ALWAYS],
            r"which of the columns x, y holds the labels\? Set LABEL",
        ),
    ],
)
def test_mistakes_in_exports_of_label_studio(tmp_path: Path, tasks: list[object], message: str) -> None:
    place(tmp_path, "1/a.jpg", "2/a.jpg", "b.jpg")
    write(tmp_path, {"x.json": json.dumps(tasks)})
    with pytest.raises(InputError, match=message) as error:
        read_dataset(tmp_path, split="train")
    assert "\n" not in str(error.value)


# ---- CVAT for images ----


def make_xml(*images: str, labels: tuple[str, ...] = ("cat", "dog"), more: str = "") -> str:
    """An export of CVAT, its meta as in the documentation of the format; a label may have a skeleton's parts."""
    names = "".join(f"<label><name>{name}</name><type>any</type><attributes></attributes></label>" for name in labels)
    lines = ["<?xml version='1.0' encoding='utf-8'?>", "<annotations>", "<version>1.1</version>"]
    lines += [f"<meta><task><id>1</id><labels>{names}{more}</labels></task><dumped>2024</dumped></meta>", *images]
    return "\n".join([*lines, "</annotations>"])


SHAPES = (
    '<tag label="{0}" source="manual"></tag>',
    '<box label="{0}" xtl="1" ytl="2" xbr="3" ybr="4" occluded="0"><attribute name="sex">dog</attribute></box>',
    '<mask label="{0}" rle="1" left="0" top="0" width="1" height="1"/>',
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("folder", ["images", ".", "photos/1"])
def test_cvat_for_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: str, folder: str) -> None:
    place(tmp_path, f"{folder}/a.jpg", f"{folder}/b & c.jpg")
    images = [
        f'<image id="0" name="a.jpg" width="8" height="8">{shape.format("dog")}{shape.format("dog")}</image>',
        '<image id="1" name="b &amp; c.jpg" width="8" height="8">\n</image>',
    ]
    part = "<label><name>tail</name><type>points</type><parent>dog</parent></label>"
    write(tmp_path, {"annotations.xml": make_xml(*images, labels=("emu", "dog"), more=part)})
    assert recognise_format(tmp_path) == "cvat"
    table = read_dataset(tmp_path, split="train")
    assert table.classes == ("emu", "dog"), "in their order in CVAT, also one that is nowhere; no part of a skeleton"
    assert as_rows(table) == {"a.jpg": [0, 1], "b & c.jpg": [0, 0]}
    assert ("all 2 are taken so" in capsys.readouterr().err) == (folder == "photos/1")


def test_the_subsets_of_cvat_are_splits(tmp_path: Path) -> None:
    place(tmp_path, "images/a.jpg", "images/b.jpg")
    image = '<image id="0" name="{}" subset="{}"><tag label="cat"/></image>'
    write(tmp_path, {"annotations.xml": make_xml(image.format("a.jpg", "default"), image.format("b.jpg", ""))})
    assert FORMATS["cvat"].list_splits(tmp_path) == ["train"]
    text = make_xml(image.format("a.jpg", "Train"), image.format("b.jpg", "Validation"))
    write(tmp_path, {"annotations.xml": text})
    assert FORMATS["cvat"].list_splits(tmp_path) == ["train", "val"]
    assert as_rows(read_dataset(tmp_path, split="val")) == {"b.jpg": [1, 0]}
    write(tmp_path, {"annotations.xml": make_xml(image.format("a.jpg", "Train"), image.format("b.jpg", "mine"))})
    with pytest.raises(InputError, match=r"1 image\(s\), such as b\.jpg, are in the subset 'mine', which is no split"):
        read_dataset(tmp_path, split="train")


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><annotations>&b;</annotations>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"annotations\.xml: it declares a document type or entities"),
        ("<annotations>\n<image>\n</annotations>", r"annotations\.xml:3: mismatched tag: this is not XML"),
        ("<annotations>\n<track id='0' label='cat'></track></annotations>", r'it is "CVAT for video": export it as'),
        (make_xml('<image name="a.jpg"><tag label="cow"/></image>'), r"image 'a\.jpg': 'cow' is no class; the nearest"),
        (
            make_xml('<image name="b.jpg"/>'),
            r"1 of 1 images do not exist, the first: .*b\.jpg \(.*annotations\.xml: image 'b\.jpg'\)",
        ),
        (make_xml('<image name="a.jpg"/>', labels=()), r"annotations\.xml: there is no label in <meta>"),
        (
            make_xml('<image name="a.jpg"/>', labels=("cat", "cat")),
            r"label 2 in <meta>: class 'cat' stands here a second",
        ),
        (make_xml(), r"annotations\.xml lists no images"),
        (make_xml('<image name="../outside.jpg"/>'), r"the path '\.\./outside\.jpg' leaves the data set's folder"),
    ],
)
def test_mistakes_in_cvat(tmp_path: Path, text: str, message: str) -> None:
    place(tmp_path, "set/a.jpg", "outside.jpg")
    write(tmp_path, {"set/annotations.xml": text})
    with pytest.raises(InputError, match=message) as error:
        read_dataset(tmp_path / "set", split="train")
    assert "\n" not in str(error.value)


def test_other_xml_is_not_cvat(tmp_path: Path) -> None:
    write(tmp_path, {"annotations.xml": "<annotation><filename>a.jpg</filename></annotation>"})
    assert not FORMATS["cvat"].recognise(tmp_path)


# ---- Hugging Face ----

A_B_C = {"a.jpg": [1, 0], "b.jpg": [1, 1], "c.jpg": [0, 0]}
METADATA = {
    "metadata.csv": [
        "file_name,labels,width\na.jpg,['cat'],8\nb.jpg,\"['cat', 'dog']\",8\nc.jpg,[],8\n",
        'file_name,labels\na.jpg,"[""cat""]"\nb.jpg,"[""dog"", ""cat""]"\nc.jpg,\n',
        "label,file_name\ncat,a.jpg\ncat;dog,b.jpg\n,c.jpg\n",
    ],
    "metadata.jsonl": [
        '{"file_name": "a.jpg", "labels": ["cat"]}\n{"file_name": "b.jpg", "labels": ["cat", "dog"]}\n\n'
        '{"file_name": "c.jpg", "labels": []}\n',
        '{"file_name": "a.jpg", "objects": {"bbox": [[0, 0, 1, 1]], "categories": ["cat"]}}\n'
        '{"file_name": "b.jpg", "objects": {"bbox": [], "categories": ["dog", "cat", "cat"]}}\n'
        '{"file_name": "c.jpg", "objects": {"bbox": [], "categories": []}}\n',
        '{"file_name": "a.jpg", "label": "cat"}\n{"file_name": "b.jpg", "label": ["cat", "dog"]}\n'
        '{"file_name": "c.jpg", "label": null}\n',
    ],
}


@pytest.mark.parametrize("folder", ["train", "."])
@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in METADATA.items() for text in texts])
def test_an_image_folder_of_hugging_face(tmp_path: Path, folder: str, name: str, text: str) -> None:
    place(tmp_path, *(f"{folder}/{image}" for image in A_B_C))
    write(tmp_path, {f"{folder}/{name}": text})
    assert recognise_format(tmp_path) == "huggingface"
    assert FORMATS["huggingface"].list_splits(tmp_path) == ["train"]
    table = read_dataset(tmp_path, split="train")
    assert (table.classes, as_rows(table)) == (("cat", "dog"), A_B_C)


def test_the_splits_of_hugging_face(tmp_path: Path) -> None:
    place(tmp_path, "train/a.jpg", "validation/b.jpg", "other/c.jpg")
    text = "file_name,label\ntrain/a.jpg,3\nvalidation/b.jpg,12\n"
    write(tmp_path, {"metadata.csv": text})
    assert FORMATS["huggingface"].list_splits(tmp_path) == ["train", "val"]
    table = read_dataset(tmp_path, split="val")
    assert (table.classes, as_rows(table)) == (("12", "3"), {"b.jpg": [1, 0]})
    write(tmp_path, {"metadata.csv": f"{text}other/c.jpg,3\n"})
    with pytest.raises(
        InputError, match=r"metadata\.csv:4: 'other/c\.jpg' lies in the folder of no split, as others do"
    ):
        read_dataset(tmp_path, split="train")
    write(
        tmp_path,
        {
            "train/metadata.csv": "file_name,label\na.jpg,x\n",
            "validation/metadata.jsonl": '{"file_name": "b.jpg", "label": "y"}',
        },
    )
    assert read_dataset(tmp_path, split="val").classes == ("x", "y"), "what is named in any split"
    write(tmp_path, {"validation/metadata.csv": "file_name,label\nb.jpg,x\n"})
    with pytest.raises(InputError, match=r"metadata\.csv and .*metadata\.jsonl are both for val"):
        read_dataset(tmp_path, split="val")


def test_metadata_without_labels_leaves_class_folders_what_they_are(tmp_path: Path) -> None:
    place(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg")
    write(tmp_path, {"train/metadata.csv": "file_name,text\ncat/a.jpg,a cat\ndog/b.jpg,a dog\n"})
    assert recognise_format(tmp_path) == "image_folder"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "file_name,labels\na.jpg,[]\n", r"metadata\.csv: no image has a label"),
        ("metadata.csv", "file_name,labels\nb.jpg,x\n", r"1 of 1 images do not exist, .*train/b\.jpg \(.*csv:2\)"),
        ("metadata.csv", "file_name,labels\na.jpg,x\n./a.jpg,y\n", r"csv:3: '\./a\.jpg' has other labels here than at"),
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg", "label": 1.5}',
            r"jsonl:1: 'label' holds '1\.5', not a name or a list",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg", "objects": {"bbox": []}}',
            r"jsonl:1: 'objects' holds 'None', not a",
        ),
        ("metadata.jsonl", '{"file_name": "a.jpg", "label": "x"}\n{}', r'jsonl:2: expected \{"file_name"'),
        ("metadata.jsonl", '{"file_name": "a.jpg", "label": "x"}\n{', r"jsonl:2:1: .*: this is not JSON"),
    ],
)
def test_mistakes_in_metadata(tmp_path: Path, name: str, text: str, message: str) -> None:
    place(tmp_path, "train/a.jpg")
    write(tmp_path, {f"train/{name}": text})
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, split="train")


# ---- lists in a cell ----


def test_label_columns_of_label_studio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path, "a.jpg")
    write(tmp_path, {"x.json": json.dumps([{"image": "a.jpg", "x": "cat", "y": "dog"} | ALWAYS])})
    for columns, classes in ((("x",), ("cat",)), (("y", "x"), ("cat", "dog"))):
        assert read_dataset(tmp_path, split="train", options=ReadOptions(label_columns=columns)).classes == classes
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match=r"x\.json: there is no column 'z' of LABEL_COLUMNS: it has x, y"):
        read_dataset(tmp_path, split="train", options=ReadOptions(label_columns=("z",)))


def test_lists_and_choices_in_a_csv(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    lines = ["image_path,labels", "a.jpg,cat", 'b.jpg,"{""choices"": [""cat"", ""dog""]}"', "c.jpg,[]", "d.jpg,['dog']"]
    write(tmp_path, {"train.csv": "\n".join(lines)})
    table = read_dataset(tmp_path, split="train")
    assert (table.classes, table.targets.tolist()) == (("cat", "dog"), [[1, 0], [1, 1], [0, 0], [0, 1]])


# ---- vectors in place of labels ----


@pytest.mark.parametrize(
    ("image", "file", "text"),
    [
        ("a.jpg", "metadata.jsonl", '{"file_name": "a.jpg", "labels": [1, 1]}'),
        ("a.jpg", "metadata.csv", 'file_name,labels\na.jpg,"[0, 1, 1]"'),
        ("data/a.jpg", "labels.json", '{"classes": ["x", "y", "z"], "labels": {"a": [1, 1, 0]}}'),
    ],
)
def test_a_vector_is_no_list_of_labels(tmp_path: Path, image: str, file: str, text: str) -> None:
    place(tmp_path, image)
    write(tmp_path, {file: text})
    with pytest.raises(InputError, match=r"(metadata|labels)\..*: '[01 ]+' repeats a number: a vector of 1 and 0"):
        read_dataset(tmp_path, split="train")


@pytest.mark.parametrize(
    ("image", "file", "text"),
    [
        ("a.jpg", "metadata.jsonl", '{"file_name": "a.jpg", "objects": {"categories": [1, 1]}}'),
        ("data/a.jpg", "labels.json", '{"classes": ["0", "1"], "labels": {"a": [{"label": 1}, {"label": 1}]}}'),
    ],
)
def test_boxes_of_one_class_are_no_vector(tmp_path: Path, image: str, file: str, text: str) -> None:
    place(tmp_path, image)
    write(tmp_path, {file: text})
    table = read_dataset(tmp_path, split="train")
    assert [name for name, value in zip(table.classes, table.targets[0], strict=True) if value == 1] == ["1"]
