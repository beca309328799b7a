"""tools/suspects.py and `python dataset_tools.py suspects`: the list, the page's data, and the pictures."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SEED_SHIFT
from numpy.typing import NDArray
from PIL import Image

import config
import dataset_readers
import dataset_tools
import overrides
from dataset.label_corrections import Correction
from dataset.table import Table
from evaluation import saved_scores
from tools import suspects
from tools.confident_learning import Change
from trainer import from_config
from utils import InputError

Fails = Callable[[Callable[[list[str]], None], list[str]], str]
NAMES = ("<!--<script>.png", 'a "b", c\n.png', "=1+1.png", " blank.png", "\u202egnp.exe.png", "caf\u00e9 ü.png")


def make_labels(num_images: int = 40, num_classes: int = 3) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Probabilities of a good model, and labels; half of each class."""
    truth = np.stack([np.roll(np.arange(num_images) % 2, k) for k in range(num_classes)], axis=1).astype(np.int8)
    random = np.random.default_rng(0).random(truth.shape)
    return (0.05 + 0.1 * random + 0.8 * truth).astype(np.float32), truth


def flip(probabilities: NDArray[np.float32], targets: NDArray[np.int8], *places: tuple[int, int]) -> None:
    """Make these labels wrong; the model is surer of the truth than it is on average."""
    for place in places:
        probabilities[place] = 0.99 if targets[place] == 1 else 0.01
        targets[place] = 1 - targets[place]


def write_images(folder: Path, names: tuple[str, ...] = NAMES) -> list[str]:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (1000, 500), (40 * number, 90, 60)).save(folder / name)
    return [str(folder / name) for name in names]


