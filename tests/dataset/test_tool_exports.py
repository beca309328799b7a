"""Exports of tools that draw boxes or tick options, in each layout that the tools write: read, or one line why not."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from test_exports import as_rows, coco, make_task, place, write

from dataset.formats import FORMATS
from dataset_readers import read_dataset, recognise_format
from utils import InputError

A_B_C = {"a.jpg": [1, 0], "b.jpg": [1, 1], "c.jpg": [0, 0]}  # of cat and dog
BOXES = {"a": (0, 0), "b": (1, 0), "c": ()}  # the class of each box


def require_rows(
    root: Path, name: str, rows: dict[str, list[int]] = A_B_C, classes: tuple[str, ...] = ("cat", "dog")
) -> None:
    """The folder is recognised as the format `name`, and its training images have these labels."""
    assert recognise_format(root) == name
    table = read_dataset(root, split="train")
    assert (table.classes, as_rows(table)) == (classes, rows)


# ---- YOLO ----


def write_boxes(root: Path, images: str, labels: str, names: str = "abc") -> None:
    """Images and their files of boxes; `c` has an empty one."""
    place(root, *(f"{images}/{name}.jpg" for name in names))
    for name in names:
        write(root, {f"{labels}/{name}.txt": "".join(f"{box} 0.5 0.5 0.1 0.1\n" for box in BOXES[name])})


ULTRALYTICS = ("images/train", "labels/train")
LIST = "names: [cat, dog]\nnc: 2\n"
DICT = "names:\n  0: cat\n  1: dog\n"
PATHS = "data/images/train/a.jpg\nimages/train/b.jpg\n./images/train/c.jpg\n"
DARKNET = {"obj.names": "cat\ndog\n", "obj.data": "classes = 2\ntrain = data/train.txt\n"}
DARKNET |= {"train.txt": "".join(f"data/obj_train_data/{name}.jpg\n" for name in "abc")}


@pytest.mark.parametrize(
    ("folders", "files"),
    [
        (ULTRALYTICS, {"data.yaml": f"path: ../datasets/pets\ntrain: images/train\nval:\n{DICT}"}),
        (ULTRALYTICS, {"pets.yml": f"train: /content/pets/images/train\n{LIST}"}),
        (ULTRALYTICS, {"data.yaml": f"train: [images/train]\n{LIST}"}),
        (ULTRALYTICS, {"classes.txt": "cat\ndog\n"}),
        (ULTRALYTICS, {"dataset.yaml": f"path: /somewhere\ntrain: ./images/train/\n{DICT}", "hyper.yaml": "lr: 1"}),
        (("train/images", "train/labels"), {"data.yaml": f"train: ../train/images\nval: ../valid/images\n{LIST}"}),
        (("train/images", "train/labels"), {"classes.txt": "cat\ndog\n"}),
        (("images", "labels"), {"classes.txt": "cat\ndog\n", "notes.json": '{"categories": []}'}),
        (("images", "labels"), {"labels/classes.txt": "cat\ndog\n"}),
        (("images", "labels"), {"data.yaml": LIST}),
        (ULTRALYTICS, {"data.yaml": f"train: /data/elsewhere\n{DICT}"}),
        (("data", "data"), {"obj.names": "cat\ndog", "images.txt": "data/a.jpg\ndata/b.jpg\ndata/c.jpg"}),
        (("obj_train_data", "obj_train_data"), DARKNET),
        (ULTRALYTICS, {"data.yaml": f"path: ./\ntrain: train.txt\n{DICT}", "train.txt": PATHS}),
    ],
)  # fmt: skip
def test_each_layout_of_yolo(tmp_path: Path, folders: tuple[str, str], files: dict[str, str]) -> None:
    write_boxes(tmp_path, *folders)
    write(tmp_path, files)
    require_rows(tmp_path, "yolo")
    assert FORMATS["yolo"].list_splits(tmp_path) == ["train"]


def test_the_splits_of_yolo_and_images_without_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_boxes(tmp_path, *ULTRALYTICS)
    write_boxes(tmp_path, "images/dev/more", "labels/dev/more", "b")
    place(tmp_path, "images/train/d.jpg", "images/train/e.jpg")
    entries = "train: images/train\nval: images/dev\ntest: images/train\ntesting: ../gone/images\n"
    write(tmp_path, {"data.yaml": entries + DICT, "labels/train/b.txt": "1 .1 .2 .3 .1 .5 .6\n\n0 0 0 1 1 0.9\n"})
    assert FORMATS["yolo"].list_splits(tmp_path) == ["train", "val"]
    assert as_rows(read_dataset(tmp_path, split="val")) == {"b.jpg": [1, 1]}
    assert as_rows(read_dataset(tmp_path, split="train")) == A_B_C | {"d.jpg": [0, 0], "e.jpg": [0, 0]}
    said = capsys.readouterr().err
    assert "images/train: of 5 images 1 without boxes, 2 without a file of labels: they have no label" in said
    assert "data.yaml: test has the same images as train, and is no split of its own" in said
    assert "data.yaml: testing is ../gone/images, which is not there" in said


def test_images_of_two_splits_are_those_of_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_boxes(tmp_path, *ULTRALYTICS)
    lists = {
        "train.txt": "images/train/a.jpg\nimages/train/b.jpg\n",
        "val.txt": "images/train/b.jpg\nimages/train/c.jpg\n",
    }
    write(tmp_path, {"data.yaml": f"train: train.txt\nval: val.txt\n{DICT}"} | lists)
    assert as_rows(read_dataset(tmp_path, split="val")) == {"c.jpg": [0, 0]}
    assert "1 of 2 images of val are those of train: left out" in capsys.readouterr().err
    write(tmp_path, {"val.txt": "images/train/b.jpg\n"})
    with pytest.raises(InputError, match=r"data\.yaml: val has the same images as train: name others, or none"):
        read_dataset(tmp_path, split="val")


def test_yolo_with_two_orders_of_the_classes(tmp_path: Path) -> None:
    write_boxes(tmp_path, *ULTRALYTICS)
    write(tmp_path, {"data.yaml": f"train: images/train\n{LIST}", "classes.txt": "cat\ndog\n"})
    expected = read_dataset(tmp_path, split="train")
    write(tmp_path, {"classes.txt": "dog\ncat\n"})
    with pytest.raises(InputError, match=r"data\.yaml and \S+classes\.txt have the classes in another order"):
        read_dataset(tmp_path, split="train")
    (tmp_path / "classes.txt").unlink()
    assert read_dataset(tmp_path, split="train").classes == expected.classes


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"labels/train/b.txt": "0 0 0 1 1\n2 0 0 1 1\n"}, r"train/b\.txt:2: '2' is none of the classes 0\.\.\.1"),
        ({"labels/train/b.txt": "-1 0 0 1 1\n"}, r"b\.txt:1: '-1' is none of the classes"),
        ({"labels/train/b.txt": "0.5 0 0 1 1\n"}, r"b\.txt:1: '0\.5' is none of the classes"),
        ({"labels/train/b.txt": "1\n"}, r"b\.txt:1: expected a box, `class x y width height`: '1'"),
        ({"labels/train/b.txt": "cat 0 0 1 1\n"}, r"b\.txt:1: expected a box"),
        ({"data.yaml": "train: images/train\nnames: {0: cat, 2: dog}"}, r"there are 2 names, but class 1 has none"),
        ({"data.yaml": "train: images/train\nnames: cat"}, r"names are a list, or a line `0: name` a class, but 'cat'"),
        ({"data.yaml": "train: images/train\nnames: [cat, cat]"}, r"yaml: class 1: class 'cat' stands here a sec"),
        ({"data.yaml": f"train: train.txt\n{LIST}", "train.txt": "images/z.jpg\n"}, r"1 of 1 images do not exist"),
    ],
)  # fmt: skip
def test_mistakes_in_yolo(tmp_path: Path, files: dict[str, str], message: str) -> None:
    write_boxes(tmp_path, *ULTRALYTICS)
    write(tmp_path, {"data.yaml": f"train: images/train\n{LIST}"} | files)
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, split="train")


def test_images_of_yolo_without_any_labels(tmp_path: Path) -> None:
    place(tmp_path, "images/train/a.jpg", "images/train/b.jpg")
    write(tmp_path, {"data.yaml": f"train: images/train\n{LIST}"})
    with pytest.raises(InputError, match=r"no image of train has a file of labels, such as .*/labels/train/a\.txt"):
        read_dataset(tmp_path, split="train")


def test_files_of_indices_stay_coco_cls(tmp_path: Path) -> None:
    place(tmp_path, "images/train-resized/a.jpg", "images/train-resized/b.jpg")
    write(tmp_path, {"labels/train/a.cls": "1\n", "labels/train/b.cls": "", "labels/train/notes.txt": "all seen"})
    write(tmp_path, {"classes.txt": "cat\ndog\n"})
    require_rows(tmp_path, "coco_cls", {"a.jpg": [0, 1], "b.jpg": [0, 0]})


# ---- Create ML ----

AT = {"x": 1, "y": 2, "width": 3, "height": 4}
CAT, DOG = ({"label": name, "coordinates": AT} for name in ("cat", "dog"))


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("annotations.json", [("filename", "annotations", ["cat"]), ("filename", "annotations", ["dog", "cat"])]),
        ("annotations.json", [("image", "annotations", [CAT, CAT]), ("image", "annotations", [DOG, CAT])]),
        ("mine.json", [("imagefilename", "annotation", [CAT]), ("imagefilename", "annotation", [CAT, DOG])]),
        ("train/_annotations.createml.json", [("image", "annotations", [CAT]), ("image", "annotations", [DOG, CAT])]),
        ("a.json", [("image", "annotations", [{"uniqueIdentifier": "x"} | CAT]), ("image", "annotations", [CAT, DOG])]),
    ],
)
def test_each_form_of_create_ml(tmp_path: Path, file: str, entries: list[tuple[str, str, list[object]]]) -> None:
    place(tmp_path, *((Path(file).parent / name).as_posix() for name in A_B_C))
    listed = [{key: name, labels: values} for name, (key, labels, values) in zip(A_B_C, entries, strict=False)]
    write(tmp_path, {file: json.dumps([*listed, {entries[0][0]: "c.jpg", entries[0][1]: []}], indent=1)})
    require_rows(tmp_path, "createml")


def test_tasks_of_label_studio_are_not_create_mls(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg")
    write(tmp_path, {"tasks.json": json.dumps([make_task("a.jpg", "cat"), make_task("a.jpg") | {"annotations": []}])})
    assert recognise_format(tmp_path) == "label_studio"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"image": "a.jpg", "annotations": ["cat"]}, {"image": "b.jpg"}], r"image 2 is \{'image': 'b\.jpg'\}, not"),
        ([{"image": "a.jpg", "annotations": ["cat", 3]}], r"image 1 is .*, not \{\"image\": \.\.\., \"annotations\""),
        ([{"image": "a.jpg", "filename": "b.jpg", "annotations": ["cat"]}], r"image 1 is"),
        ([{"image": "a.jpg", "annotations": []}], r"m\.json: no image has a label"),
        ([{"image": "z.jpg", "annotations": ["cat"]}], r"1 of 1 images do not exist"),
        (
            [{"image": "a.jpg", "annotations": ["cat"]}, {"image": "a.jpg", "annotations": []}],
            r"m\.json:1: 'a\.jpg' has other labels here than at .*m\.json:1",
        ),
    ],
)
def test_mistakes_in_create_ml(tmp_path: Path, entries: list[object], message: str) -> None:
    place(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path, {"m.json": json.dumps(entries)})
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, format="createml", split="train")


# ---- FiftyOne ----

BOXED = {name: {"label": name, "bounding_box": [0, 0, 0.5, 0.5]} for name in ("cat", "dog")}


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (["cat", "dog"], {"a": [0], "b": [0, 1], "c": None}),
        (["cat", "dog"], {"a": [{"label": 0, "confidence": 0.5}], "b": [{"label": 1}, {"label": 0}], "c": []}),
        (None, {"a": "cat", "b": ["dog", "cat"], "c": None}),
        (None, {"a": [{"label": "cat", "bounding_box": [0, 0, 1, 1]}] * 2, "b": [BOXED["dog"], BOXED["cat"]], "c": []}),
        (["cat", "dog"], {"/home/x/data/a.jpg": 0, "/home/x/data/b.jpg": [0, 1], "/home/x/data/c.jpg": None}),
    ],
)  # fmt: skip
def test_each_form_of_fiftyones_labels(tmp_path: Path, classes: object, labels: dict[str, object]) -> None:
    place(tmp_path, *(f"data/{name}" for name in A_B_C))
    write(tmp_path, {"labels.json": json.dumps({"classes": classes, "labels": labels})})
    require_rows(tmp_path, "fiftyone")


def test_what_fiftyone_leaves_open_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "validation"):
        place(tmp_path, *(f"{split}/data/{name}" for name in ("sub/a.x.jpg", "b.png", "c.jpg")))
        labels = {"sub/a.x": [1], "b": None}
        write(tmp_path, {f"{split}/labels.json": json.dumps({"classes": ["cat", "dog"], "labels": labels})})
    assert FORMATS["fiftyone"].list_splits(tmp_path) == ["train", "val"]
    table = read_dataset(tmp_path, split="val")
    assert (table.classes, as_rows(table)) == (("cat", "dog"), {"a.x.jpg": [0, 1], "b.png": [0, 0]})
    said = capsys.readouterr().err
    assert "labels.json: it does not name 1 of 3 images in" in said
    assert "labels.json: 1 of 2 images have no label (null), and are read as images of no class" in said
    place(tmp_path, "validation/data/b.jpg")
    with pytest.raises(InputError, match=r"'b' may be b\.jpg or b\.png in .*data: remove one"):
        read_dataset(tmp_path, split="val")


def make_sample(
    name: str, *labels: str, kind: str = "Classifications", tags: tuple[str, ...] = ()
) -> dict[str, object]:
    """A sample as FiftyOne 1.22 serialises it."""
    items = [{"_id": {"$oid": "5f"}, "_cls": kind.removesuffix("s"), "tags": [], "label": label} for label in labels]
    value = {"_cls": kind, kind.lower(): items} if kind.endswith("s") else items[0]
    return {"_id": {"$oid": "1"}, "filepath": f"data/{name}", "tags": [*tags], "metadata": None, "ground_truth": value}


@pytest.mark.parametrize("kind", ["Classifications", "Detections", "Polylines", "Keypoints"])
def test_samples_of_fiftyone(tmp_path: Path, kind: str) -> None:
    place(tmp_path, *(f"data/{name}" for name in A_B_C))
    samples = [make_sample("a.jpg", "cat", "cat", kind=kind), make_sample("b.jpg", "dog", "cat", kind=kind)]
    samples += [make_sample("c.jpg") | {"ground_truth": None, "weather": "sunny"}]
    write(tmp_path, {"samples.json": json.dumps({"samples": samples})})
    require_rows(tmp_path, "fiftyone")
    write(tmp_path, {"metadata.json": json.dumps({"default_classes": ["dog", "zebra", "cat"], "classes": {}})})
    rows = {"a.jpg": [0, 0, 1], "b.jpg": [1, 0, 1], "c.jpg": [0, 0, 0]}
    require_rows(tmp_path, "fiftyone", rows, ("dog", "zebra", "cat"))


def test_tags_of_samples_say_the_split(tmp_path: Path) -> None:
    place(tmp_path, *(f"data/{name}" for name in A_B_C))
    samples = [make_sample("a.jpg", "cat", kind="Classification", tags=("train", "seen"))]
    samples += [make_sample("b.jpg", "dog", kind="Classification", tags=("validation",))]
    write(tmp_path, {"samples.json": json.dumps({"samples": samples})})
    assert FORMATS["fiftyone"].list_splits(tmp_path) == ["train", "val"]
    table = read_dataset(tmp_path, split="val")
    assert (table.classes, as_rows(table)) == (("cat", "dog"), {"b.jpg": [0, 1]})
    samples += [make_sample("c.jpg", "dog", kind="Classification")]
    write(tmp_path, {"samples.json": json.dumps({"samples": samples})})
    with pytest.raises(InputError, match=r"1 sample\(s\), such as data/c\.jpg, have no tag that says their split"):
        read_dataset(tmp_path, split="val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": ["cat"], "labels": {"a": 1}}, r"json: 'a': the label 1 is no name, and no index of the 1"),
        ({"classes": None, "labels": {"a": 0}}, r"'a': the label 0 is no name, and no index of the 0 classes"),
        ({"classes": ["cat"], "labels": {"a": ["dog"]}}, r"'a'.*'dog' is no class"),
        ({"classes": ["cat"], "labels": {"a": True}}, r"the label True is no name"),
        ({"classes": ["cat", "cat"], "labels": {"a": 0}}, r"class 1: class 'cat' stands here a second time"),
        ({"classes": None, "labels": {"a": None}}, r"labels\.json: no image has a label"),
        ({"classes": ["cat"], "labels": {"z": 0}}, r"1 of 1 images do not exist"),
        ({"samples": [{"filepath": "data/a.jpg", "x": {"_cls": "Regression"}}]}, r"no sample has a field with labels"),
        (
            {"samples": [{"filepath": "data/a.jpg", "x": {"_cls": "Classification"}, "y": {"_cls": "Detections"}}]},
            r"which of the fields x, y holds the labels\? Export it alone, or name it ground_truth",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_fiftyones_files(tmp_path: Path, content: dict[str, object], message: str) -> None:
    place(tmp_path, "data/a.jpg")
    write(tmp_path, {"labels.json": json.dumps(content)})
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, format="fiftyone", split="train")


# ---- VGG Image Annotator ----

Attributes = dict[str, object]
CHECKBOX = {"type": "checkbox", "description": "", "options": {"cat": "", "dog": ""}, "default_options": {}}


def make_entries(images: dict[str, tuple[Attributes, list[Attributes]]], old: bool = False) -> dict[str, object]:
    """VIA's annotations: {image: (attributes of the file, of each region)}; version 1 wrote regions as an object."""
    entries = {}
    for name, (file, regions) in images.items():
        shapes = [{"shape_attributes": {"name": "rect"}, "region_attributes": attributes} for attributes in regions]
        found = {str(index): shape for index, shape in enumerate(shapes)} if old else shapes
        entries[f"{name}99"] = {"filename": name, "size": 99, "regions": found, "file_attributes": file}
    return entries


