"""The page of the service in Chromium, if playwright and Chromium are installed."""

import json
import shutil
import socket
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import uvicorn

from detect.serve.application import build_application
from detect.serve.service import Limits, Service

sys.path.insert(0, str(Path(__file__).parent))
from fake_detector import FakeDetector

IMAGE = cv2.imencode(".png", np.full((60, 80, 3), 128, np.uint8))[1].tobytes()
FILE = {"name": "grey.png", "mimeType": "image/png", "buffer": IMAGE}
DROP = """bytes => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
  window.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}"""
PIXEL_AT = """([x, y]) => {
  const context = document.getElementById("picture").getContext("2d");
  return [...context.getImageData(x, y, 1, 1).data.slice(0, 3)];
}"""
NAMED = "() => [...document.querySelectorAll('input, button')].every(node => node.labels?.length || node.textContent)"
PASTE = """bytes => {
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
  window.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
}"""


def serve_in_thread(keys=(), **detector):
    """Return the address of a service, and a function that stops it."""
    service = Service(FakeDetector(**detector), {}, Limits())
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_application(service, keys), log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()

    def stop():
        server.should_exit = True
        thread.join(20)
        listener.close()

    return f"http://127.0.0.1:{listener.getsockname()[1]}", stop


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """Return a function that opens the page of a service; afterwards check for errors and for requests elsewhere."""
    stops, problems, requests, addresses = [], [], [], []
    page = browser.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request))

    def open(path="/", **options):
        address, stop = serve_in_thread(**options)
        stops.append(stop)
        addresses.append(address)
        page.goto(address + path)
        page.requests = requests
        return page

    yield open
    page.close()
    for stop in stops:
        stop()
    assert problems == []
    assert all(request.url.startswith((*addresses, "blob:", "data:")) for request in requests)


def rows(page) -> list[str]:
    return page.locator("#rows tr td:first-child").all_inner_texts()


def shown(page, text: str) -> None:
    page.locator("#status", has_text=text).wait_for(timeout=10_000)


def test_a_chosen_image_is_shown_with_its_detections(tab):
    page = tab()
    page.set_input_files("#file", FILE)
    shown(page, "grey.png: 80 × 60 pixels")
    assert rows(page) == ["cat"] and page.inner_text("#count") == "1 object"
    assert page.get_attribute("#picture", "aria-label") == "grey.png with 1 object marked"
    assert page.inner_text("#model") == "Boxes of 2 classes: cat, dog"
    coloured = page.evaluate(
        "() => { const c = document.getElementById('picture'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let n = 0;"
        " for (let i = 0; i < d.length; i += 4) n += d[i] === 0xe6 && d[i + 1] === 0x9f; return n }"
    )
    assert coloured > 1000  # the box of the first class


def test_score_and_classes_need_no_new_request(tab):
    page = tab()
    page.set_input_files("#file", FILE)
    shown(page, "grey.png")
    before = len(page.requests)
    page.fill("#score", "0.3")
    assert rows(page) == ["cat", "dog"] and page.inner_text("#score-value") == "0.30"
    page.get_by_label("cat").uncheck()
    assert rows(page) == ["dog"] and page.inner_text("#count") == "1 object"
    page.get_by_label("cat").check()
    page.fill("#score", "0.95")
    assert rows(page) == [] and page.inner_text("#count") == "0 objects"
    assert len(page.requests) == before


def test_images_are_dropped_pasted_and_taken(tab):
    page = tab()
    page.evaluate(DROP, list(IMAGE))
    shown(page, "dropped.png")
    page.evaluate(PASTE, list(IMAGE))
    shown(page, "pasted.png")
    page.click("#camera")
    page.click("#take")
    shown(page, "camera.png")
    assert page.locator("#camera-view").is_hidden()


def test_the_json_is_what_is_shown(tab):
    page = tab()
    page.set_input_files("#file", FILE)
    shown(page, "grey.png")
    page.fill("#score", "0.3")
    with page.expect_download() as download:
        page.click("#json")
    content = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "grey.json"
    assert [one["name"] for one in content["detections"]] == ["cat", "dog"] and content["width"] == 80
    with page.expect_download() as download:
        page.click("#png")
    assert cv2.imread(download.value.path()).shape == (750, 1000, 3)


def test_masks_are_drawn(tab):
    page = tab(predicts_masks=True)
    page.set_input_files("#file", FILE)
    shown(page, "grey.png")
    assert page.evaluate(PIXEL_AT, [250, 400]) == [round(128 + 0.45 * (value - 128)) for value in (0xE6, 0x9F, 0x00)]
    assert page.evaluate(PIXEL_AT, [800, 400]) == [128, 128, 128]


def test_errors_are_told_and_a_key_is_sent(tab):
    page = tab(keys=["secret"])
    page.set_input_files("#file", {**FILE, "buffer": b"text"})
    shown(page, "give a key")
    page.fill("#key", "secret")
    page.set_input_files("#file", {**FILE, "buffer": b"text"})
    shown(page, "not an image")
    assert page.get_attribute("#status", "class") == "bad"
    page.set_input_files("#file", FILE)
    shown(page, "grey.png")
    assert page.get_attribute("#status", "class") == ""


def test_the_keyboard_reaches_everything(tab):
    page = tab()
    page.set_input_files("#file", FILE)
    shown(page, "grey.png")
    page.locator("header a").focus()
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.type"))
    assert reached[:5] == ["file", "camera", "score", "checkbox", "checkbox"]
    page.locator("#score").focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#score-value") == "0.51"
    assert page.evaluate(NAMED)


def test_the_interface_is_shown(tab):
    page = tab("/docs")
    page.wait_for_selector("#types table")
    text = page.inner_text("main")
    assert "/predict" in text and "names of the classes to keep" in text and "CocoResult" in text
