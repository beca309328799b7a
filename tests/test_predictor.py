"""predictor.py: records in the order of the images, read ahead but never far; what makes labels of a model's output."""

from __future__ import annotations

import ast
import fnmatch
import io
import json
import os
import re
import shutil
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor
from torch import nn

import models_factory
import predictor
import utils
from dataset import augmentations
from dataset.drawing import BAND
from models import checkpoints, novelty
from predictor import BATCHES_AHEAD, Predictor, Record
from utils import InputError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    model = models_factory.make_model("resnet18", 3, image_size=32)
    values = {"model_name": "resnet18", "head": "linear_bn", "image_size": 32, "resize_rule": "squash"}
    classes = ["red", "green", "blue"]
    path = tmp_path / "model.pt"
    checkpoints.save(path, {"model_state": model.state_dict(), "classes": classes, "best_threshold": 0.52} | values)
    return path


@pytest.fixture
def images(shared_dataset: Path) -> list[Path]:
    return sorted((shared_dataset / "images" / "test-resized").iterdir())


def test_a_predictor_says_what_it_is(checkpoint: Path) -> None:
    checkpoints.save(checkpoint, checkpoints.load(checkpoint) | {"classes": ["red", "gr\x1bün", "blue"]})
    expected = rf"Predictor(resnet18, 3 classes: 'red', 'gr\x1bün', 'blue', {checkpoint})"
    assert repr(predictor.load(checkpoint, "cpu")) == expected


def test_a_record_of_any_name_is_written(tmp_path: Path) -> None:
    record = Record("caf\udce9.jpg", np.array([0.9], np.float32), [0], ["Löwe"], ("Löwe",))
    for ensure_ascii, name in ((False, "Löwe"), (True, r"L\u00f6we")):
        text = record.save_to_json(tmp_path / "a.json", ensure_ascii=ensure_ascii).read_text(encoding="utf-8")
        assert f'"{name}"' in text
        assert json.loads(text)["input_path"] == "caf\udce9.jpg"


def test_predictor_streams_lists_and_folders_alike(checkpoint: Path, images: list[Path]) -> None:
    model = predictor.load(checkpoint, "cpu")
    records = list(model.predict(images[0].parent, batch_size=7))
    assert [Path(record.path) for record in records] == images
    chosen = images[3:6]
    again = list(model.predict(chosen[::-1], batch_size=1))
    assert [Path(record.path) for record in again] == chosen[::-1]
    for record, other in zip(again, records[5:2:-1], strict=True):
        np.testing.assert_allclose(record.probabilities, other.probabilities, atol=1e-5)
        assert record.names == [("red", "green", "blue")[label] for label in record.labels]


def test_processes_give_what_threads_do(checkpoint: Path, images: list[Path]) -> None:
    model = predictor.load(checkpoint, "cpu")
    by_threads = list(model.predict(images, batch_size=5))
    by_processes = list(model.predict(images, batch_size=5, num_workers=1))
    assert [record.path for record in by_processes] == [record.path for record in by_threads]
    for record, other in zip(by_processes, by_threads, strict=True):
        np.testing.assert_array_equal(record.probabilities, other.probabilities)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_one_line_after_the_batches_before_it(
    checkpoint: Path, images: list[Path], tmp_path: Path, num_workers: int
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"broken")
    records = predictor.load(checkpoint, "cpu").predict([*images[:4], broken, *images[4:]], 4, num_workers)
    assert [Path(next(records).path) for _ in range(4)] == images[:4]
    with pytest.raises(InputError, match=rf"^cannot read image {broken}: [^\n]+$"):
        next(records)


def test_no_images_give_no_records(checkpoint: Path) -> None:
    assert list(predictor.load(checkpoint, "cpu").predict([])) == []


