"""The page of `dataset_tools.py suspects` in a real browser: key presses make better scores of wrong labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from browsers import Browser, wait_until
from conftest import COLOURS, write_dataset
from numpy.typing import NDArray
from PIL import Image, ImageColor
from test_suspects import flip_labels, save_scores

import config
import dataset_readers
import dataset_tools
import metrics
import overrides
from dataset.batches import as_float_targets
from dataset.stratified_split import divide_rows
from dataset.table import Table
from evaluation import palette
from trainer import from_config, head_search, training_data


def press(page: Browser, keys: str) -> None:
    for key in keys:
        for kind in ("keyDown", "keyUp"):
            page.send("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")


def read(page: Browser, name: str) -> str:
    return " ".join(page.evaluate(f"document.getElementById('{name}').innerText").split())


def save(page: Browser, folder: Path) -> list[dict[str, str]]:
    """Press D, and read the file that the browser saves."""
    folder.mkdir(exist_ok=True)
    page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    press(page, "d")
    file = folder / "corrections.csv"
    wait_until(lambda: file.is_file() and not [*folder.glob("*.crdownload")])
    with file.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def see_colours(table: Table) -> NDArray[np.float32]:
    """(N, 3) the share of pixels near each of the three colours of `write_dataset`."""
    rows = []
    for path in table.paths:
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
        rows.append([(np.abs(pixels - colour).max(axis=2) < 60).mean() for colour in COLOURS.values()])
    return np.array(rows, dtype=np.float32)


def measure_map(train: Table, test: Table) -> float:
    """The test mAP of logistic regressions on the colours, trained on the labels of `train`."""
    targets = as_float_targets(train.targets).numpy()
    head = head_search.find_head(see_colours(train), targets, divide_rows(train.targets, 5, seed=0))
    logits = see_colours(test) @ head.weight.numpy().T + head.bias.numpy()
    return float(np.nanmean(metrics.average_precision(1 / (1 + np.exp(-logits)), test.targets)))


def test_wrong_labels_become_better_scores_by_key_presses(browser: Browser, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", num_train=60, num_test=40)
    truth = save_scores(dataset, tmp_path / "scores.npz")
    flip_labels(dataset, [f"train{number:03}" for number in range(42)], label=0)  # most labels of red are wrong
    test = dataset_readers.read_dataset(dataset, split="test")
    noisy = dataset_readers.read_dataset(dataset, split="train")
    options = [f"--DATASET_FOLDER={dataset}", f"--LOCAL_ROOT={tmp_path}"]
    dataset_tools.main(["suspects", *options, f"--SUSPECTS_SCORES={tmp_path / 'scores.npz'}"])

    browser.events.clear()
    browser.open((tmp_path / "suspects" / "index.html").as_uri())
    for number in range(42):
        assert read(browser, "counts").startswith(f"{number + 1} of 42 · 0 confirmed · {number} flipped")
        row = truth.paths.index(str(dataset / read(browser, "path")))
        is_red = truth.targets[row, 0] == 1
        assert read(browser, "given") == ("no red" if is_red else "red")
        assert read(browser, "suggested") == ("red 90 %" if is_red else "no red red 10 %")
        wait_until(lambda: browser.evaluate("document.getElementById('picture').naturalWidth") == 48)
        press(browser, "f")
    assert read(browser, "done") == "All questions are answered: save corrections.csv."
    assert len(save(browser, tmp_path / "downloads")) == 42
    sent = [event for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    assert {event["params"]["request"]["url"].partition(":")[0] for event in sent} <= {"file", "blob", "data"}
    assert not [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]

    overrides.apply([*options, f"--LABEL_CORRECTIONS={tmp_path / 'downloads' / 'corrections.csv'}"], config)
    assert training_data.read_data().table.fingerprint() == truth.fingerprint() != noisy.fingerprint()
    mended = measure_map(from_config.read_split("train"), test)
    assert mended == measure_map(truth, test)
    assert measure_map(noisy, test) < mended - 0.05


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Browser:
    """Three questions about classes and images of hostile names."""
    dataset = write_dataset(tmp_path / "set")
    (dataset / "classes.txt").write_text('<img src=x onerror=fail()>\ngreen\nb, "l" u\n')
    for folder, ending in (("images/train-resized", "jpg"), ("labels/train", "cls")):
        (dataset / folder / f"train005.{ending}").rename(dataset / folder / f'a, "b"\u202ec\u00e9.{ending}')
    save_scores(dataset, tmp_path / "scores.npz")
    flip_labels(dataset, ["train003", 'a, "b"\u202ec\u00e9', "train020"], label=0)
    options = [
        f"--DATASET_FOLDER={dataset}",
        f"--LOCAL_ROOT={tmp_path}",
        f"--SUSPECTS_SCORES={tmp_path / 'scores.npz'}",
    ]
    dataset_tools.main(["suspects", *options])
    browser.open((tmp_path / "suspects" / "index.html").as_uri())
    browser.evaluate("localStorage.clear()")
    browser.open((tmp_path / "suspects" / "index.html").as_uri())
    return browser


def test_answers_can_be_changed_and_outlive_the_page(page: Browser, tmp_path: Path) -> None:
    first = read(page, "path")
    assert page.evaluate("document.getElementById('save').disabled && document.getElementById('back').disabled")
    press(page, "fbc")  # flip, back, confirm
    assert read(page, "counts") == "2 of 3 · 1 confirmed · 0 flipped · 0 skipped"
    press(page, "S")
    third = read(page, "path")
    page.open(page.evaluate("location.href"))
    assert read(page, "counts") == "3 of 3 · 1 confirmed · 0 flipped · 1 skipped"
    assert read(page, "path") == third
    page.evaluate("document.getElementById('flip').click()")
    assert not page.evaluate("document.getElementById('done').hidden")
    rows = save(page, tmp_path / "downloads")
    assert len(rows) == 2
    names = [row["path"].replace("\u202e", "\\u202e") for row in rows]
    assert names == [first, third]
    assert [row["given"] == row["corrected"] for row in rows] == [True, False]
    assert {row["class"] for row in rows} == {"<img src=x onerror=fail()>"}
    page.evaluate("dispatchEvent(new KeyboardEvent('keydown', {key: 'f', ctrlKey: true}))")
    page.send("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    page.send("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    assert read(page, "counts") == "2 of 3 · 1 confirmed · 1 flipped · 1 skipped"
    assert page.evaluate("document.getElementById('skip').ariaPressed") == "true"
    overrides.apply(
        [f"--DATASET_FOLDER={tmp_path / 'set'}", f"--LABEL_CORRECTIONS={tmp_path / 'downloads' / 'corrections.csv'}"],
        config,
    )
    from_config.read_split("train")  # names of any kind come back as they are


def test_an_open_question_is_found_from_the_end(page: Browser) -> None:
    press(page, "ff")
    page.send("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    assert read(page, "done").startswith("This was the last question.")
    page.evaluate("document.querySelector('#done button').click()")
    assert read(page, "counts").startswith("3 of 3")
    press(page, "c")
    assert read(page, "done").startswith("All questions are answered")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_question_and_answers_in_its_width(page: Browser, scheme: str) -> None:
    page.send("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("document.getElementById('flip').getBoundingClientRect().bottom") < 740
        found = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert found == f"rgb{ImageColor.getrgb({'light': palette.LIGHT, 'dark': palette.DARK}[scheme]['page'])}"
    finally:
        page.send("Emulation.clearDeviceMetricsOverride")
        page.send("Emulation.setEmulatedMedia", features=[])