def make_project(images: dict[str, tuple[Attributes, list[Attributes]]], **attributes: Attributes) -> str:
    kinds = {"region": {}, "file": {}} | attributes
    settings = {"ui": {}, "core": {"default_filepath": "./photos/"}, "project": {"name": "x"}}
    project = {"_via_settings": settings, "_via_img_metadata": make_entries(images), "_via_attributes": kinds}
    return json.dumps(project | {"_via_data_format_version": "2.0.10", "_via_image_id_list": []})


def make_csv(images: dict[str, tuple[Attributes, list[Attributes]]], mark: str = "") -> str:
    """What pack_via_metadata("csv") in via.js writes: a row for each region, or one without."""
    names = ["filename", "file_size", "file_attributes", "region_count", "region_id", "region_shape_attributes"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    buffer.write(mark + ",".join([*names, "region_attributes\n"]))
    for name, (file, regions) in images.items():
        for index, region in enumerate(regions or [{}]):
            writer.writerow([name, 99, json.dumps(file), len(regions), index, "{}", json.dumps(region)])
    return buffer.getvalue()


TICKED = {
    "a.jpg": ({"kind": {"cat": True}}, []),
    "b.jpg": ({"kind": {"dog": True, "cat": True}}, []),
    "c.jpg": ({}, []),
}
CHOSEN = {"a.jpg": ({}, [{"kind": "cat"}, {"kind": "cat"}]), "b.jpg": ({}, [{"kind": "dog"}, {"kind": "cat"}]),
          "c.jpg": ({"kind": ""}, [])}  # fmt: skip
NUMBERED = {"a.jpg": ({}, [{"kind": "1"}]), "b.jpg": ({}, [{"kind": "2"}, {"kind": "1"}]), "c.jpg": ({}, [])}
NAMED = CHECKBOX | {"type": "radio", "options": {"1": "cat", "2": "dog"}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("via_project.json", make_project(TICKED, file={"kind": CHECKBOX})),
        ("via_project.json", make_project(CHOSEN, region={"kind": CHECKBOX | {"type": "dropdown"}})),
        ("via_project.json", make_project(CHOSEN, region={"kind": {"type": "text", "default_value": ""}})),
        ("via_project.json", make_project(NUMBERED, region={"kind": NAMED})),
        ("via_region_data.json", json.dumps(make_entries(CHOSEN, old=True))),
        ("via_export_json.json", json.dumps(make_entries(TICKED))),
        ("via_export_csv.csv", make_csv(CHOSEN)),
        ("via_export_csv.csv", make_csv(TICKED, mark="#")),
        ("train/via_region_data.json", json.dumps(make_entries(CHOSEN))),
    ],
)
def test_each_file_of_via(tmp_path: Path, name: str, text: str) -> None:
    place(tmp_path, *(f"photos/{image}" for image in A_B_C))
    write(tmp_path, {name: text})
    require_rows(tmp_path, "via")