def test_items_read_out_of_order_come_in_order() -> None:
    second_is_read = threading.Event()

    def read(item: int) -> int:
        if item == 0:
            assert second_is_read.wait(60), "no other thread went on"
        if item == 1:
            second_is_read.set()
        return item

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batches = list(predictor.read_ahead(range(11), read, batch_size=4))
    finally:
        torch.set_num_threads(before)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_an_endless_generator_is_read_no_more_than_a_few_batches_ahead(checkpoint: Path) -> None:
    """Memory stays constant, too: no image outlives its record but those that were read ahead."""
    taken = 0
    generated: list[weakref.ref[NDArray[np.uint8]]] = []

    def generate() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            image = np.full((40, 50, 3), taken % 256, dtype=np.uint8)
            generated.append(weakref.ref(image))
            taken += 1
            yield image

    records = predictor.load(checkpoint, "cpu").predict(generate(), batch_size=3)
    for done in range(1, 40):
        record = next(records)
        assert record.path == ""
        batches_done = -(-done // 3)
        assert taken <= 3 * (batches_done + BATCHES_AHEAD)
        alive = sum(reference() is not None for reference in generated)
        assert alive <= 3 * (1 + BATCHES_AHEAD) + 2, "two more: a generator's own, a thread's last"
    records.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert taken <= 3 * (13 + BATCHES_AHEAD), "nor does reading go on when nobody takes more"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_files_pictures_and_arrays_are_the_same_image(checkpoint: Path, images: list[Path], num_workers: int) -> None:
    model = predictor.load(checkpoint, "cpu")
    expected = list(model.predict(images, batch_size=5))
    kinds: list[Callable[[Path], Any]] = [
        str,
        Image.open,
        lambda path: np.asarray(Image.open(path)),  # read-only memory
        lambda path: np.array(Image.open(path))[:, :, ::-1][:, :, ::-1],
        lambda path: np.array(Image.open(path))[:, :, ::-1].copy()[:, :, ::-1],  # a view that runs backwards
    ]
    for kind in kinds:
        found = list(model.predict((kind(path) for path in images), 5, num_workers))
        assert len(found) == len(expected)
        for record, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(record.probabilities, other.probabilities)
            assert record.path == (other.path if kind is str else "")


def test_one_file_picture_or_array_is_one_image(checkpoint: Path, images: list[Path]) -> None:
    model = predictor.load(checkpoint, "cpu")
    for image in (str(images[0]), images[0], Image.open(images[0]), np.asarray(Image.open(images[0]))):
        assert len(list(model.predict(image))) == 1


def test_pictures_in_memory_are_made_upright_rgb(checkpoint: Path) -> None:
    model = predictor.load(checkpoint, "cpu")
    drawn = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = io.BytesIO()
    Image.fromarray(drawn[::-1, ::-1]).save(turned, "png", exif=exif)
    assert torch.equal(model.prepare(Image.open(turned)), torch.from_numpy(drawn).permute(2, 0, 1))
    grey = Image.fromarray(drawn[:, :, 0])
    assert torch.equal(model.prepare(grey), torch.from_numpy(drawn[:, :, 0]).expand(3, -1, -1))


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((3, 32, 32), dtype=np.uint8), r"uint8 \(3, 32, 32\)"),
        (np.zeros((32, 32, 3), dtype=np.float32), r"float32 \(32, 32, 3\)"),
        (np.zeros((0, 5, 3), dtype=np.uint8), r"uint8 \(0, 5, 3\)"),
        (7, "int"),
    ],
)
def test_what_is_no_image_is_one_line(checkpoint: Path, image: Any, found: str) -> None:
    model = predictor.load(checkpoint, "cpu")
    with pytest.raises(
        InputError, match=rf"^an image is a file, its bytes, a PIL image or an array [^\n]*, not {found}$"
    ):
        list(model.predict([image]))


def test_a_damaged_picture_in_memory_is_one_line(checkpoint: Path, images: list[Path]) -> None:
    cut = Image.open(io.BytesIO(images[0].read_bytes()[:-300]))
    with pytest.raises(InputError, match=r"^cannot read a PIL image: [^\n]+$"):
        list(predictor.load(checkpoint, "cpu").predict([cut]))


def test_images_of_any_size_are_taken(checkpoint: Path) -> None:
    sizes = [(1, 1), (1, 500), (700, 3), (32, 32), (2000, 1500)]
    records = list(predictor.load(checkpoint, "cpu").predict(np.zeros((*size, 3), np.uint8) for size in sizes))
    assert len(records) == len(sizes)


