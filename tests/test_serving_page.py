"""serving_page.html in a real browser, headless Chromium, driven over its DevTools protocol.

The stand-in model's probabilities are a picture's mean red, green and blue, as shares of 255.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from browsers import Browser, wait_until
from fastapi import FastAPI
from PIL import ImageColor
from test_serving import make_picture, make_service

from evaluation import palette
from server.application import Answer, Service, look_at, make_app

GREEN = (51, 204, 102)  # probabilities .2, .8, .4, of which the thresholds .1, .3, .6 make green and red


@pytest.fixture(scope="module")
def service() -> Service:
    return make_service()


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with serve(make_app(service, max_bytes=100_000)) as address:
        yield address


@contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(browser: Browser, address: str) -> Browser:
    browser.open(address)
    wait_until(lambda: "mean_colour" in browser.evaluate("document.querySelector('#about').textContent"))
    return browser


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (tmp_path / "green.png").write_bytes(make_picture(GREEN))
    return tmp_path / "green.png"


def read_labels(page: Browser) -> list[list[str]]:
    """The labels of each picture, from the first on the page on."""
    return page.evaluate(
        "[...document.querySelectorAll('article')]"
        ".map(picture => [...picture.querySelectorAll('.labels li')].map(label => label.textContent))"
    )


def test_a_dropped_picture_gets_its_labels_and_scores(page: Browser, picture: Path) -> None:
    page.drop(picture)
    wait_until(lambda: read_labels(page) == [["green", "red"]])
    rows = page.evaluate(
        "[...document.querySelectorAll('.scores tr')].map(row => [row.children[0].textContent,"
        " row.children[2].textContent, row.querySelector('.fill').style.width, row.className])"
    )
    assert [row[:2] for row in rows] == [["green", "0.800"], ["blue", "0.400"], ["red", "0.200"]]
    assert [float(row[2].rstrip("%")) for row in rows] == pytest.approx([80, 40, 20], abs=0.01)
    assert [row[3] for row in rows] == ["is-label", "", "is-label"]
    assert page.evaluate("document.querySelector('article img').naturalWidth") == 40
    assert page.evaluate("document.querySelector('#threshold-text').textContent") == "0.10 to 0.60, the model's"


def test_the_slider_changes_labels_without_the_server_and_by_keyboard(
    page: Browser, picture: Path, service: Service
) -> None:
    page.drop(picture)
    wait_until(lambda: read_labels(page) == [["green", "red"]])
    page.events.clear()
    page.evaluate("document.querySelector('#files').focus()")
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "threshold"
    page.press("ArrowRight", 5)  # from the middle threshold, .3, to .35
    assert page.evaluate("document.querySelector('#threshold-text').textContent") == "0.35 for all classes"
    assert read_labels(page) == [["green", "blue"]]
    page.press("End")
    assert read_labels(page) == [["no label"]]
    page.press("Home")
    assert read_labels(page) == [["green", "blue", "red"]]
    page.press("Tab")
    page.press("Enter")
    assert page.evaluate("document.querySelector('#threshold-text').textContent") == "0.10 to 0.60, the model's"
    assert read_labels(page) == [["green", "red"]]
    assert not [event for event in page.events if event["method"] == "Network.requestWillBeSent"]


def test_labels_on_the_page_keep_to_the_models_least_and_most(page: Browser, picture: Path) -> None:
    page.drop(picture)
    wait_until(lambda: read_labels(page) == [["green", "red"]])
    page.evaluate("threshold = 1; model.min_labels = 2; showThreshold()")
    assert read_labels(page) == [["green", "blue"]]
    page.evaluate("threshold = 0; model.min_labels = 0; model.max_labels = 1; showThreshold()")
    assert read_labels(page) == [["green"]]


def test_a_picture_that_is_unlike_the_training_photographs_says_so(
    page: Browser, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a novelty of .99 on, here a picture's red; nothing is said where it is not known."""

    def look(images: torch.Tensor) -> list[Answer]:
        answers = look_at(service.model, images)
        red = [float(answer.probabilities[0]) for answer in answers]
        return [Answer(answer.probabilities, value or None) for answer, value in zip(answers, red, strict=True)]

    monkeypatch.setattr(service.queue, "compute_batch", look)
    for name, colour in {"1.png": (255, 0, 0), "2.png": (250, 255, 0), "3.png": (0, 255, 255)}.items():
        (tmp_path / name).write_bytes(make_picture(colour))
        page.drop(tmp_path / name)
    wait_until(lambda: page.evaluate("document.querySelector('#status').textContent") == "all pictures are done")
    wait_until(lambda: len(read_labels(page)) == 3 and ["waiting …"] not in read_labels(page))
    notes = page.evaluate("[...document.querySelectorAll('article .unlike')].map(note => note.hidden)")
    assert notes == [True, True, False], "the last that was dropped is the first"
    text = page.evaluate("document.querySelector('article:last-child .unlike').innerText")
    assert text.startswith("Unlike the training photographs: farther from them than 99 % of these are from each other")