def test_several_attributes_of_via(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path, *A_B_C)
    images = {"a.jpg": ({"kind": {"cat": True}, "note": "x"}, [{"size": "large"}]), "b.jpg": ({"note": "y"}, [])}
    write(tmp_path, {"x.json": json.dumps(make_entries(images))})
    require_rows(tmp_path, "via", {"a.jpg": [1], "b.jpg": [0]}, ("cat",))
    assert "x.json: labels are read from kind, not from note, size" in capsys.readouterr().err
    size = CHECKBOX | {"type": "radio", "options": {"large": "", "small": ""}}
    write(tmp_path, {"x.json": make_project(images, file={"kind": CHECKBOX}, region={"size": size})})
    require_rows(tmp_path, "via", {"a.jpg": [1, 0, 1, 0], "b.jpg": [0, 0, 0, 0]}, ("large", "small", "cat", "dog"))
    assert "x.json: the options of size, kind are all classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            {"a.jpg": ({"note": "x"}, [{"kind": "cat"}])},
            r"which of the attributes note, kind holds the labels\? Make it a dropdown, radio or checkbox in VIA",
        ),
        (
            {"a.jpg": ({"sky": {"grey": True}}, [{"fur": {"grey": True}}])},
            r"'grey' is an option of sky and of fur, and would be one class",
        ),
        ({"a.jpg": ({}, [])}, r"v\.json: no image has a label"),
        ({"z.jpg": ({"kind": "cat"}, [])}, r"1 of 1 images do not exist"),
    ],
)
def test_mistakes_in_via(tmp_path: Path, images: dict[str, tuple[Attributes, list[Attributes]]], message: str) -> None:
    place(tmp_path, "a.jpg")
    write(tmp_path, {"v.json": json.dumps(make_entries(images))})
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, split="train")