def test_progress_has_a_total_only_where_it_is_known(
    checkpoint: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: list[int] = []
    init = utils.Progress.__init__
    monkeypatch.setattr(
        utils.Progress, "__init__", lambda self, title, total: (totals.append(total), init(self, title, total))[1]
    )
    model = predictor.load(checkpoint, "cpu")
    list(model.predict(images, title="predicting"))
    list(model.predict(iter(images), title="predicting"))
    assert totals == [len(images)]


# ---- which images ----


def test_a_file_a_folder_a_pattern_a_list_and_any_mix_are_predicted(
    checkpoint: Path, images: list[Path], tmp_path: Path
) -> None:
    model = predictor.load(checkpoint, "cpu")
    folder = images[0].parent
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in images[:3]))
    expected = list(map(str, images))
    for given, paths in (
        (images[0], expected[:1]),
        (folder, expected),
        (f"{folder}/*.jpg", expected),
        (tmp_path / "list.txt", expected[:3]),
        ([folder, images[1], f"{folder}/*0.jpg"], [*expected, expected[1], *fnmatch.filter(expected, "*0.jpg")]),
        ((path for path in (folder, images[1])), [*expected, expected[1]]),
    ):
        assert [record.path for record in model.predict(given)] == paths


def test_bytes_of_a_file_are_a_picture(checkpoint: Path, images: list[Path]) -> None:
    model = predictor.load(checkpoint, "cpu")
    content = images[0].read_bytes()
    (expected,) = model.predict(images[0])
    for given in (content, [content]):
        (record,) = model.predict(given)
        np.testing.assert_array_equal(record.probabilities, expected.probabilities)
        assert record.path == ""
    with pytest.raises(InputError, match=r"^cannot read image in memory \(3 bytes\): it is text, not an image[^\n]+$"):
        list(model.predict(b"abc"))


# ---- how an image compares with the training images ----


@pytest.fixture
def reference(checkpoint: Path, shared_dataset: Path) -> novelty.Reference:
    """Of twenty training images, beside the checkpoint."""
    paths = sorted((shared_dataset / "images" / "train-resized").iterdir())[:20]
    features = predictor.load(checkpoint, "cpu").measure_features([*map(str, paths)], batch_size=6)
    identity = novelty.identify(checkpoints.load(checkpoint))
    made = novelty.make_reference(features, [path.name for path in paths], identity)
    assert made is not None
    novelty.save_reference(checkpoint.parent / novelty.REFERENCE_FILE, made)
    return made


def compute_features(checkpoint: Path, images: list[Path]) -> NDArray[np.float32]:
    """The input of the head's linear layer, straight from the parts."""
    model = models_factory.restore_model(checkpoints.load(checkpoint), checkpoint).eval()
    transform = augmentations.make_eval_transform("squash", 32)
    with torch.no_grad():
        pictures = torch.stack([predictor.read_image(path, transform) for path in images])
        return model.backbone((pictures - model.mean) / model.std).mean(dim=(2, 3)).numpy()


def test_a_record_says_how_novel_its_image_is_and_which_training_images_are_nearest(
    checkpoint: Path, images: list[Path], reference: novelty.Reference
) -> None:
    model = predictor.load(checkpoint, "cpu")
    assert model.compares
    records = [*model.predict(images, batch_size=5)]
    features = compute_features(checkpoint, images)
    cosines = novelty.normalise(features) @ reference.features.T
    for record, row in zip(records, cosines, strict=True):
        assert [row[reference.names.index(name)] for name in record.nearest] == pytest.approx(
            np.sort(row)[::-1][:5].tolist(), abs=1e-4
        )
        lowest, highest = ((reference.distances < 1 - row.max() + off).mean() for off in (-1e-4, 1e-4))
        assert record.novelty is not None
        assert lowest <= record.novelty <= highest
    assert json.dumps(records[0].json).count("novelty") == 0, "PaddleX's form has none"


def test_novelty_takes_no_second_pass_and_changes_no_probability(
    checkpoint: Path, images: list[Path], reference: novelty.Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plain = predictor.load(checkpoint, "cpu"), predictor.load(checkpoint, "cpu")
    plain.reference = None
    passes: list[int] = []
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda layer, x: passes.append(layer.stride[0]) or forward(layer, x))
    expected = [record.probabilities for record in plain.predict(images)]
    count = len(passes)
    found = [*model.predict(images)]
    assert len(passes) == 2 * count > 0
    np.testing.assert_array_equal([record.probabilities for record in found], expected)
    assert {(record.novelty, record.nearest) for record in plain.predict(images)} == {(None, ())}


