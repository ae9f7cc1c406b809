"""The HTTP interface: answers, refusals and bounds."""

import asyncio
import io
import json
import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools import mask as coco_mask

from detect.serve.application import PAGES, build_application
from detect.serve.service import Limits, Service

sys.path.insert(0, str(Path(__file__).parent))
from fake_detector import CLASSES, FakeDetector

MEBIBYTE = 2**20


def image(red: int = 100, height: int = 30, width: int = 40, format: str = "PNG", **options) -> bytes:
    """Return the file of an image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (red, 50, 50)).save(file, format, **options)
    return file.getvalue()


GOOD = image()


@pytest.fixture
def start():
    """Return a function that starts a service and returns a client of it; afterwards all are stopped."""
    clients = []

    def start(detector=None, keys=(), limits=None, **options) -> TestClient:
        limits = limits or Limits(bytes=MEBIBYTE, pixels=10_000)
        service = Service(detector or FakeDetector(), {}, limits, **options)
        client = TestClient(build_application(service, keys), raise_server_exceptions=False)
        clients.append(client)
        return client.__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(start) -> TestClient:
    return start()


def error_of(response) -> str:
    (text,) = response.json().values()
    assert response.json() == {"error": text}
    return text


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_detections_of_an_image(client):
    answer = client.post("/predict", content=GOOD)
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    box = {"box": [0, 0, 20, 30], "score": pytest.approx(0.9), "label": 0, "name": "cat"}
    assert answer.json() == {"height": 30, "width": 40, "detections": [box]}


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", ""])
def test_an_image_may_be_the_body(client, kind):
    assert client.post("/predict", content=GOOD, headers={"Content-Type": kind}).status_code == 200


@pytest.mark.parametrize("field", ["image", "file", "any name"])
def test_an_image_may_be_a_file_of_a_form(client, field):
    answer = client.post("/predict", files={field: ("some name.png", GOOD)}, data={"other": "text"})
    assert answer.status_code == 200 and len(answer.json()["detections"]) == 1


def test_score_and_classes_are_chosen(client):
    names = [
        [one["name"] for one in client.post(f"/predict?{query}", content=GOOD).json()["detections"]]
        for query in ("score=0.3", "score=0.95", "score=0.3&classes=dog", "score=0.3&classes=dog&classes=cat")
    ]
    assert names == [["cat", "dog"], [], ["dog"], ["cat", "dog"]]


def test_coco_results(client):
    answer = client.post("/predict?format=coco&image_id=12", content=GOOD).json()
    score = pytest.approx(0.9)
    assert answer == [{"image_id": 12, "category_id": 3, "bbox": [0, 0, 20, 30], "score": score}]


def test_a_picture_with_boxes(client):
    answer = client.post("/predict?format=jpeg", content=image(height=60, width=80))
    assert answer.headers["content-type"] == "image/jpeg"
    picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert picture.shape == (60, 80, 3) and np.ptp(picture[..., 0]) > 50


def test_masks_are_run_length_encoded(start):
    client = start(FakeDetector(predicts_masks=True))
    (one,) = client.post("/predict", content=GOOD).json()["detections"]
    mask = coco_mask.decode(one["segmentation"])
    assert mask.shape == (30, 40) and mask[5:25, 5:15].all() and not mask[:, 20:].any()
    (same,) = client.post("/predict?format=coco", content=GOOD).json()
    assert same["segmentation"] == one["segmentation"]


def test_the_orientation_in_exif_is_applied(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    answer = client.post("/predict", content=image(format="JPEG", exif=exif)).json()
    assert (answer["height"], answer["width"]) == (40, 30)


def test_answers_at_the_same_time_are_each_ones_own(start):
    client = start(max_batch=8, max_wait=0.01)

    def corner(red: int) -> float:
        answer = client.post("/predict?score=0.2", content=image(red, width=30 + red % 3))
        return answer.json()["detections"][1]["box"][0] * 256

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(corner, range(1, 120))) == list(range(1, 120))


def test_state_and_model(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    assert client.get("/model").json() == {
        "classes": list(CLASSES),
        "score": 0.5,
        "min_score": 0.1,
        "masks": False,
        "max_bytes": MEBIBYTE,
        "max_pixels": 10_000,
        "needs_key": False,
    }


def test_a_service_that_stops_is_not_ready(start):
    detector = FakeDetector()
    service = Service(detector, {}, Limits())
    application = build_application(service)
    with TestClient(application) as client:
        service.close()
        assert client.get("/ready").status_code == 503
        assert client.get("/ready").json() == {"status": "stopping"}


# ---- refusals --------------------------------------------------------------------------------------------------------

BOMB = cv2.imencode(".png", np.zeros((3000, 3000, 3), np.uint8))[1].tobytes()
BAD_BODIES = {
    "empty": (b"", 400, "the body is empty; send an image"),
    "garbage": (b"\x00\x01garbage" * 50, 422, "not an image"),
    "text": (b"https://example.com/cat.jpg", 422, "not an image"),
    "truncated": (GOOD[:-20], 422, "truncated"),
    "damaged": (image(format="JPEG")[:150] + bytes(50) + b"\xff\xd9", 422, "image"),
    "bomb": (BOMB, 422, "3000 × 3000 pixels, more than 10000; make it smaller"),
    "html": (b"<html><body>hello</body></html>", 422, "not an image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', 422, "not an image"),
    "large": (bytes(MEBIBYTE + 1), 413, "more than 1048576 bytes"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused_with_its_reason(client, name):
    content, status, text = BAD_BODIES[name]
    answer = client.post("/predict", content=content)
    assert answer.status_code == status and text in error_of(answer)
    assert client.post("/predict", content=GOOD).status_code == 200


@pytest.mark.parametrize(
    ("request_of", "status", "text"),
    [
        ({"json": {"url": "http://localhost/a.jpg"}}, 415, "the body is application/json; send an image file"),
        ({"files": {"image": b""}}, 400, "the body is empty"),
        ({"data": {"image": "text"}, "files": {"": ("", b"")}}, 400, ""),
        ({"files": {"image": GOOD, "other": GOOD}}, 400, "Too many files"),
        ({"content": b"--x\r\nbroken", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"--y\r\n\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, ""),
        ({"files": {"image": bytes(MEBIBYTE + 1)}}, 413, "more than 1048576 bytes"),
    ],
)
def test_a_bad_form_is_refused(client, request_of, status, text):
    answer = client.post("/predict", **request_of)
    assert answer.status_code == status and text in error_of(answer)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("score=2", "score: Input should be less than or equal to 1"),
        ("score=nan", "score: "),
        ("score=high", "score: Input should be a valid number"),
        ("score=0.01", "score: 0.01; give 0.1 or more"),
        ("classes=cats", "class 'cats': no such class; did you mean one of cat"),
        ("format=xml", "format: Input should be 'detect', 'coco' or 'jpeg'"),
        ("image_id=x", "image_id: "),
    ],
)
def test_a_bad_option_is_refused(client, query, text):
    answer = client.post(f"/predict?{query}", content=GOOD)
    assert answer.status_code == 422 and text in error_of(answer)


def test_a_body_of_unknown_length_is_read_up_to_the_limit(client):
    pieces = 0

    def endless():
        nonlocal pieces
        while pieces < 1000:
            pieces += 1
            yield bytes(MEBIBYTE // 4)

    # The client of the tests passes the whole body on; that a server stops reading is tested with a process.
    answer = client.post("/predict", content=endless())
    assert answer.status_code == 413 and "more than 1048576 bytes" in error_of(answer)


def test_good_images_beside_bad_ones_are_answered(start):
    client = start(max_batch=8, max_wait=0.02)
    bodies = [image(red) for red in range(1, 41)] + [content for content, _, _ in BAD_BODIES.values()] * 3
    black = cv2.imencode(".png", np.zeros((30, 40, 3), np.uint8))[1].tobytes()  # fails in the detector
    bodies += [black] * 3
    order = np.random.default_rng(0).permutation(len(bodies)).tolist()

    def post(index: int):
        return client.post("/predict?score=0.2", content=bodies[index])

    with ThreadPoolExecutor(16) as pool:
        answers = dict(zip(order, pool.map(post, order), strict=True))
    corners = [answers[index].json()["detections"][1]["box"][0] * 256 for index in range(40)]
    assert corners == list(range(1, 41))
    assert {answers[index].status_code for index in range(40, len(bodies) - 3)} == {400, 413, 422}
    for index in range(len(bodies) - 3, len(bodies)):
        assert answers[index].status_code == 500 and "internal error" in error_of(answers[index])


def test_unknown_addresses_and_methods_are_refused(client):
    assert error_of(client.get("/predict")) == "Method Not Allowed"
    assert error_of(client.get("/../../etc/passwd")) == "Not Found"


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_too_many_requests_are_refused_at_once(start):
    client = start(FakeDetector(seconds=0.2), limits=Limits(requests=2))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.post("/predict", content=GOOD), range(6)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503} and statuses.count(200) >= 2
    refused = answers[statuses.index(503)]
    assert refused.headers["retry-after"] == "1" and "too many requests" in error_of(refused)
    assert client.post("/predict", content=GOOD).status_code == 200


def test_a_slow_answer_is_given_up(start):
    client = start(FakeDetector(seconds=0.3), limits=Limits(seconds=0.1))
    answer = client.post("/predict", content=GOOD)
    assert answer.status_code == 504 and error_of(answer) == "not answered within 0.1 seconds"


def test_images_wait_for_memory(start):
    """Four images of 9,000 pixels, of which two fit into the budget at a time, are all answered."""
    client = start(FakeDetector(seconds=0.02), limits=Limits(pixels=9_000))
    body = image(height=90, width=100)
    with ThreadPoolExecutor(8) as pool:
        assert {
            answer.status_code for answer in pool.map(lambda _: client.post("/predict", content=body), range(8))
        } == {200}


def test_predictions_and_metrics_need_a_key(start):
    client = start(keys=["first", "ключ"])
    headers = [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic first"},
        {"Authorization": "Bearer first"},
    ]
    answers = [client.post("/predict", content=GOOD, headers=header) for header in headers]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 200]
    assert answers[0].headers["www-authenticate"] == "Bearer" and "Authorization: Bearer KEY" in error_of(answers[0])
    assert [client.get("/metrics", headers=header).status_code for header in headers] == [401, 401, 401, 200]
    assert client.get("/model").json()["needs_key"] and client.get("/ready").status_code == 200


# ---- logs, metrics, pages --------------------------------------------------------------------------------------------


def test_the_log_has_no_content(client, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("detect.serve"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="detect.serve"):
        answer = client.post("/predict?score=0.3", files={"image": ("secret name.png", GOOD)})
        client.get("/secret/path")
    texts = [record.getMessage() for record in caplog.records if record.name == "detect.serve"]  # not the client's
    lines = [json.loads(text) for text in texts]
    assert [(line["path"], line["status"]) for line in lines] == [("/predict", 200), ("unknown", 404)]
    assert lines[0]["id"] == answer.headers["x-request-id"] and lines[0]["ms"] >= 0
    assert "secret" not in "".join(texts) and "score" not in "".join(texts)


def test_metrics(client):
    for content in (GOOD, GOOD, b"garbage"):
        client.post("/predict", content=content)
    text = client.get("/metrics").text
    assert 'detect_requests_total{path="/predict",status="200"} 2.0' in text
    assert 'detect_requests_total{path="/predict",status="422"} 1.0' in text
    assert "detect_detections_total 2.0" in text and "detect_requests_in_progress 0.0" in text
    assert "detect_batch_size_count 3.0" in text  # with the one that warmed up


def test_the_interface_is_described(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/predict", "/health", "/ready", "/model", "/metrics"}
    predict = paths["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/octet-stream"}
    assert {one["name"] for one in predict["parameters"]} == {"score", "classes", "format", "image_id"}
    assert set(predict["responses"]) == {"200", "400", "401", "413", "415", "422", "503", "504"}
    assert predict["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")


@pytest.mark.parametrize("address", PAGES)
def test_pages_load_nothing_from_elsewhere(client, address):
    answer = client.get(address)
    assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//|import .*https?:|url\(", answer.text)


def test_all_pages_are_packaged():
    names = {file.name for file in (resources.files("detect.serve") / "web").iterdir()}
    assert names == set(PAGES.values())


def test_a_client_may_leave_in_the_middle_of_the_body():
    """A client that leaves in the middle of the body frees its place."""
    service = Service(FakeDetector(), {}, Limits(requests=1))
    application = build_application(service)
    messages = [{"type": "http.request", "body": b"abc", "more_body": True}, {"type": "http.disconnect"}]
    scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b""}
    scope |= {"headers": [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "scheme": "http", "root_path": ""}
    scope |= {"http_version": "1.1", "asgi": {"version": "3.0"}}

    async def receive():
        return messages.pop(0)

    async def send(message):
        pass

    with TestClient(application) as client:
        asyncio.run(application(scope, receive, send))
        assert client.post("/predict", content=GOOD).status_code == 200