# ---- Datumaro ----


def make_datumaro(*labels: int, names: tuple[str, ...] = ("cat", "dog"), **item: object) -> str:
    annotations = [{"id": 0, "type": "label", "attributes": {}, "group": 0, "label_id": label} for label in labels]
    listed = [{"name": name, "parent": "", "attributes": []} for name in names]
    items = [{"id": "a", "annotations": annotations, "image": {"path": "a.jpg"}} | item]
    return json.dumps({"categories": {"label": {"labels": listed}}, "items": items}, separators=(",", ":"))


def test_cvats_default_subset_is_training_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path, "images/default/a.jpg", "images/val/a.jpg")
    write(tmp_path, {"annotations/default.json": make_datumaro(1, 1)})
    require_rows(tmp_path, "datumaro", {"a.jpg": [0, 1]})
    write(tmp_path, {"annotations/default.json": make_datumaro(0, image={"size": [1, 2]})})
    require_rows(tmp_path, "datumaro", {"a.jpg": [1, 0]})
    write(tmp_path, {"annotations/val.json": make_datumaro()})
    assert as_rows(read_dataset(tmp_path, split="val")) == {"a.jpg": [0, 0]}
    assert "annotations/default.json is not read: its name says no split, as that of val.json does" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (make_datumaro(2), r"default\.json: item 'a': label_id 2 is none of the 2 labels"),
        (make_datumaro(-1), r"item 'a': label_id -1 is none"),
        (make_datumaro(0, names=("cat", "cat")), r"label 1: class 'cat' stands here a second time"),
        (make_datumaro(0, image=None), r"default\.json: 1 of 1 items have no image, the first: 'a'"),
        (make_datumaro(names=()), r"categories\.label\.labels is empty"),
    ],
)
def test_mistakes_in_datumaro(tmp_path: Path, text: str, message: str) -> None:
    place(tmp_path, "images/default/a.jpg")
    write(tmp_path, {"annotations/default.json": text})
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, split="train")


