"""tools/queue.py and queue_files.py: which images may be queued, which are, and what is written of them."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
import torchvision
from conftest import make_small_run
from PIL import Image

import config
import dataset_tools
from dataset import decoding
from dataset.formats import FORMATS
from dataset_readers import read_dataset, recognise_format
from evaluation import label_studio
from overrides import list_constants
from tools import queue, queue_files
from utils import InputError

CLASSES = ("cat", 'dog "big"', "<tram> & bus")


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make_queue(folder: Path, names: list[str], **values: Any) -> queue.Queue:
    probabilities = np.array([[0.9, 0.2, 0.6], [0.1, 0.4, 0.3], [0.55, 0.7, 0.0]])[: len(names)]
    facts = {
        "images": queue.Unlabelled(folder, names),
        "classes": CLASSES,
        "probabilities": probabilities,
        "predicted": probabilities >= 0.5,
        "gains": np.array([[0.1, 0.02, 0.5], [0.0, 0.0, 0.0], [0.3, 0.2, 0.1]])[: len(names)],
        "positives": np.array([50, 9, 3]),
        "num_unlabelled": 7,
        "max_labels": 0,
        "model": "resnet18, 60 labelled images",
    }
    return queue.Queue(**{**facts, **values})


# ---- the images ----


def test_labelled_images_copies_and_damaged_ones_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, new = tmp_path / "data", tmp_path / "new"
    labelled = [draw(data / f"{number}.png", number) for number in range(3)]
    for number in range(3, 7):
        draw(new / "sub" / f"{number}.png", number)
    (new / "link.png").symlink_to(labelled[0])  # the same file
    shutil.copy(labelled[1], new / "renamed.png")  # the same bytes
    shutil.copy(new / "sub" / "4.png", new / "sub" / "4 copy.png")
    whole = (new / "sub" / "5.png").read_bytes()
    (new / "sub" / "5.png").write_bytes(whole[: len(whole) // 2])
    found = queue.find_unlabelled(new, [str(path) for path in labelled])
    assert found.names == ["sub/3.png", "sub/4 copy.png", "sub/6.png"]
    table = found.make_table(CLASSES)
    assert table.paths == [str(new / name) for name in found.names]
    assert (table.targets == -1).all()
    assert table.targets.shape == (3, 3)
    printed = capsys.readouterr()
    assert "7 images; left out because they are labelled already: 2, copies of others: 1, damaged: 1" in printed.out
    assert "5.png" in printed.err


def test_links_that_point_nowhere_and_files_that_cannot_be_read_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    for number in range(3):
        draw(new / f"{number}.png", number)
    shutil.copy(new / "1.png", new / "1 copy.png")  # so that the bytes of both are compared
    (new / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (new / "loop.png").symlink_to(new / "loop.png")

    def refuse(path: str) -> bytes:
        if path.endswith("1.png"):
            raise PermissionError(13, "Permission denied", path)
        return Path(path).read_bytes()

    for module in (queue, decoding):
        monkeypatch.setattr(module, "read_bytes", refuse)
    assert queue.find_unlabelled(new, []).names == ["0.png", "1 copy.png", "2.png"]
    printed = capsys.readouterr()
    assert "6 images; left out because they are labelled already: 0, copies of others: 0, damaged: 3" in printed.out
    assert f"warning: {new}: 2 links to a file that is not there: 'gone.png', 'loop.png'\n" in printed.err
    assert "1.png: Permission denied" in printed.err
    labelled = [str(new / name) for name in ("0.png", "1 copy.png", "2.png")]
    (new / "1.png").unlink()
    with pytest.raises(InputError, match="all 3 images are labelled already, or copies of those, and 2 links point no"):
        queue.find_unlabelled(new, labelled)


def test_the_same_size_does_not_make_a_copy(tmp_path: Path) -> None:
    sizes = set()
    for number in range(3):
        path = tmp_path / f"{number}.bmp"
        Image.fromarray(np.full((24, 32, 3), number, dtype=np.uint8)).save(path)
        sizes.add(path.stat().st_size)
    assert len(sizes) == 1
    assert queue.find_unlabelled(tmp_path, [str(tmp_path / "1.bmp")]).names == ["0.bmp", "2.bmp"]


def test_folders_without_anything_to_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"UNLABELLED_FOLDER is .*nowhere: there is no such folder"):
        queue.find_unlabelled(tmp_path / "nowhere", [])
    with pytest.raises(InputError, match="no images in"):
        queue.find_unlabelled(tmp_path, [])
    path = draw(tmp_path / "a.png", 0)
    with pytest.raises(InputError, match="all 1 images are labelled already, or copies of those: none is left"):
        queue.find_unlabelled(tmp_path, [str(path)])
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match="none of the 1 images can be read"):
        queue.find_unlabelled(tmp_path, [])


# ---- the choice ----


def draw_features(num_images: int = 60, num_labelled: int = 15) -> tuple[Any, Any, Any, Any]:
    """(probabilities, features, features of labelled images, their labels)"""
    rng = np.random.default_rng(0)
    rows = rng.normal(3, [1, 5, 0.2, 2, 1], (num_images + num_labelled, 5)).astype(np.float32)
    targets = (rng.random((num_labelled, 3)) < (0.5, 0.3, 0.2)).astype(np.int8)
    targets[:2] = [[1, 1, 1], [0, 0, 0]]
    return rng.random((num_images, 3)), rows[num_labelled:], rows[:num_labelled], targets


def choose_slowly(size: int, probabilities: Any, rows: Any, labelled_rows: Any, weights: Any) -> list[int]:
    """Facility location by its definition: the sum over all images of weight times the best cosine, or 0."""
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    there = [(row - mean) / std for row in labelled_rows]
    images = [(row - mean) / std for row in rows]

    def measure(chosen: list[int]) -> float:
        total = 0.0
        for image, weight in zip(images, weights, strict=True):
            others = there + [images[number] for number in chosen]
            cosines = [image @ other / np.linalg.norm(image) / np.linalg.norm(other) for other in others]
            total += weight * max(0.0, *cosines)
        return total

    chosen: list[int] = []
    for _ in range(size):
        left = [number for number in range(len(rows)) if number not in chosen]
        chosen.append(max(left, key=lambda number: measure([*chosen, number])))
    return chosen


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_the_queue_represents_what_is_in_doubt(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "COMPARED_ANEW", at_once)
    probabilities, rows, labelled_rows, targets = draw_features()
    doubts = queue.measure_doubts(probabilities, targets)
    for image, class_ in ((0, 0), (7, 1), (59, 2)):
        p, count = probabilities[image, class_], (targets[:, class_] == 1).sum()
        assert doubts[image, class_] == pytest.approx(-(p * np.log(p) + (1 - p) * np.log(1 - p)) / (count + 1))
    chosen, gains = queue.choose(8, probabilities, rows, labelled_rows, targets)
    assert chosen.tolist() == choose_slowly(8, probabilities, rows, labelled_rows, doubts.max(axis=1))
    np.testing.assert_array_equal(gains, doubts[chosen])


def test_all_are_queued_where_there_are_fewer() -> None:
    probabilities, rows, labelled_rows, targets = draw_features()
    chosen, gains = queue.choose(100, probabilities, rows, labelled_rows, targets)
    assert sorted(chosen) == [*range(60)]
    assert gains.shape == (60, 3)


def test_of_many_images_drawn_ones_are_represented(monkeypatch: pytest.MonkeyPatch) -> None:
    """All may be chosen, and all are represented nearly as well."""
    probabilities, rows, labelled_rows, targets = draw_features(400)
    weights = queue.measure_doubts(probabilities, targets).max(axis=1)
    directions = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def measure(chosen: Any) -> float:
        return float(weights @ (directions @ directions[chosen].T).max(axis=1).clip(0))

    exact, _ = queue.choose(40, probabilities, rows, labelled_rows, targets)
    monkeypatch.setattr(queue, "MOST_REPRESENTED", 200)
    monkeypatch.setattr(queue, "ROWS_AT_ONCE", 7)
    chosen, _ = queue.choose(40, probabilities, rows, labelled_rows, targets)
    again, _ = queue.choose(40, probabilities, rows, labelled_rows, targets)
    assert chosen.tolist() == again.tolist()
    assert len({*chosen.tolist()}) == 40
    assert 0.95 * measure(exact) < measure(chosen) != measure(exact)


def test_a_class_that_nothing_shows_has_no_say() -> None:
    probabilities, rows, labelled_rows, targets = draw_features()
    targets[:, 1] = 0
    targets[:, 2] = 1
    doubts = queue.measure_doubts(probabilities, targets)
    assert (doubts[:, 1:] == 0).all()
    assert (doubts[:, 0] > 0).all()
    chosen, gains = queue.choose(5, probabilities, rows, labelled_rows, np.zeros_like(targets))
    assert len({*chosen.tolist()}) == 5
    assert (gains == 0).all()


def test_what_the_screen_says(tmp_path: Path) -> None:
    lines = queue.describe(make_queue(tmp_path, ["a.png", "b.png", "c.png"], positives=np.array([50, 0, 3])))
    assert lines == [
        "3 of 7 images are queued, by resnet18, 60 labelled images",
        "rarest classes, labelled images + those expected in the queue: <tram> & bus 3 + 1, cat 50 + 2",
        'no labelled image shows dog "big": the queue cannot look for that; label some by hand',
    ]
    assert queue.describe(make_queue(tmp_path, ["a.png"], num_unlabelled=1))[0].endswith("; there are no more")


# ---- files ----


def test_csv_says_why_and_what_is_predicted(tmp_path: Path) -> None:
    rows = list(csv.reader(io.StringIO(queue_files.make_csv(make_queue(tmp_path, ["a.png", "b.png", "c.png"])))))
    assert rows == [
        ["rank", "path", "why", "predicted"],
        ["1", f"{tmp_path}/a.png", "<tram> & bus 0.60 (3 so far); cat 0.90 (50 so far)", "cat 0.90; <tram> & bus 0.60"],
        ["2", f"{tmp_path}/b.png", "unlike what is labelled", ""],
        [
            "3",
            f"{tmp_path}/c.png",
            'cat 0.55 (50 so far); dog "big" 0.70 (9 so far); <tram> & bus 0.00 (3 so far)',
            'dog "big" 0.70; cat 0.55',
        ],
    ]


@pytest.mark.parametrize("kind", ["JSON", "JSON-MIN"])
def test_tasks_come_back_from_label_studio_as_labels(tmp_path: Path, kind: str) -> None:
    """What a person accepts there is what the reader of its exports finds here."""
    folder = tmp_path / "new images"
    names = ["a+b 100%.png", "sub/ü.png", "c.png"]
    for number, name in enumerate(names):
        draw(folder / name, number)
    tasks = queue_files.make_tasks(make_queue(folder, names))
    for task, name in zip(tasks, names, strict=True):
        (place,) = parse_qs(urlsplit(task["data"]["image"]).query)["d"]  # as Label Studio reads it
        assert (tmp_path / place).samefile(folder / name)
        assert task["data"].keys() == {"image"}
    predictions = [task["predictions"][0] for task in tasks]
    assert [prediction["score"] for prediction in predictions] == pytest.approx(
        [0.9 * 0.8 * 0.6, 0.9 * 0.6 * 0.7, 0.385]
    )
    assert {prediction["model_version"] for prediction in predictions} == {"resnet18, 60 labelled images"}
    results = [result for prediction in predictions for result in prediction["result"]]
    assert len({result["id"] for result in results}) == len(results) == 2
    exported = []
    for number, (task, prediction) in enumerate(zip(tasks, predictions, strict=True), start=1):
        annotation = {"id": number, "was_cancelled": False, "ground_truth": False, "result": prediction["result"]}
        if kind == "JSON":
            exported.append({"id": number, "annotations": [annotation], **task})
        else:
            times = {"annotation_id": number, "annotator": 1, "created_at": "", "updated_at": "", "lead_time": 1.5}
            found = [("choice", result["value"]) for result in prediction["result"]]
            exported.append({"id": number, **task["data"], **dict(found), **times})
    (folder / "export.json").write_text(json.dumps(exported), encoding="utf-8")
    (folder / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    assert recognise_format(folder) == "label_studio"
    table = read_dataset(folder, split="train")
    assert table.classes == CLASSES
    labels = {
        Path(path).relative_to(folder).as_posix(): row.tolist()
        for path, row in zip(table.paths, table.targets, strict=True)
    }
    assert labels == {"a+b 100%.png": [1, 0, 1], "sub/ü.png": [0, 0, 0], "c.png": [1, 1, 0]}


def test_tasks_that_nobody_has_labelled_are_no_export(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 0)
    queue_files.save_queue(make_queue(tmp_path, ["a.png"]), tmp_path)
    assert FORMATS["label_studio"].list_splits(tmp_path) == []


@pytest.mark.parametrize(("max_labels", "number"), [(0, "multiple"), (1, "single"), (2, "multiple")])
def test_label_studio_offers_every_class(tmp_path: Path, max_labels: int, number: str) -> None:
    view = ET.fromstring(label_studio.make_interface(CLASSES, max_labels))
    (image,), (choices,) = view.findall("Image"), view.findall("Choices")
    assert [choice.get("value") for choice in choices] == [*CLASSES]
    assert choices.attrib | {"showInLine": ""} == {
        "name": "choice",
        "toName": "image",
        "choice": number,
        "showInLine": "",
    }
    assert image.attrib == {"name": "image", "value": "$image"}


def test_names_from_anywhere_are_only_shown(tmp_path: Path) -> None:
    name = "=1+1 <b>\x1b[2J\udce9.png"
    draw(tmp_path / name, 0)
    queue_files.save_queue(make_queue(tmp_path, [name]), tmp_path / "queue")
    page = (tmp_path / "queue" / "index.html").read_text(encoding="utf-8")
    assert "=1+1 &lt;b&gt;\\x1b[2J\\udce9.png" in page
    assert "<tram>" not in page
    (picture,) = re.findall(r'<img src="(pictures/[0-9a-f]{16}\.jpg)"', page)
    assert (tmp_path / "queue" / picture).is_file()
    assert "http" not in page
    text = (tmp_path / "queue" / "queue.csv").read_text(encoding="utf-8")
    assert "\x1b" not in text
    tasks = json.loads((tmp_path / "queue" / "label_studio_tasks.json").read_text(encoding="utf-8"))
    assert tasks[0]["data"]["image"].endswith("/%3D1%2B1%20%3Cb%3E%1B%5B2J%E9.png")


def test_the_page_of_a_long_queue_says_how_many_it_leaves_out(tmp_path: Path) -> None:
    page = queue_files.make_page(make_queue(tmp_path, ["a.png", "b.png", "c.png"]), ["0.jpg", "1.jpg"])
    assert page.count("<figure") == 2
    assert "and 1 more, in queue.csv" in page
    assert "3 images of 7 in" in page


# ---- the verb ----


def run_queue(dataset: Path, folder: Path, *more: str) -> list[dict[str, str]]:
    overrides = [argument for argument in make_small_run(dataset, folder) if "BACKBONE" not in argument]
    values = {"PRETRAINED_WEIGHTS": folder / "weights.pth", "UNLABELLED_FOLDER": folder / "new", "QUEUE_SIZE": 4}
    values |= {"UNFREEZE_BACKBONE_EPOCH": 0}
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), folder / "weights.pth")
    known = {constant.name for script in (config, dataset_tools) for constant in list_constants(script)}
    arguments = [*overrides, *(f"--{name}={value}" for name, value in values.items()), *more]
    dataset_tools.main(["queue", *(text for text in arguments if text[2:].partition("=")[0] in known)])
    with open(folder / "queue" / "queue.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def new_images(dataset: Path, tmp_path: Path) -> Path:
    """Six images to label, one that is a test image, and one that is a copy of a training image."""
    folder = tmp_path / "new"
    for number in range(6):
        draw(folder / f"{number}.png", number)
    test, train = (sorted((dataset / "images" / f"{split}-resized").iterdir())[0] for split in ("test", "train"))
    (folder / "test.jpg").symlink_to(test)
    shutil.copy(train, folder / "renamed.jpg")
    return folder


@pytest.mark.usefixtures("one_thread")
def test_queue_of_a_folder(new_images: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_queue(dataset, tmp_path)
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert {row["path"] for row in rows} < {str(path) for path in new_images.glob("*.png")}
    tasks = json.loads((tmp_path / "queue" / "label_studio_tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["image"].rpartition("/")[2] for task in tasks] == [Path(row["path"]).name for row in rows]
    printed = capsys.readouterr().out
    assert "8 images; left out because they are labelled already: 2, copies of others: 0, damaged: 0" in printed
    assert "4 of 6 images are queued, by mobilenet_v2, 40 labelled images" in printed
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={tmp_path}" in printed
    labels = {row["path"]: row["predicted"].split("; ") for row in run_queue(dataset, tmp_path, "--QUEUE_SIZE=9")}
    assert len(labels) == 6
    assert {row["path"]: row["predicted"].split("; ") for row in rows}.items() <= labels.items()


@pytest.mark.usefixtures("one_thread", "new_images")
def test_the_next_queue_knows_what_was_labelled(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_queue(dataset, tmp_path)
    tasks = json.loads((tmp_path / "queue" / "label_studio_tasks.json").read_text(encoding="utf-8"))
    chosen = {"type": "choices", "from_name": "choice", "value": {"choices": ["red"]}}
    exported = [{"id": 1, "annotations": [{"id": 1, "result": [chosen]}], **task} for task in tasks]
    (tmp_path / "new" / "export.json").write_text(json.dumps(exported), encoding="utf-8")
    shutil.copy(tmp_path / "queue" / "classes.txt", tmp_path / "new")
    capsys.readouterr()
    second = run_queue(dataset, tmp_path, f"--EXTRA_DATASET_FOLDERS={tmp_path / 'new'}")
    assert sorted(row["path"] for row in (*first, *second)) == sorted(map(str, (tmp_path / "new").glob("*.png")))
    printed = capsys.readouterr().out
    assert "8 images; left out because they are labelled already: 6" in printed
    assert "2 of 2 images are queued, by mobilenet_v2, 44 labelled images; there are no more" in printed


@pytest.mark.usefixtures("one_thread", "new_images")
def test_queue_with_one_label_an_image(dataset: Path, tmp_path: Path) -> None:
    for file in (dataset / "labels").glob("*/*.cls"):
        file.write_text(f"{int(file.stem[-3:]) % 2}\n")
    rows = run_queue(dataset, tmp_path, "--LABELS_PER_IMAGE=one", "--QUEUE_SIZE=6")
    assert len(rows) == 6
    assert all(re.fullmatch(r"(red|green) [01]\.\d\d", row["predicted"]) for row in rows)
    assert "blue" not in "".join(row["why"] for row in rows)  # no image shows it
    assert 'choice="single"' in (tmp_path / "queue" / "label_studio_config.xml").read_text()


def test_queue_says_what_is_wrong(dataset: Path, tmp_path: Path, fails: Any) -> None:
    arguments = ["queue", f"--LOCAL_ROOT={tmp_path}", f"--DATASET_FOLDER={dataset}"]
    assert "UNLABELLED_FOLDER is None: set it to the folder" in fails(dataset_tools.main, arguments)
    arguments.append(f"--UNLABELLED_FOLDER={dataset / 'images'}")
    assert "all 52 images are labelled already" in fails(dataset_tools.main, arguments)
    assert "QUEUE_SIZE is 0: 1 or more" in fails(dataset_tools.main, [*arguments, "--QUEUE_SIZE=0"])
