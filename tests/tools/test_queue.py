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
from PIL import Image

from dataset_readers import read_dataset, recognise_format
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
    assert "8 images; left out because they are labelled already: 2, copies of others: 1, damaged: 1" in printed.out
    assert "5.png" in printed.err


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


def test_tasks_that_nobody_has_labelled_are_no_data_set(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 0)
    queue_files.save_queue(make_queue(tmp_path, ["a.png"]), tmp_path)
    with pytest.raises(InputError):
        recognise_format(tmp_path)


@pytest.mark.parametrize(("max_labels", "number"), [(0, "multiple"), (1, "single"), (2, "multiple")])
def test_label_studio_offers_every_class(tmp_path: Path, max_labels: int, number: str) -> None:
    view = ET.fromstring(queue_files.make_labels(make_queue(tmp_path, ["a.png"], max_labels=max_labels)))
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