# ---- CVAT's XML from other tools ----


def make_cvat(*images: tuple[str, tuple[str, ...]]) -> str:
    lines = [
        "<annotations><meta><task><labels><label><name>cat</name></label><label><name>dog</name></label></labels></task></meta>"
    ]
    for name, found in images:
        boxes = "".join(f'<box label="{label}" occluded="0"></box>' for label in found)
        lines.append(f'<image id="0" name="{name}">{boxes}</image>')
    return "\n".join(['<?xml version="1.0" encoding="utf-8"?>', *lines, "</annotations>"])


IMAGES = (("a.jpg", ("cat", "cat")), ("b.jpg", ("dog", "cat")), ("c.jpg", ()))


@pytest.mark.parametrize(("name", "folder"), [("labels.xml", "data"), ("train.xml", "images"), ("x.xml", ".")])
def test_cvats_xml_under_another_name(tmp_path: Path, name: str, folder: str) -> None:
    place(tmp_path, *(f"{folder}/{image}" for image in A_B_C))
    write(tmp_path, {name: make_cvat(*IMAGES), "notes.xml": "<annotation/>"})
    require_rows(tmp_path, "cvat")


def test_cvats_xml_of_each_split(tmp_path: Path) -> None:
    place(tmp_path, *(f"images/{image}" for image in A_B_C))
    write(tmp_path, {"train.xml": make_cvat(*IMAGES[:2]), "val.xml": make_cvat(IMAGES[2])})
    assert FORMATS["cvat"].list_splits(tmp_path) == ["train", "val"]
    assert as_rows(read_dataset(tmp_path, split="val")) == {"c.jpg": [0, 0]}
    assert as_rows(read_dataset(tmp_path, split="train")) == {"a.jpg": [1, 0], "b.jpg": [1, 1]}