def test_several_pictures_keep_their_order_and_a_broken_one_says_why(page: Browser, tmp_path: Path) -> None:
    files = {"1.png": make_picture(GREEN), "2 <b>.jpg": b"no image", "3.png": make_picture((0, 0, 255))}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    page.drop(*(tmp_path / name for name in files))
    wait_until(lambda: page.evaluate("document.querySelector('#status').textContent") == "all pictures are done")
    assert page.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)") == list(files)
    assert read_labels(page) == [["green", "red"], [], ["blue"]]
    errors = page.evaluate("[...document.querySelectorAll('article .error')].map(e => [e.hidden, e.textContent])")
    assert [hidden for hidden, _ in errors] == [True, False, True]
    assert errors[1][1].startswith("cannot read image 2 <b>.jpg: it is text, not an image")
    page.evaluate("document.querySelector('article button').click()")
    assert read_labels(page) == [[], ["blue"]]
    page.evaluate("document.querySelector('#clear').click()")
    assert read_labels(page) == []


def test_pictures_that_the_model_leaves_to_a_person_say_so(
    page: Browser, tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.model, "abstention", {"share": 0.1, "cut": 0.4})
    for name, colour in (("1.png", GREEN), ("2.png", (255, 0, 0))):
        (tmp_path / name).write_bytes(make_picture(colour))
    page.drop(tmp_path / "1.png", tmp_path / "2.png")
    wait_until(lambda: read_labels(page) == [["green", "red"], ["red"]])
    doubts = page.evaluate("[...document.querySelectorAll('.doubt')].map(line => [line.hidden, line.textContent])")
    words = "The model is not sure: look for yourself."
    assert doubts == [[False, words], [True, words]]


MAPS = """
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [7, 5];
model.maps = true;
backend.map = async (file, index) => {
  if (index === 2) throw new Error("no map of blue");
  return new Promise((resolve) => canvas.toBlob(resolve));
};
pictures.forEach(show);
"""


def test_the_map_of_a_class_takes_the_place_of_the_picture_and_gives_it_back(page: Browser, picture: Path) -> None:
    page.drop(picture)
    wait_until(lambda: read_labels(page) == [["green", "red"]])
    assert page.evaluate("document.querySelectorAll('.scores button').length") == 0, "this server has no maps"
    page.evaluate(MAPS)

    def ask(label: int) -> None:
        page.evaluate(f"find('pictures').querySelector('[data-index=\"{label}\"]').focus()")
        page.evaluate("document.activeElement.click()")

    def see() -> list[Any]:
        """The picture's width, what is said of it, and the classes whose button is pressed."""
        return page.evaluate(
            "[document.querySelector('article img').naturalWidth, document.querySelector('article img').alt,"
            "[...document.querySelectorAll('.scores [aria-pressed=true]')].map(one => one.ariaLabel)]"
        )

    ask(1)
    wait_until(lambda: see() == [7, "What the model looked at for green", ["Where is green?"]])
    ask(0)
    wait_until(lambda: see() == [7, "What the model looked at for red", ["Where is red?"]])
    assert page.evaluate("document.activeElement.ariaLabel") == "Where is red?"
    ask(2)
    wait_until(lambda: page.evaluate("document.querySelector('article .error').textContent") == "no map of blue")
    assert see()[2] == ["Where is red?"]
    ask(0)
    wait_until(lambda: see() == [40, "", []])


