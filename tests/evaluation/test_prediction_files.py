"""evaluation/prediction_files.py: rows survive a stop and stay those of their images; every file says what the
rows say.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import prediction_files
from evaluation import predictions as predictions_module
from evaluation.prediction_files import PREDICTION_FILES, RowFile, write_indices
from evaluation.predictions import Compared, Predictions
from utils import InputError

CLASSES = ("red", "green, or so", "blé")
ROW_BYTES = 8 + 4 * 3  # a stamp, three probabilities


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Ten image files in two sub-folders."""
    paths = [tmp_path / "set" / "ab"[i // 5] / f"{i % 5}.png" for i in range(10)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 30), (20 * i, 100, 200)).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def probabilities() -> np.ndarray:
    """(10, 3), with awkward ones."""
    values = np.random.default_rng(0).random((10, 3), dtype=np.float32)
    values[0] = 0, 1, 0.5
    values[1] = 1e-30, np.nextafter(np.float32(1), np.float32(0)), 0.1
    values[2] = 0.75, 0.9, 0.75
    return values


def open_rows(images: list[str], folder: Path, batch_size: int = 4) -> RowFile:
    return RowFile(folder / "out" / ".rows", images, 3, batch_size)


def fill(images: list[str], folder: Path, rows: np.ndarray) -> Path:
    with open_rows(images, folder) as file:
        for row in rows[file.num_done :]:
            file.append(row)
    return file.path


def test_rows_are_read_as_they_were_appended(images: list[str], probabilities: np.ndarray, tmp_path: Path) -> None:
    with open_rows(images, tmp_path) as rows:
        for number, row in enumerate(probabilities):
            assert rows.num_done == number
            rows.append(row)
        found = rows.read()
        assert isinstance(found.base, np.memmap), "of a million images they would not fit into memory"
        assert found.dtype == np.float32
        assert found.tobytes() == probabilities.tobytes()


@pytest.mark.parametrize(("kept_bytes", "num_done"), [(0, 0), (3 * 20 + 7, 0), (4 * 20, 4), (7 * 20 + 19, 4), (200, 8)])
def test_a_stopped_run_goes_on_after_its_last_whole_batch(
    images: list[str], probabilities: np.ndarray, tmp_path: Path, kept_bytes: int, num_done: int
) -> None:
    path = fill(images, tmp_path, probabilities)
    assert path.stat().st_size == 10 * ROW_BYTES
    os.truncate(path, kept_bytes)
    with open_rows(images, tmp_path) as rows:
        assert rows.num_done == num_done
        for row in probabilities[num_done:]:
            rows.append(row)
        assert rows.read().tobytes() == probabilities.tobytes()


@pytest.fixture
def one_row_fits(images: list[str]) -> Iterator[None]:  # which are written before
    """As after `ulimit -f`: files are no longer than a row and a half."""
    resource = pytest.importorskip("resource", reason="this system has no limits of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROW_BYTES * 3 // 2, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_rows", [3, 4])  # at the end, and at the end of a batch
@pytest.mark.usefixtures("one_row_fits")
def test_rows_that_do_not_fit_are_one_line(images: list[str], num_rows: int, tmp_path: Path) -> None:
    def write(reads: bool) -> None:
        with open_rows(images, tmp_path) as rows:
            for _ in range(num_rows):
                rows.append(np.zeros(3, np.float32))
            if reads:
                rows.read()

    for reads in (False, True):
        with pytest.raises(InputError, match=r"cannot write .*\.rows: File too large: .* \(what is done stays"):
            write(reads)


def test_novelty_is_kept_with_its_row(images: list[str], probabilities: np.ndarray, tmp_path: Path) -> None:
    for stop in (6, 10):  # stopped after the sixth image, of which the first four are a whole batch
        with RowFile(tmp_path / ".rows", images, 3, 4, num_nearest=2) as rows:
            assert rows.num_done == (0 if stop == 6 else 4)
            for number in range(rows.num_done, stop):
                rows.append(probabilities[number], number / 10, [number, 7])
            assert rows.read().tobytes() == probabilities[:stop].tobytes()
            assert rows.read("novelty").tolist() == pytest.approx([number / 10 for number in range(stop)])
            assert rows.read("nearest").tolist() == [[number, 7] for number in range(stop)]


def test_whole_batches_are_in_the_file_at_once(images: list[str], probabilities: np.ndarray, tmp_path: Path) -> None:
    with open_rows(images, tmp_path) as rows:
        for row in probabilities[:8]:
            rows.append(row)
        assert rows.path.stat().st_size == 8 * ROW_BYTES


def change_time(images: list[str]) -> list[str]:
    os.utime(images[6], (1, 1))
    return images


def change_size(images: list[str]) -> list[str]:
    stat = Path(images[6]).stat()
    with open(images[6], "ab") as file:
        file.write(b"x")
    os.utime(images[6], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return images


def remove_one(images: list[str]) -> list[str]:
    return images[:6] + images[7:]


def swap(images: list[str]) -> list[str]:
    return [*images[:6], images[7], images[6], *images[8:]]


@pytest.mark.parametrize("change", [change_time, change_size, remove_one, swap])
def test_rows_of_images_that_changed_are_computed_anew(
    images: list[str], probabilities: np.ndarray, tmp_path: Path, change: Callable[[list[str]], list[str]]
) -> None:
    fill(images, tmp_path, probabilities)
    with open_rows(change(images), tmp_path) as rows:
        assert rows.num_done == 4, "the batch of the seventh image is the first to do again"


def test_more_or_fewer_images_keep_the_batches_they_share(
    images: list[str], probabilities: np.ndarray, tmp_path: Path
) -> None:
    fill(images[:6], tmp_path, probabilities[:6])
    with open_rows(images, tmp_path) as rows:
        assert rows.num_done == 4, "the last batch had two images only"
        for row in probabilities[4:]:
            rows.append(row)
    with open_rows(images[:6], tmp_path) as rows:
        assert rows.num_done == 4
        assert rows.path.stat().st_size == 4 * ROW_BYTES


def test_many_rows_are_compared_in_parts(
    images: list[str], probabilities: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_files, "ROWS_AT_ONCE", 3)
    fill(images, tmp_path, probabilities)
    for changed, num_done in ((None, 8), (9, 8), (7, 4), (3, 0), (0, 0)):
        if changed is not None:
            os.utime(images[changed], (1, 1))
        with open_rows(images, tmp_path) as rows:
            assert rows.num_done == num_done
        fill(images, tmp_path, probabilities)


def test_an_image_that_is_gone_is_one_line(images: list[str], tmp_path: Path) -> None:
    Path(images[3]).unlink()
    with pytest.raises(InputError, match=r"cannot read image .*3\.png: No such file"):
        open_rows(images, tmp_path)


def _try_to_open(images: list[str], folder: Path, answer: multiprocessing.Queue[str]) -> None:
    try:
        open_rows(images, folder)
        answer.put("opened")
    except InputError as error:
        answer.put(str(error))


def test_two_processes_do_not_write_at_once(images: list[str], probabilities: np.ndarray, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # the child opens a file, and computes nothing
    answer = context.Queue()
    with open_rows(images, tmp_path) as rows:
        rows.append(probabilities[0])
        child = context.Process(target=_try_to_open, args=(images, tmp_path, answer))
        child.start()
        assert "another process is making these predictions" in answer.get(timeout=30)
        child.join(30)
    child = context.Process(target=_try_to_open, args=(images, tmp_path, answer))
    child.start()
    assert answer.get(timeout=30) == "opened"
    child.join(30)


# ---- what is written from them ----


def decide(probabilities: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(row >= 0.5).tolist() for row in probabilities]


@pytest.fixture
def predictions(images: list[str], probabilities: np.ndarray) -> Predictions:
    names = [path.split("/set/")[1].removesuffix(".png") for path in images]
    return Predictions(images, names, probabilities, CLASSES, decide)


def find_names(predictions: Predictions) -> dict[str, list[str]]:
    labels = decide(predictions.probabilities)
    return {name: [CLASSES[c] for c in row] for name, row in zip(predictions.names, labels, strict=True)}


def test_the_json_is_what_json_dumps_makes(predictions: Predictions, tmp_path: Path) -> None:
    write_indices(tmp_path / "p.json", predictions)
    expected = dict(zip(predictions.names, decide(predictions.probabilities), strict=True))
    assert (tmp_path / "p.json").read_text() == json.dumps(expected, indent=1)
    PREDICTION_FILES["names"].write(tmp_path / "names.json", predictions)
    assert (tmp_path / "names.json").read_text(encoding="utf-8") == json.dumps(
        find_names(predictions), indent=1, ensure_ascii=False
    )


def test_scores_are_of_predicted_classes_the_most_probable_first(predictions: Predictions, tmp_path: Path) -> None:
    PREDICTION_FILES["scores"].write(tmp_path / "s.json", predictions)
    scores = json.loads((tmp_path / "s.json").read_text())
    assert {name: sorted(row) for name, row in scores.items()} == {
        name: sorted(row) for name, row in find_names(predictions).items()
    }
    assert list(scores["a/2"].items()) == [("green, or so", 0.9), ("red", 0.75), ("blé", 0.75)]
    for row, found in zip(predictions.probabilities, scores.values(), strict=True):
        assert list(found.values()) == pytest.approx(sorted(row[row >= 0.5], reverse=True), rel=1e-5)


def test_records_of_compared_images_say_how_novel_they_are(
    predictions: Predictions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metrics.ENTRIES_AT_ONCE", 9)  # blocks of three images
    novelty, nearest = np.linspace(0, 1, 10, dtype=np.float32), np.arange(20).reshape(10, 2) % 3
    compared = Compared(novelty, nearest, ["a.jpg", "b.jpg", "blé.jpg"])
    PREDICTION_FILES["records"].write(tmp_path / "r.json", replace(predictions, compared=compared))
    PREDICTION_FILES["records"].write(tmp_path / "plain.json", predictions)
    records, plain = (json.loads((tmp_path / name).read_text()) for name in ("r.json", "plain.json"))
    for number, (record, other) in enumerate(zip(records, plain, strict=True)):
        more = {"novelty": pytest.approx(number / 9, abs=1e-6), "nearest": [compared.names[i] for i in nearest[number]]}
        assert record == other | more


def test_records_are_paddlexs(predictions: Predictions, images: list[str], tmp_path: Path) -> None:
    PREDICTION_FILES["records"].write(tmp_path / "r.json", predictions)
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    records = json.loads(text)
    assert text == json.dumps(records, indent=1, ensure_ascii=False)
    assert [record["input_path"] for record in records] == images
    assert records[2] == {
        "input_path": images[2],
        "class_ids": [1, 0, 2],
        "scores": [0.9, 0.75, 0.75],
        "label_names": ["green, or so", "red", "blé"],
    }
    assert [sorted(record["class_ids"]) for record in records] == decide(predictions.probabilities)


def test_the_probability_file_gives_the_same_numbers_again(
    predictions: Predictions, images: list[str], tmp_path: Path
) -> None:
    odd = [*images[:8], 'with "quotes", commas', os.fsdecode(b"no UTF-8 \xff")]
    PREDICTION_FILES["probabilities"].write(tmp_path / "p.csv", replace(predictions, paths=odd))
    with open(tmp_path / "p.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image_path", *CLASSES]
    assert [row[0] for row in rows] == odd
    numbers = np.array([[np.float32(value) for value in row[1:]] for row in rows])
    assert numbers.tobytes() == predictions.probabilities.tobytes()


def test_files_are_complete_or_absent(predictions: Predictions, tmp_path: Path) -> None:
    def break_off(probabilities: np.ndarray) -> list[list[int]]:
        raise InputError("stopped")

    broken = replace(predictions, decide=break_off)
    for kind, output in PREDICTION_FILES.items():
        folder = tmp_path / kind
        folder.mkdir()
        with pytest.raises(InputError, match="stopped"):
            output.write(folder / "file", broken)
        assert not list(folder.iterdir())
        output.write(folder / "file", predictions)
        assert [path.name for path in folder.iterdir()] == ["file"]


def test_predictions_are_read_block_by_block(predictions: Predictions, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_rows(probabilities: np.ndarray) -> Iterator[slice]:
        return (slice(start, start + 3) for start in range(0, len(probabilities), 3))

    whole = [(p.path, p.name, p.labels, p.probabilities.tolist()) for p in predictions]
    monkeypatch.setattr(predictions_module, "read_rows", read_rows)
    assert [(p.path, p.name, p.labels, p.probabilities.tolist()) for p in predictions] == whole
    assert [row[0] for row in whole] == predictions.paths


def test_pictures_keep_sub_folders_and_replace_earlier_ones(predictions: Predictions, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for _ in range(2):
        PREDICTION_FILES["pictures"].write(folder, predictions)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
        assert files == sorted(f"{name}.jpg" for name in predictions.names)
        (folder / "of an earlier run.jpg").touch()
    with Image.open(folder / "a" / "4.jpg") as picture:
        left = (picture.width - 44) // 2
        assert np.asarray(picture)[15, left + 22] == pytest.approx([80, 100, 200], abs=6)


def test_a_share_without_images_has_no_rows(tmp_path: Path) -> None:
    with RowFile(tmp_path / "rows", [], 3, 4) as rows:
        assert rows.read().shape == (0, 3)