def read_data(output: Path) -> dict:
    page = (output / "index.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


def test_hostile_names_stay_what_they_are_and_do_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_images(tmp_path / "set")
    classes = ("</script><img src=x>", "=cmd", "{{ 7 * 7 }}")
    probabilities, targets = make_labels()
    flip(probabilities, targets, *zip(range(6), [0, 1, 2, 0, 1, 2], strict=True))
    table = Table([*paths, *(f"{tmp_path}/{n}.png" for n in range(34))], targets, classes)
    found = suspects.judge_labels(table, probabilities, targets)
    suspects.save_suspects(found, tmp_path / "out", tmp_path / "set", 1000)

    data = read_data(tmp_path / "out")
    expected = ["<!--<script>.png", 'a "b", c\n.png', "=1+1.png", "./ blank.png", "\u202egnp.exe.png", "café ü.png"]
    assert {image["path"] for image in data["images"]} == {*expected}
    assert data["classes"] == list(classes)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2
    assert not re.search(r"https?:|<script src|<link(?! rel=\"icon\" href=\"data:)|@import|url\(", page)
    assert "\u202e" not in page
    assert "<img src=x" not in page
    for image in data["images"]:
        with Image.open(tmp_path / "out" / "pictures" / image["picture"]) as picture:
            assert (picture.format, picture.size) == ("JPEG", (640, 320))
    with (tmp_path / "out" / "suspects.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [list(suspects.COLUMNS)] * 6
    assert {row["path"] for row in rows} >= {"'=1+1.png", 'a "b", c\\n.png', "\\u202egnp.exe.png"}
    assert {row["class"] for row in rows} == {classes[0], "'=cmd", classes[2]}
    assert capsys.readouterr().err == ""


def test_lines_of_the_list(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "set", tuple(f"{number}.png" for number in range(40)))
    probabilities, targets = make_labels()
    flip(probabilities, targets, (7, 2), (7, 0), (3, 1))
    table = Table(paths, targets, ("a", "b", "c"))
    found = suspects.judge_labels(table, probabilities, targets)
    suspects.save_suspects(found, tmp_path / "out", tmp_path, num_shown=1)
    with (tmp_path / "out" / "suspects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["path"], row["class"]) for row in rows} == {("set/7.png", "a"), ("set/7.png", "c"), ("set/3.png", "b")}
    for row in rows:
        number, column = int(row["path"][4:-4]), "abc".index(row["class"])
        assert int(row["given"]) == targets[number, column] == 1 - int(row["suggested"])
        assert float(row["probability"]) == pytest.approx(probabilities[number, column], abs=1e-4)
    assert [row["rank"] for row in rows] in (["1", "1", "2"], ["1", "2", "2"])
    scores = [float(row["score"]) for row in rows]
    assert scores[0] == min(scores)
    assert len(read_data(tmp_path / "out")["images"]) == len([*(tmp_path / "out" / "pictures").iterdir()]) == 1
    assert "first 1 of 2 images" in (tmp_path / "out" / "index.html").read_text()
    assert suspects.describe(found) == [
        "40 images, 120 labels of 3 classes: 3 are suspect (2.5%), in 2 images",
        f"{int((targets[7, [0, 2]] == 1).sum() + targets[3, 1])} labels may be too many, "
        f"{int((targets[7, [0, 2]] == 0).sum() + 1 - targets[3, 1])} may be missing",
    ]


def test_pictures_are_made_once_and_those_of_no_suspect_go(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "set", ("a.png", "b.png", "c.png"))
    folder = tmp_path / "pictures"
    a, b = suspects.save_pictures(paths[:2], folder)
    (folder / "mine.jpg").write_bytes(b"of somebody")
    (folder / a).write_bytes(b"kept")
    assert suspects.save_pictures([paths[0], paths[2]], folder)[0] == a
    assert (folder / a).read_bytes() == b"kept"
    assert not (folder / b).exists()
    assert (folder / "mine.jpg").exists()
    time.sleep(0.01)
    Image.new("RGB", (10, 10)).save(paths[0])
    assert suspects.save_pictures(paths[:1], folder) != [a]
    Path(paths[0]).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"cannot read image .*a\.png"):
        suspects.save_pictures(paths[:1], folder)


def test_what_was_answered_is_not_asked_again_but_saved_again(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "set", ("a.png", "b.png"))
    probabilities, targets = make_labels()
    flip(probabilities, targets, (0, 0), (1, 1))
    table = Table([*paths, *(f"{tmp_path}/{n}.png" for n in range(38))], targets, ("a", "b", "c"))
    answered = [
        Correction(2, paths[0], "a", int(targets[0, 0]), int(targets[0, 0])),
        Correction(3, "/x.png", "b", 0, 1),
    ]
    found = suspects.judge_labels(table, probabilities, targets, answered=answered)
    assert [(question.row, question.changes[0].column) for question in found.questions] == [(1, 1)]
    suspects.save_suspects(found, tmp_path / "out", tmp_path, 10, answered)
    given = int(targets[0, 0])
    assert read_data(tmp_path / "out")["answered"] == [["set/a.png", "a", given, given], ["/x.png", "b", 0, 1]]


def test_unknown_labels_are_never_suspect() -> None:
    probabilities, targets = make_labels()
    table = Table([f"{n}.png" for n in range(40)], targets, ("a", "b", "c"))
    wrong = targets.copy()
    wrong[:8] = 1 - wrong[:8]
    found = suspects.judge_labels(Table(table.paths, wrong, table.classes), probabilities, wrong)
    assert len(found.questions) == 24
    some = wrong.copy()
    some[:4] = -1
    found = suspects.judge_labels(Table(table.paths, some, table.classes), probabilities, some)
    assert {question.row for question in found.questions} == {4, 5, 6, 7}
    only_present = suspects.judge_labels(
        Table(table.paths, wrong, table.classes), probabilities, wrong, absent_is_unknown=True
    )
    assert {question.changes[0].given for question in only_present.questions} == {1}
    assert len(only_present.questions) == (wrong[:8] == 1).sum()
    with pytest.raises(InputError, match="none of the labels of 40 images is known"):
        suspects.judge_labels(Table(table.paths, np.full_like(wrong, -1), table.classes), probabilities, wrong)


def test_rare_classes_are_left_out_and_said() -> None:
    probabilities, targets = make_labels(num_classes=4)
    targets[:, 3] = 0
    targets[0, 3] = 1
    flip(probabilities, targets, (5, 0))
    found = suspects.judge_labels(
        Table([f"{n}.png" for n in range(40)], targets, tuple("abcd")), probabilities, targets
    )
    assert [question.changes[0].column for question in found.questions] == [0]
    assert suspects.describe(found)[2] == "too rare to judge, present or absent: 1 class, such as d"


def test_one_label_an_image_is_one_question_with_two_changes(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "set", tuple(f"{number}.png" for number in range(30)))
    truth = np.arange(30) % 2
    probabilities = np.where(np.eye(2)[truth] == 1, 0.9, 0.1).astype(np.float32)
    targets = np.eye(2, dtype=np.int8)[np.where(np.arange(30) == 4, 1, truth)]
    found = suspects.judge_labels(Table(paths, targets, ("cat", "dog")), probabilities, targets, one_label=True)
    assert [question.changes for question in found.questions] == [(Change(1, 1, 0), Change(0, 0, 1))]
    suspects.save_suspects(found, tmp_path / "out", tmp_path / "set", 10)
    lines = (tmp_path / "out" / "suspects.csv").read_text().splitlines()
    assert lines[1:] == ["1,4.png,dog,1,0,0.1000,0.1000", "1,4.png,cat,0,1,0.9000,0.1000"]
    (image,) = read_data(tmp_path / "out")["images"]
    assert image["questions"] == [[[1, 1, 0, 0.1], [0, 0, 1, 0.9]]]


def test_names_that_are_no_utf8_are_left_out_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probabilities, targets = make_labels()
    flip(probabilities, targets, (0, 0))
    paths = [f"{tmp_path}/caf\udce9.png", *(f"{tmp_path}/{n}.png" for n in range(39))]
    found = suspects.judge_labels(Table(paths, targets, tuple("abc")), probabilities, targets)
    suspects.save_suspects(found, tmp_path / "out", tmp_path, 10)
    assert "1 image left out, whose names are no UTF-8" in capsys.readouterr().err
    assert read_data(tmp_path / "out")["images"] == []


# ---- the verb ----


def flip_labels(dataset: Path, names: list[str], label: int) -> None:
    """Take class `label` away from the training images of these names that have it, and give it to the others."""
    for name in names:
        file = dataset / "labels" / "train" / f"{name}.cls"
        file.write_text("".join(sorted({*file.read_text().splitlines(keepends=True)} ^ {f"{label}\n"})))


def save_scores(dataset: Path, file: Path, split: str = "train") -> Table:
    """What a good model would have predicted; the labels as they are, read before any of them is flipped."""
    table = dataset_readers.read_dataset(dataset, split=split)
    probabilities = np.where(table.targets == 1, 0.9, 0.1)
    saved_scores.save_scores(file, probabilities, table.targets, table.paths, table.classes)
    return table


def test_verb_lists_what_was_flipped(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = save_scores(dataset, tmp_path / "scores.npz")
    flip_labels(dataset, ["train003", "train011"], label=0)
    options = [f"--DATASET_FOLDER={dataset}", f"--LOCAL_ROOT={tmp_path}"]
    dataset_tools.main(["suspects", *options, f"--SUSPECTS_SCORES={tmp_path / 'scores.npz'}"])
    with (tmp_path / "suspects" / "suspects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["path"]).name for row in rows} == {"train003.jpg", "train011.jpg"}
    assert {row["class"] for row in rows} == {"red"}
    assert "2 are suspect" in capsys.readouterr().out

    lines = [f"{row['path']},{row['class']},{row['given']},{row['suggested']}" for row in rows]
    (tmp_path / "corrections.csv").write_text("\n".join(["path,class,given,corrected", *lines]) + "\n")
    corrected = [*options, f"--LABEL_CORRECTIONS={tmp_path / 'corrections.csv'}"]
    overrides.apply(corrected, config)
    table = from_config.read_split("train")
    assert table.fingerprint() == truth.fingerprint()
    assert "of the labels of train, 2 are corrected and 0 confirmed" in capsys.readouterr().out
    dataset_tools.main(["suspects", *corrected, f"--SUSPECTS_SCORES={tmp_path / 'scores.npz'}"])
    assert (tmp_path / "suspects" / "suspects.csv").read_text().splitlines()[1:] == []


def test_check_and_convert_respect_corrections(dataset: Path, tmp_path: Path, fails: Fails) -> None:
    before = dataset_readers.read_dataset(dataset, split="train")
    given = int(before.targets[3, 1])
    line = f"images/train-resized/train003.jpg,green,{given},{1 - given}"
    (tmp_path / "corrections.csv").write_text(f"path,class,given,corrected\n{line}\n")
    options = [f"--DATASET_FOLDER={dataset}", f"--LOCAL_ROOT={tmp_path}"]
    corrected = [*options, f"--LABEL_CORRECTIONS={tmp_path / 'corrections.csv'}"]
    dataset_tools.main(["convert", *corrected, "--TO", "csv"])
    expected = before.targets.copy()
    expected[3, 1] = 1 - given
    converted = dataset_readers.read_dataset(tmp_path / "converted", split="train")
    np.testing.assert_array_equal(converted.targets, expected)
    np.testing.assert_array_equal(dataset_readers.read_dataset(dataset, split="train").targets, before.targets)

    (tmp_path / "corrections.csv").write_text(
        f"path,class,given,corrected\n{line}\nimages/train-resized/train004.jpg,gren,0,1\n"
    )
    with pytest.raises(SystemExit):
        dataset_tools.main(["check", *corrected])
    result = json.loads((tmp_path / "check" / "check_dataset_result.json").read_text())
    (finding,) = (
        finding for finding in result["findings"] if finding["kind"] == "labels" and "train:" in finding["text"]
    )
    assert "corrections.csv:3: 'gren' is no class of the data set (did you mean green?)" in finding["text"]
    assert result["class_counts"]["green"]["train"] == (expected[:, 1] == 1).sum()
    assert fails(dataset_tools.main, ["convert", *corrected, "--TO", "mlcls"]).startswith(
        f"error: {tmp_path}/corrections.csv:3: 'gren'"
    )
    assert "which split changes" in fails(dataset_tools.main, ["split", *corrected])


def test_scores_of_a_split_are_found_by_their_names(dataset: Path, tmp_path: Path, fails: Fails) -> None:
    """Those of testing.py are named from the images' common folder on."""
    options = [
        "suspects",
        f"--DATASET_FOLDER={dataset}",
        f"--LOCAL_ROOT={tmp_path}",
        f"--SUSPECTS_SCORES={tmp_path / 's.npz'}",
    ]
    table = dataset_readers.read_dataset(dataset, split="test")
    probabilities = np.where(table.targets == 1, 0.9, 0.1)
    order = np.random.default_rng(SEED_SHIFT).permutation(len(table))
    columns = [2, 0, 1]
    saved_scores.save_scores(
        tmp_path / "s.npz",
        probabilities[order][:, columns],
        table.targets[order][:, columns],
        [Path(table.paths[row]).name for row in order],
        [table.classes[column] for column in columns],
    )
    dataset_tools.main(options)
    assert (tmp_path / "suspects" / "suspects.csv").read_text().count("\n") == 1  # the heading
    saved_scores.save_scores(tmp_path / "s.npz", probabilities, table.targets, ["x.jpg"] * len(table), table.classes)
    assert "none of its 12 images, such as x.jpg, is in" in fails(dataset_tools.main, options)
    names = [Path(path).name for path in table.paths]
    saved_scores.save_scores(tmp_path / "s.npz", probabilities, table.targets, names, ("red", "green", "gold"))
    assert "only of the data set: blue" in fails(dataset_tools.main, options)
    for folder, split in (("images", "-resized"), ("labels", "")):
        for file in (dataset / folder / f"test{split}").iterdir():
            file.rename(file.with_name(file.name.replace("test", "train")))
    names = [name.replace("test", "train") for name in names]
    saved_scores.save_scores(tmp_path / "s.npz", probabilities, table.targets, names, table.classes)
    assert "its 12 images may be those of train or test" in fails(dataset_tools.main, options)


def test_a_head_that_looks_at_positions_is_refused(dataset: Path, tmp_path: Path, fails: Fails) -> None:
    options = [f"--DATASET_FOLDER={dataset}", f"--LOCAL_ROOT={tmp_path}", "--HEAD=ml_decoder"]
    assert "HEAD ml_decoder looks at all positions of an image" in fails(dataset_tools.main, ["suspects", *options])