def test_a_picture_that_is_too_large_says_so(page: Browser, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(make_picture() + b"x" * 3_000_000)
    page.drop(tmp_path / "large.png")
    wait_until(lambda: page.evaluate("document.querySelector('article .error').textContent"))
    assert page.evaluate("document.querySelector('article .error').textContent").startswith("the request is larger")


def test_a_picture_is_pasted(page: Browser) -> None:
    content = base64.b64encode(make_picture(GREEN)).decode()
    page.evaluate(
        f"fetch('data:image/png;base64,{content}').then(r => r.blob()).then(blob => {{"
        "const data = new DataTransfer(); data.items.add(new File([blob], 'image.png', {type: 'image/png'}));"
        "dispatchEvent(new ClipboardEvent('paste', {clipboardData: data})) })"
    )
    wait_until(lambda: read_labels(page) == [["green", "red"]])


def test_files_are_chosen(page: Browser, picture: Path) -> None:
    root = page.send("DOM.getDocument")["root"]["nodeId"]
    node = page.send("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
    page.send("DOM.setFileInputFiles", nodeId=node, files=[str(picture)])
    wait_until(lambda: read_labels(page) == [["green", "red"]])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_in_its_width(page: Browser, picture: Path, scheme: str) -> None:
    page.send("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=2, mobile=True)
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        page.drop(picture)
        wait_until(lambda: read_labels(page) == [["green", "red"]])
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        found = page.evaluate("getComputedStyle(document.body).backgroundColor")
        expected = {"light": palette.LIGHT, "dark": palette.DARK}[scheme]["page"]
        assert found == f"rgb{ImageColor.getrgb(expected)}"
    finally:
        page.send("Emulation.clearDeviceMetricsOverride")
        page.send("Emulation.setEmulatedMedia", features=[])


def test_the_page_asks_for_the_token(browser: Browser, picture: Path) -> None:
    with serve(make_app(make_service(), max_bytes=100_000, token="right")) as address:
        browser.open(address)
        wait_until(lambda: not browser.evaluate("document.querySelector('#access').hidden"))
        for token, message in (("wrong", "the server does not take this token"), ("right", "")):
            browser.evaluate(f"document.querySelector('#token').value = '{token}'")
            browser.evaluate("document.querySelector('#access').requestSubmit()")
            wait_until(lambda: browser.evaluate("document.querySelector('#failure').textContent") == message)  # noqa: B023
        wait_until(lambda: browser.evaluate("document.querySelector('#access').hidden"))
        browser.drop(picture)
        wait_until(lambda: read_labels(browser) == [["green", "red"]])


def test_page_and_docs_ask_no_other_server_and_raise_no_error(browser: Browser, address: str) -> None:
    browser.events.clear()
    browser.open(address)
    wait_until(lambda: "mean_colour" in browser.evaluate("document.querySelector('#about').textContent"))
    browser.open(address + "docs")
    wait_until(lambda: browser.evaluate("document.querySelectorAll('.opblock').length") == 4)
    sent = [event for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    urls = [event["params"]["request"]["url"] for event in sent]
    assert {address, address + "labels", address + "openapi.json"} <= {*urls}
    assert not [url for url in urls if not url.startswith((address, "data:"))]
    assert not [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]