# ---- files whose names say no split, beside others ----

ONE_CAT = {  # {format: (folder of its file, ending, text)}, of the image a.jpg
    "coco_json": ("", "json", coco(["a.jpg"], [[7]], {7: "cat"})),
    "createml": ("", "json", json.dumps([{"image": "a.jpg", "annotations": ["cat"]}])),
    "label_studio": ("", "json", json.dumps([make_task("a.jpg", "cat")])),
    "fiftyone": ("", "json", json.dumps({"classes": ["cat"], "labels": {"a": [0]}})),
    "via": ("", "csv", make_csv({"a.jpg": ({"kind": "cat"}, [])})),
    "datumaro": ("annotations/", "json", make_datumaro(0, names=("cat",))),
    "cvat": ("", "xml", make_cvat(("a.jpg", ("cat",))).replace("<label><name>dog</name></label>", "")),
}


@pytest.mark.parametrize("name", ONE_CAT)
def test_a_file_without_a_split_is_said_where_others_have_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder, ending, text = ONE_CAT[name]
    place(tmp_path, "data/a.jpg" if name == "fiftyone" else "a.jpg")
    write(tmp_path, {f"{folder}all.{ending}": text})
    require_rows(tmp_path, name, {"a.jpg": [1]}, ("cat",))
    assert "not read" not in capsys.readouterr().err
    write(tmp_path, {f"{folder}my_val.{ending}": text})
    assert FORMATS[name].list_splits(tmp_path) == ["val"]
    assert as_rows(read_dataset(tmp_path, split="val")) == {"a.jpg": [1]}
    said = f"{folder}all.{ending} is not read: its name says no split, as that of my_val.{ending} does"
    assert f"warning: {tmp_path}/{said}\n" in capsys.readouterr().err
    with pytest.raises(InputError, match=rf"has no split 'train' .*; it has val; .*/{said}: rename it if it is train$"):
        read_dataset(tmp_path, split="train")