def test_flips_and_scales_compare_the_view_that_is_as_the_training_images_are(
    checkpoint: Path, images: list[Path], reference: novelty.Reference
) -> None:
    expected = [(record.novelty, record.nearest) for record in predictor.load(checkpoint, "cpu").predict(images)]
    many = predictor.load(checkpoint, "cpu", flip=True, scales=(1.5, 1.0))
    assert [(record.novelty, record.nearest) for record in many.predict(images)] == expected
    other = predictor.load(checkpoint, "cpu", scales=(1.5,))
    assert not other.compares
    assert {(record.novelty, record.nearest) for record in other.predict(images)} == {(None, ())}


def test_without_its_own_whole_reference_a_model_predicts_all_but_novelty(
    checkpoint: Path, images: list[Path], reference: novelty.Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint.parent / novelty.REFERENCE_FILE
    novelty.save_reference(path, reference._replace(identity="0" * 16))
    assert predictor.load(checkpoint, "cpu").reference is None
    assert capsys.readouterr().err == "", "another model's is left alone"
    expected = [record.probabilities.tolist() for record in predictor.load(checkpoint, "cpu").predict(images)]
    for content in (path.read_bytes()[:5000], b""):
        path.write_bytes(content)
        records = [*predictor.load(checkpoint, "cpu").predict(images)]
        assert [record.probabilities.tolist() for record in records] == expected
        assert {(record.novelty, record.nearest) for record in records} == {(None, ())}
        assert path.read_bytes() == content
    predictor.load(checkpoint, "cpu")
    damaged = rf"warning: cannot read {path}: it is damaged, or no file of this project [^\n]+; a test of "
    ending = "labelled images makes it again; without it, novelty is not known\n"
    # each once; both files may be damaged in the same way
    assert re.fullmatch(f"({damaged}{ending}){{1,2}}", capsys.readouterr().err)


# ---- what a record does ----


@pytest.fixture
def record(images: list[Path]) -> Record:
    return Record(
        path=str(images[0]),
        probabilities=np.array([0.25, 0.91234567, 0.75], dtype=np.float32),
        labels=[1, 2],
        names=["green", "blue"],
        classes=("red", "green", "blue"),
    )


RESULT = {"class_ids": [1, 2], "scores": [0.912346, 0.75], "label_names": ["green", "blue"]}


def test_scores_are_of_all_classes_by_name_the_most_probable_first(record: Record) -> None:
    assert list(record.scores.items()) == [("green", float(np.float32(0.91234567))), ("blue", 0.75), ("red", 0.25)]


def test_what_is_printed_is_the_result_on_one_line_or_as_json(
    record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    record.print()
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert ast.literal_eval(line) == record.json == {"res": {"input_path": record.path} | RESULT}
    record.print(json_format=True, indent=2)
    text = capsys.readouterr().out
    assert json.loads(text) == record.json
    assert text.startswith('{\n  "res": {\n')


def test_a_name_that_a_terminal_would_obey_is_printed_as_an_escape(
    record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = replace(record, classes=("red", "gr\u202een\x1b[2J", "bl\nü"))
    odd.print(json_format=True)
    odd.print()
    out = capsys.readouterr().out
    assert not {"\x1b", "\u202e"} & {*out}
    assert "ü" in out


def test_json_goes_to_a_file_or_into_a_folder(record: Record, tmp_path: Path) -> None:
    assert record.save_to_json(tmp_path / "new" / "res.json") == tmp_path / "new" / "res.json"
    path = record.save_to_json(f"{tmp_path}/output/")
    assert path == tmp_path / "output" / f"{Path(record.path).stem}_res.json"
    for file in (path, tmp_path / "new" / "res.json"):
        assert json.loads(file.read_text(encoding="utf-8")) == {"input_path": record.path} | RESULT


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.PNG", "PNG"), ("a.webp", "WEBP"), ("a.tif", "TIFF")])
def test_a_picture_goes_to_a_file_of_any_kind(record: Record, tmp_path: Path, name: str, kind: str) -> None:
    path = record.save_to_img(tmp_path / "new" / name)
    assert path == tmp_path / "new" / name
    with Image.open(path) as saved, Image.open(record.path) as photograph:
        assert saved.format == kind
        assert saved.height > photograph.height
        left = (saved.width - photograph.width) // 2
        inner = np.asarray(saved.convert("RGB"))[: photograph.height, left : left + photograph.width]
        assert np.abs(inner.astype(int) - np.asarray(photograph)).mean() < 6


@pytest.mark.parametrize(("name", "saved"), [("p.jpg", "p_res.jpg"), ("p.q.PNG", "p.q_res.PNG"), ("p", "p_res.png")])
def test_a_picture_in_a_folder_has_the_images_name_and_ending(
    record: Record, tmp_path: Path, name: str, saved: str
) -> None:
    shutil.copy(record.path, tmp_path / name)
    path = replace(record, path=str(tmp_path / name)).save_to_img(tmp_path / "out.v2")
    assert path == tmp_path / "out.v2" / saved
    assert path.stat().st_size > 0


def test_a_record_of_a_picture_in_memory_draws_it_and_asks_for_a_name(
    checkpoint: Path, images: list[Path], tmp_path: Path
) -> None:
    model = predictor.load(checkpoint, "cpu")
    kinds: list[Callable[[Path], Any]] = [Image.open, lambda path: np.asarray(Image.open(path)), Path.read_bytes]
    expected = [record.img["res"].tobytes() for record in model.predict(images[:3])]
    for kind in kinds:
        records = list(model.predict((kind(path) for path in images[:3]), batch_size=2))
        assert [record.img["res"].tobytes() for record in records] == expected
        assert records[0].json["res"]["input_path"] is None
        assert records[0].save_to_img(tmp_path / "a.jpg").is_file()
        with pytest.raises(InputError, match=r"came from memory and has no name: save it as \S+out/NAME\.png$"):
            records[0].save_to_img(tmp_path / "out")
        with pytest.raises(InputError, match=r"save it as \S+out/NAME\.json$"):
            records[0].save_to_json(tmp_path / "out")


def test_what_cannot_be_drawn_or_written_is_one_line(record: Record, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot read image \S+gone\.jpg: No such file or directory$"):
        replace(record, path=str(tmp_path / "gone.jpg")).save_to_img(tmp_path)
    with pytest.raises(InputError, match=r"^cannot write \S+a\.heic: a picture ends in \.jpg, [^\n]+$"):
        record.save_to_img(tmp_path / "a.heic")
    (tmp_path / "file").write_text("")
    for save in (record.save_to_img, record.save_to_json):
        with pytest.raises(InputError, match=r"^cannot write [^\n]+$"):
            save(tmp_path / "file" / "folder")


def test_a_notebook_shows_a_small_picture(record: Record, tmp_path: Path) -> None:
    Image.new("RGB", (3000, 2000), (250, 120, 10)).save(tmp_path / "large.png")
    large = replace(record, path=str(tmp_path / "large.png"))
    with Image.open(io.BytesIO(large._repr_png_())) as shown:
        assert (shown.format, shown.width) == ("PNG", predictor.NOTEBOOK_SIDE)
        assert shown.getpixel((5, 319)) == (250, 120, 10)
        assert shown.getpixel((5, 321)) == ImageColor.getrgb(BAND)
        assert 320 < shown.height < 400
    assert repr(record) == f"Record({record.path!r}, green 0.91, blue 0.75)"
    assert repr(replace(record, path="", labels=[])) == "Record('in memory', no label)"


# ---- what a prediction is ----


def save_as(checkpoint: Path, **values: Any) -> Predictor:
    checkpoints.save(checkpoint, checkpoints.load(checkpoint) | values)
    return predictor.load(checkpoint, "cpu", default_threshold=0.25)


def test_thresholds_are_the_models_one_a_class_or_one_for_all(checkpoint: Path) -> None:
    assert predictor.load(checkpoint, "cpu").thresholds.tolist() == [np.float32(0.52)] * 3
    assert save_as(checkpoint, best_threshold=None).thresholds.tolist() == [0.25] * 3
    model = save_as(checkpoint, best_threshold=0.5, thresholds=[0.2, 0.5, 0.75])
    assert (model.threshold, model.thresholds.tolist()) == (0.5, [np.float32(0.2), 0.5, 0.75])
    rows = np.array([[0.2, 0.4, 0.9], [0.1, 0.5, 0.7], [0.1, 0.1, 0.1]], dtype=np.float32)
    assert model.decide(rows) == [[0, 2], [1], []]


def test_limits_of_labels_are_the_models(checkpoint: Path) -> None:
    model = save_as(checkpoint, thresholds=[0.5] * 3, min_labels=1, max_labels=2)
    rows = np.array([[0.6, 0.7, 0.8], [0.1, 0.3, 0.2], [0.6, 0.1, 0.1]], dtype=np.float32)
    assert model.decide(rows) == [[1, 2], [1], [0]]


PLATT = {"scale": [2.0, 0.5, 1.5], "bias": [1.0, -1.0, 0.0]}


def test_calibration_changes_probabilities_and_no_label(checkpoint: Path, images: list[Path]) -> None:
    """probability = sigmoid(scale x logit + bias), in float64 here; thresholds are mapped by the same."""
    thresholds = [0.45, 0.5, 0.55]
    plain = save_as(checkpoint, thresholds=thresholds, calibration={"platt": PLATT})
    model = predictor.load(checkpoint, "cpu", calibration="platt")
    for record, other in zip(model.predict(images), plain.predict(images), strict=True):
        logits = np.log(other.probabilities.astype(np.float64)) - np.log1p(-other.probabilities.astype(np.float64))
        expected = 1 / (1 + np.exp(-(np.array(PLATT["scale"]) * logits + np.array(PLATT["bias"]))))
        np.testing.assert_allclose(record.probabilities, expected, atol=1e-5)
        assert record.labels == other.labels
    expected = 1 / (1 + np.exp(-(np.array(PLATT["scale"]) * np.log([9 / 11, 1, 11 / 9]) + np.array(PLATT["bias"]))))
    np.testing.assert_allclose(model.thresholds, expected, atol=1e-6)


@pytest.mark.parametrize("values", [{}, {"calibration": {"temperature": {"scale": [2.0], "bias": [0.0]}}}])
def test_a_calibration_that_the_model_lacks_is_one_line(checkpoint: Path, values: dict[str, Any]) -> None:
    save_as(checkpoint, **values)
    with pytest.raises(InputError, match=r"^the model has no calibration 'platt': set CALIBRATION to 'none', or fit"):
        predictor.load(checkpoint, "cpu", calibration="platt")


def test_loading_runs_no_code_of_a_checkpoint(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "it ran"), "w")

    torch.save({"format": "multilabel-checkpoint", "version": 1, "planted": Planted()}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="it holds Python objects that could run code"):
        predictor.load(tmp_path / "model.pt", "cpu")
    assert not (tmp_path / "it ran").exists()


# ---- views ----


def test_views_are_averaged_as_probabilities(checkpoint: Path, images: list[Path]) -> None:
    """Flip and scales: the mean of what the model says of each view by itself, recomputed one view at a time."""
    model = models_factory.restore_model(checkpoints.load(checkpoint), checkpoint).eval()
    found = list(predictor.load(checkpoint, "cpu", flip=True, scales=(1.0, 1.5)).predict(images, batch_size=5))
    for record, path in zip(found, images, strict=True):
        views = [
            predictor.read_image(str(path), augmentations.make_eval_transform("squash", size)) for size in (32, 48)
        ]
        with torch.no_grad():
            expected = torch.cat([model(view[None]).sigmoid() for image in views for view in (image, image.flip(2))])
        np.testing.assert_allclose(record.probabilities, expected.mean(dim=0).numpy(), atol=1e-5)


def test_a_gpu_that_is_missing_is_said_before_an_int8_file_is_made(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("it takes minutes")

    monkeypatch.setattr(predictor, "_open_checkpoint", refuse)
    with pytest.raises(InputError, match=r"^PICTURES_ON is gpu, and the device is cpu: "):
        predictor.load(checkpoint, "cpu", engine="openvino", int8_images=["a.jpg"], pictures_on="gpu")


@pytest.mark.parametrize("scales", [(), (1.0, 0.0)])
def test_scales_are_numbers_above_0(checkpoint: Path, scales: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="they must be one or more numbers above 0"):
        predictor.load(checkpoint, "cpu", scales=scales)


def test_a_batch_has_an_image(checkpoint: Path, images: list[Path]) -> None:
    with pytest.raises(InputError, match="batch_size is 0: it must be 1 or more"):
        list(predictor.load(checkpoint, "cpu").predict(images, batch_size=0))


def test_a_network_of_one_size_refuses_other_scales(tmp_path: Path) -> None:
    model = models_factory.make_model("levit_128s", 3, image_size=64)
    values = {"model_name": "levit_128s", "head": "linear_bn", "image_size": 64, "resize_rule": "squash"}
    values |= {"classes": ["red", "green", "blue"], "best_threshold": 0.5, "model_state": model.state_dict()}
    checkpoints.save(tmp_path / "vit.pt", values)
    with pytest.raises(InputError, match=r"levit_128s does not take images of 96 px: set TEST_SCALES to \(1.0,\)"):
        predictor.load(tmp_path / "vit.pt", "cpu", scales=(1.0, 1.5))


def test_a_softmax_models_probabilities_sum_to_one(checkpoint: Path, images: list[Path]) -> None:
    stored = checkpoints.load(checkpoint)
    checkpoints.save(checkpoint, stored | {"activation": "softmax"})
    model = models_factory.restore_model(stored, checkpoint).eval()
    for record in predictor.load(checkpoint, "cpu").predict(images[:4]):
        image = predictor.read_image(record.path, augmentations.make_eval_transform("squash", 32))
        with torch.no_grad():
            expected = model(image[None]).softmax(dim=1)[0].numpy()
        np.testing.assert_allclose(record.probabilities, expected, atol=1e-5)
        assert record.probabilities.sum() == pytest.approx(1, abs=1e-5)


# ---- models of unknown origin ----


class Program(torch.nn.Module):
    """Writes a file as soon as it runs."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        written = torch.from_file(self.path, True, 10, dtype=torch.float32).fill_(1.0)
        return images.float().mean(dim=(2, 3)) / 256 * written[0]


METADATA = {
    "model_name": "resnet18",
    "head": "linear_bn",
    "classes": ["red", "green", "blue"],
    "image_size": 32,
    "resize_rule": "squash",
    "output": "probabilities",
    "dynamic": ["batch"],
    "precision": "fp32",
}


def write_torchscript(path: Path, trace: Path, metadata: str) -> Path:
    with warnings.catch_warnings(action="ignore"):
        program = torch.jit.script(Program(str(trace)))
        torch.jit.save(program, str(path), _extra_files={"multilabel.json": metadata})
    return path


@pytest.mark.parametrize("name", ["best_model.pt", "model.pth", "model.onnx", "model", "torchscript.pt.pt"])
def test_a_program_is_not_run_unless_its_name_says_what_it_is(name: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = write_torchscript(tmp_path / name, trace, json.dumps(METADATA))
    with pytest.raises(InputError, match=r"is TorchScript, a program [^\n]* a name that ends in _torchscript\.pt$"):
        predictor.load(path, "cpu")
    assert not trace.exists()
    named = path.rename(tmp_path / "model_torchscript.pt")
    images = torch.full((2, 3, 32, 32), 64, dtype=torch.uint8)
    assert (predictor.load(named, "cpu").compute(images) == 0.25).all()
    assert trace.exists(), "it is a program indeed"


@pytest.mark.parametrize(
    "metadata",
    [
        "[" * 100_000,
        '{"classes": ' + "9" * 5000 + "}",
        "5",
        "null",
        json.dumps({**METADATA, "classes": "abc"}),
        json.dumps({**METADATA, "image_size": "32"}),
        json.dumps({**METADATA, "dynamic": None}),
        json.dumps({**METADATA, "thresholds": [0.5]}),
        json.dumps({**METADATA, "config": {"a": ["deep"] * 3, "TRAIN_BATCH_SIZE": "32"}}),
    ],
    ids=["deep", "digits", "number", "null", "classes", "size", "dynamic", "thresholds", "config"],
)
def test_odd_metadata_of_an_exported_file_is_one_line(metadata: str, tmp_path: Path) -> None:
    path = write_torchscript(tmp_path / "a_torchscript.pt", tmp_path / "trace", metadata)
    with pytest.raises(InputError, match=rf"^{path}(:| does not say) [^\n]+$"):
        predictor.load(path, "cpu")


def test_damaged_torchscript_is_found(tmp_path: Path) -> None:
    path = write_torchscript(tmp_path / "a_torchscript.pt", tmp_path / "trace", json.dumps(METADATA))
    content = bytearray(path.read_bytes())
    content[content.index(b"linear_bn")] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"^cannot open [^\n]* as TorchScript: it is damaged, [^\n]+ has changed since it was"
    ):
        predictor.load(path, "cpu")


def test_probabilities_that_are_none_are_refused_with_the_image(checkpoint: Path, images: list[Path]) -> None:
    content = checkpoints.load(checkpoint)
    content["model_state"]["head.linear.bias"][1] = float("nan")
    checkpoints.save(checkpoint, content)
    model = predictor.load(checkpoint, "cpu")
    message = rf"^the model {checkpoint} gives nan as a probability for {images[0]}, and for 3 of the batch's 3 other "
    with pytest.raises(InputError, match=message):
        list(model.predict(images, batch_size=4))
    with pytest.raises(InputError, match="for image 1 of a batch, and for 1 of the batch's 1 other images"):
        model.compute(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_another_number_of_outputs_than_classes_is_one_line(tmp_path: Path) -> None:
    metadata = json.dumps(METADATA | {"classes": ["a", "b"]})
    path = write_torchscript(tmp_path / "a_torchscript.pt", tmp_path / "trace", metadata)
    with pytest.raises(InputError, match=r"gives \(3,\) numbers for an image, and has 2 classes"):
        predictor.load(path, "cpu").compute(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_logits_that_are_called_probabilities_are_refused(checkpoint: Path) -> None:
    model = predictor.load(checkpoint, "cpu")
    model.activate = lambda logits: logits + 7
    with pytest.raises(InputError, match=r"gives [678][\d.]* as a probability"):
        model.compute(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_what_rounding_moves_beyond_0_and_1_is_0_and_1(checkpoint: Path) -> None:
    """int8 rounds; `metrics.as_scores`, after the whole test, would take none of it."""
    model = predictor.load(checkpoint, "cpu")
    model.activate = lambda logits: torch.tensor([[-0.009, 0.25, 1.009]]).expand(len(logits), -1)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for flip in (False, True):
        model.flip = flip
        for probabilities in (model.compute(images), model.look_in_views([images, images]).probabilities):
            assert probabilities.dtype == np.float32
            assert probabilities.tolist() == [[0, 0.25, 1]] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"classes": ["a", "b"]},
            r"do not fit resnet18 with head linear_bn: head\.linear\.weight is \(3, 512\) of fractions, expec",
        ),
        ({"model_name": "resnet50"}, r"do not fit resnet50 with head linear_bn: backbone\.[^\n]+"),
        (
            {"model_name": "timm/eva02_enormous_patch14_clip_224"},
            r"do not fit timm/eva02_enormous",
        ),
        (
            {"head": "per_label_mlp", "head_options": {"hidden": 10**9}},
            r"do not fit resnet18 with head per_label_mlp: he",
        ),
        (
            {"head": "kernel", "head_options": {"num_landmarks": 10**8, "num_axes": 512}},
            r"do not fit resnet18 with head kernel: head\.",
        ),
        ({"head": "per_label_mlp", "head_options": {"hidden": -5}}, r"there is no head per_label_mlp with options "),
        ({"head_options": {"evil": 1}}, r"there is no head linear_bn with options \{'evil': 1\}"),
    ],
    ids=["classes", "network", "20 GB", "8 TB", "200 GB of buffers", "negative", "unknown option"],
)
def test_a_checkpoint_that_describes_another_model_is_one_line(
    change: dict[str, Any], message: str, checkpoint: Path
) -> None:
    checkpoints.save(checkpoint, checkpoints.load(checkpoint) | change)
    with pytest.raises(InputError, match=message) as error_info:
        predictor.load(checkpoint, "cpu")
    assert "\n" not in str(error_info.value)


def test_tensors_that_are_missing_or_too_many_are_named(checkpoint: Path) -> None:
    content = checkpoints.load(checkpoint)
    weight = content["model_state"].pop("head.linear.weight")
    checkpoints.save(checkpoint, content)
    with pytest.raises(InputError, match=r"linear_bn: head\.linear\.weight is missing, as are 0 others$"):
        predictor.load(checkpoint, "cpu")
    content["model_state"]["head.linear.weight"] = weight.to(torch.int8)
    checkpoints.save(checkpoint, content)
    with pytest.raises(
        InputError, match=r"head\.linear\.weight is \(.+\) of whole numbers, expected \(.+\) of fractions$"
    ):
        predictor.load(checkpoint, "cpu")
    content["model_state"] |= {"head.linear.weight": weight, "evil": weight}
    checkpoints.save(checkpoint, content)
    with pytest.raises(InputError, match=r"linear_bn: 1 more than it has, such as 'evil'$"):
        predictor.load(checkpoint, "cpu")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path)])
def test_what_is_no_file_is_one_line(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "best_model.pt")
    with pytest.raises(InputError, match=r"^there is no model [^\n]*best_model\.pt: [^\n]+$"):
        predictor.load(tmp_path / "best_model.pt", "cpu")