def test_a_file_beside_one_that_says_the_split_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, text = ONE_CAT["createml"]
    place(tmp_path / "a", "train/a.jpg")
    write(tmp_path / "a", {"train/_annotations.createml.json": text, "old.json": text})
    require_rows(tmp_path / "a", "createml", {"a.jpg": [1]}, ("cat",))
    first = f"{tmp_path}/a/train/_annotations.createml.json"
    assert capsys.readouterr().err == f"warning: {tmp_path}/a/old.json is not read, since {first} is\n"
    _, _, text = ONE_CAT["cvat"]
    place(tmp_path / "b", "a.jpg")
    write(tmp_path / "b", {"annotations.xml": text, "train.xml": text})
    require_rows(tmp_path / "b", "cvat", {"a.jpg": [1]}, ("cat",))
    said = f"warning: {tmp_path}/b/train.xml is not read, since {tmp_path}/b/annotations.xml is\n"
    assert capsys.readouterr().err == said


# ---- a file for each image: Pascal VOC's XML, Labelme's JSON ----


def make_xml(*labels: str, difficult: str = "0") -> str:
    objects = "".join(f"<object><name>{label}</name><difficult>{difficult}</difficult></object>" for label in labels)
    return f"<annotation>\n  <folder></folder>{objects}</annotation>"


def make_labelme(*labels: str, **flags: bool) -> str:
    shapes = [{"label": label, "points": [], "group_id": None, "flags": {}} for label in labels]
    return json.dumps({"version": "5.5.0", "flags": flags, "shapes": shapes, "imagePath": "..\\x.jpg"}, indent=2)


@pytest.mark.parametrize(
    ("images", "annotations"),
    [("train", "train"), ("JPEGImages", "Annotations"), ("data", "labels"), (".", "."), ("images", "annotations"),
     ("train/images", "train/annotations")],
)  # fmt: skip
def test_a_file_for_each_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], images: str, annotations: str
) -> None:
    for name, ending, make in (("voc_xml", "xml", make_xml), ("labelme", "json", make_labelme)):
        root = tmp_path / name
        place(root, *(f"{images}/{image}" for image in (*A_B_C, "not yet.jpg")))
        texts = {"a": make("cat", "cat"), "b": make("dog", "cat"), "c": make()}
        write(root, {f"{annotations}/{stem}.{ending}": text for stem, text in texts.items()})
        require_rows(root, name)
        assert f"1 of 4 images have no .{ending} file, and are left out" in capsys.readouterr().err


def test_difficult_objects_and_classes_of_all_splits(tmp_path: Path) -> None:
    for split, text in (("train", make_xml("cat")), ("valid", make_xml("dog", difficult="1"))):
        place(tmp_path, f"{split}/a.jpg")
        write(tmp_path, {f"{split}/a.xml": text})
    assert FORMATS["voc_xml"].list_splits(tmp_path) == ["train", "val"]
    table = read_dataset(tmp_path, split="val")
    assert (table.classes, table.targets.tolist()) == (("cat", "dog"), [[0, -1]])
    place(tmp_path, "train/x/1.jpg", "train/y/1.jpg")
    write(tmp_path, {"train/1.xml": make_xml("cat")})
    with pytest.raises(InputError, match=r"train/1\.xml may be of x/1\.jpg or y/1\.jpg in .*train: remove one"):
        read_dataset(tmp_path, split="train")
    write(tmp_path, {"train/2.xml": make_xml("cat"), "train/x/1.xml": make_xml(), "train/y/1.xml": make_xml()})
    (tmp_path / "train" / "1.xml").unlink()
    with pytest.raises(InputError, match=r"train/2\.xml: there is no image '2' in .*train"):
        read_dataset(tmp_path, split="train")
    (tmp_path / "train" / "2.xml").unlink()
    assert read_dataset(tmp_path, split="train").targets.tolist() == [[1, 0], [0, 0], [0, 0]]


def test_flags_of_labelme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path, *A_B_C)
    flags = {"a": {"cat": True}, "b": {"cat": True, "dog": True}, "c": {}}
    every = {"__ignore__": False, "cat": False, "dog": False, "zebra": False}
    write(tmp_path, {f"{stem}.json": make_labelme(**(every | found)) for stem, found in flags.items()})
    rows = {name: [*row, 0] for name, row in A_B_C.items()}
    require_rows(tmp_path, "labelme", rows, ("cat", "dog", "zebra"))
    write(tmp_path, {"c.json": make_labelme("dog")})
    require_rows(tmp_path, "labelme", {"a.jpg": [0], "b.jpg": [0], "c.jpg": [1]}, ("dog",))
    assert "labels are read from shapes, not from flags" in capsys.readouterr().err
    write(tmp_path, {"c.json": '{"version": "5", "flags": {}, "shapes": [{}]}'})
    with pytest.raises(InputError, match=r"c\.json is no file of Labelme: KeyError 'label'"):
        read_dataset(tmp_path, split="train")
