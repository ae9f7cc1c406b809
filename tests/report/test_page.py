"""The page as text and, if playwright and Chromium are installed, in the browser."""

import base64
import hashlib
import json
import re
import shutil
from collections import Counter
from itertools import product

import pytest

from detect.report.page import COMPARISON, REPORT, _read, render_comparison, render_report

HOSTILE = ("<script>alert(1)</script>", "</script><!-- & \u2028", '"><img src=x onerror=alert(1)>')
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="
SCORES = [step / 100 for step in range(101)]
NAMES = ["cat", "dog", "eel"]
OBJECTS = [40, 30, 50]
# By class, at the scores 0.00 … 1.00: all objects are detected at 0, none at 1; cats are detected best, eels worst.
TRUE_POSITIVES = [
    [round(objects * (1 - score**power)) for score in SCORES] for objects, power in zip(OBJECTS, (4, 2, 1), strict=True)
]
FALSE_POSITIVES = [[round(wrong * (1 - score) ** 2) for score in SCORES] for wrong in (10, 60, 90)]
# bin, predicted, true, count; 3 is the background.
EVENTS = [(90, 0, 0, 30), (40, 0, 0, 5), (70, 1, 1, 20), (70, 1, 0, 3), (30, 2, 1, 4), (55, 2, 2, 25), (20, 2, 3, 12)]
SECTIONS = ["classes", "curves", "confusion", "errors", "slices", "calibration"]
SECTIONS += ["proposals", "oracles", "gallery", "training", "config"]


def report(names=NAMES):
    """Return data for all sections of a report, with three classes."""
    numbers = {"images": 2, "ground_truths": 120, "crowds": 1, "detections": 200, "classes": 3}
    origin = {"root": "animals", "split": "test", "checkpoint": None, "date": "today", "command": "detect eval"}
    metrics = ["AP", "AP50", "AP75", "APs", "AR100", "VOC"]
    values = [0.6, 0.9, 0.7, None, 0.8, 0.85]
    falling = [[1 - 0.2 * label - recall / 2 for recall in SCORES] for label in range(3)]
    precision = {"0.50": falling, "0.75": falling, "0.50:0.95": falling}
    return {
        "title": "animals test",
        "subject": numbers | origin | {"versions": {"detect": "0.1.0"}},
        "config": "model:\n  name: <b>rcnn</b>\n",
        "metrics": [
            {
                "name": name,
                "meaning": f"meaning of {name}",
                "value": value,
                "interval": None if value is None else [0.5, 0.9],
            }
            for name, value in zip(metrics, values, strict=True)
        ],
        "classes": [
            {
                "name": name,
                "ground_truths": OBJECTS[label],
                "detections": TRUE_POSITIVES[label][0] + FALSE_POSITIVES[label][0],
                "AP": (0.7, 0.3, 0.5)[label],
                "AP_interval": [0.2, 0.8],
                "AP50": 0.9,
                "AP75": None,
                "AR100": 0.8,
                "VOC": 0.9,
            }
            for label, name in enumerate(names)
        ],
        "curves": {
            "recall": SCORES,
            "precision": precision,
            "mean": dict.fromkeys(precision, falling[1]),
            "scores": {"0.50": [[0.875] * 101] * 3},
        },
        "thresholds": {
            "scores": SCORES,
            "best": 0.5,
            "true_positives": TRUE_POSITIVES,
            "false_positives": FALSE_POSITIVES,
            "ground_truths": OBJECTS,
        },
        "confusion": {
            "scores": SCORES,
            "events": dict(
                zip(("bin", "predicted", "true", "count"), map(list, zip(*EVENTS, strict=True)), strict=True)
            ),
            "ground_truths": OBJECTS,
        },
        "errors": {
            "AP50": 0.9,
            "main": [
                {"name": "missed", "short": "Miss", "meaning": "not detected", "dAP": 0.06, "count": 7},
                {"name": "background", "short": "Bkg", "meaning": "no object", "dAP": 0.02, "count": 1},
            ],
            "special": [{"name": "false positives", "short": "FalsePos", "meaning": "all", "dAP": 0.03, "count": None}],
        },
        "slices": [
            {
                "name": "size",
                "meaning": "area in pixels",
                "rows": [
                    {
                        "name": name,
                        "ground_truths": 60,
                        "AP": ap,
                        "AP50": ap,
                        "AR": ap,
                        "AP_interval": [ap - 0.1, ap + 0.1],
                    }
                    for name, ap in (("small", 0.2), ("large", 0.8))
                ],
            }
        ],
        "calibration": {
            "ece": 0.05,
            "rows": [
                {"low": k / 10, "high": (k + 1) / 10, "score": k / 10 + 0.05, "precision": k / 10, "count": 20}
                if k
                else {"low": 0.0, "high": 0.1, "score": None, "precision": None, "count": 0}
                for k in range(10)
            ],
        },
        "proposals": {"limits": [100, 1000], "recall": {"0.50": [0.8, 0.9]}, "AR": [0.5, 0.6], "ABO": 0.7, "MABO": 0.6},
        "oracles": [
            {"name": "no oracle", "AP": 0.6, "AP50": 0.9, "meaning": "the detector"},
            {"name": "perfect boxes", "AP": 0.85, "AP50": 0.9, "meaning": "boxes of the objects"},
        ],
        "gallery": [
            {
                "name": "first.jpg",
                "id": 1,
                "width": 100,
                "height": 80,
                "thumbnail": PIXEL,
                "ground_truths": [[10, 10, 40, 40, 0, "matched"], [60, 10, 90, 40, 1, "missed"]],
                "detections": [[10, 10, 40, 41, 0, 0.6, "correct"], [50, 50, 70, 70, 2, 0.9, "Bkg"]],
                "errors": 2,
            },
            {
                "name": "second.jpg",
                "id": 2,
                "width": 80,
                "height": 100,
                "thumbnail": None,
                "ground_truths": [[10, 10, 40, 40, 0, "matched"], [0, 0, 80, 10, 0, "crowd"]],
                "detections": [[10, 10, 40, 39, 0, 0.95, "correct"], [12, 10, 40, 39, 0, 0.4, "Dupe"]],
                "errors": 1,
            },
        ],
        "training": {
            "x": "step",
            "series": [
                {"name": "loss", "group": "losses", "points": [[0, 2.0], [10, 1.0]]},
                {"name": "AP", "group": "metrics", "points": [[10, 0.6]]},
            ],
        },
    }


def report_with_masks():
    """Return the same with masks: metrics, columns, curves, errors, sizes, boundaries and outlines."""
    data = report()
    data["metrics"] += [
        {"name": name, "meaning": "of masks", "value": value, "interval": [0.2, 0.9]}
        for name, value in (("mask AP", 0.55), ("mask AP50", 0.85), ("mask AP75", 0.6), ("mask APs", 0.3))
    ]
    data["classes"] = [row | {"mask_AP": 0.6, "mask_AP50": 0.8, "boundary_IoU": None} for row in data["classes"]]
    data["curves"]["precision"]["masks 0.50"] = data["curves"]["precision"]["0.50"]
    data["curves"]["mean"]["masks 0.50"] = data["curves"]["mean"]["0.50"]
    outline = "M10 10 40 10 40 40z"
    data["gallery"][0]["ground_truths"] = [[*row, outline] for row in data["gallery"][0]["ground_truths"]]
    data["gallery"][0]["detections"] = [[*row, outline] for row in data["gallery"][0]["detections"]]
    names = {"name": HOSTILE[0], "class": HOSTILE[2]}
    worst = {"score": 0.9, "iou": 0.8, "boundary_iou": 0.25, "missed": 1200, "extra": 30, "picture": PIXEL}
    data["masks"] = {
        "errors": data["errors"],
        "sizes": data["slices"][0]["rows"],
        "boundary": {
            "bins": [{"low": k / 10, "high": (k + 1) / 10, "count": k} for k in range(10)],
            "mean": 0.7,
            "median": 0.75,
            "worst": [names | worst],
        },
    }
    return data


def comparison():
    data = report()
    metrics = [
        {"name": "AP", "meaning": "average precision", "value": 0.6},
        {"name": "AP50", "meaning": "", "value": 0.9},
    ]
    image = data["gallery"][0]
    other = [[10, 10, 40, 41, 0, 0.4, "correct"]]
    return {
        "title": "two runs",
        "runs": [{"name": name, "subject": data["subject"], "metrics": metrics} for name in ("old", "new", "odd")],
        "pairs": [
            {
                "run": run,
                "metrics": [
                    {"name": "AP", "difference": difference, "interval": interval, "p": 0.01},
                    {"name": "AP50", "difference": None, "interval": None, "p": None},
                ],
                "classes": [
                    {"name": name, "ground_truths": 40, "difference": gain, "interval": [gain - 0.01, gain + 0.01]}
                    for name, gain in zip(NAMES, (0.02, -0.03, 0.05), strict=True)
                ],
            }
            for run, difference, interval in ((1, 0.04, [0.01, 0.07]), (2, -0.01, [-0.03, 0.01]))
        ],
        "images": [
            image | {"detections": [image["detections"], other, other], "share_correct": [0.5, 1.0, 1.0], "run": run}
            for run in (1, 1, 2)
        ],
    }


def empty_report(**subject):
    """Return data for the head of a report only."""
    data = report()
    nothing = dict.fromkeys(SECTIONS) | {"thresholds": None, "classes": [], "oracles": [], "gallery": []}
    metrics = [metric | {"value": None, "interval": None} for metric in data["metrics"]]
    return {"title": "empty", "subject": data["subject"] | subject, "metrics": metrics} | nothing


def embedded(page):
    """Return the embedded data as text, as a browser would read it."""
    return re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.DOTALL)[1]


@pytest.mark.parametrize(
    ("render", "data"),
    [(render_report, report()), (render_report, report_with_masks()), (render_comparison, comparison())],
)
def test_the_data_are_embedded_unchanged(render, data):
    data["title"] = HOSTILE[1]
    text = embedded(render(data))
    assert json.loads(text) == data
    assert not re.search("[<>&\u2028\u2029]", text)


@pytest.mark.parametrize("modules", [REPORT, COMPARISON])
def test_modules_of_a_page_share_no_name(modules):
    """They are joined to one script."""
    names = Counter(
        name
        for module in modules
        for name in re.findall(
            r"^(?:export )?(?:async )?(?:function|class|const|let) (\w+)", _read(module), re.MULTILINE
        )
    )
    assert len(names) > 20 and set(names.values()) == {1}


def test_the_title_is_escaped():
    page = render_report(report() | {"title": HOSTILE[0]})
    assert "<title>&lt;script&gt;alert(1)&lt;/script&gt;</title>" in page
    assert HOSTILE[0] not in page


def test_a_number_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        render_report(report() | {"oracles": [{"AP": float("nan")}]})


@pytest.mark.parametrize(("render", "data"), [(render_report, report()), (render_comparison, comparison())])
def test_the_page_is_self_contained_and_allows_nothing_else(render, data):
    page = render(data)
    assert set(re.findall(r"https?://[^\s\"'<]*", page)) == {"http://www.w3.org/2000/svg"}  # a namespace, never loaded
    assert not re.search(r"<link|<iframe|@import|url\(|\bimport\b.*from|fetch\(|<script[^>]*src|<img", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|style=", page)
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none';")
    style = re.search("<style>(.*?)</style>", page, re.DOTALL)[1]
    script = re.search('<script type="module">(.*?)</script', page, re.DOTALL)[1]
    for kind, text in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert len(page) - len(embedded(page)) < 100_000


@pytest.fixture(scope="module")
def tab():
    """Return one tab for all tests, which saves starting a process for each."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


@pytest.fixture
def show(tab, tmp_path):
    """Return a function that opens a page from a file; afterwards check for errors and for requests of the page."""
    problems, requests = [], []
    listeners = {
        "console": lambda message: problems.append(message.text),
        "pageerror": lambda error: problems.append(str(error)),
        "request": lambda request: requests.append(request.url),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)

    def show(html, width=1280, system="light"):
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(media="screen", color_scheme=system)
        tab.goto(file.as_uri())
        return tab

    yield show
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    tab.goto("about:blank")
    assert problems == []
    # Embedded images count as requests.
    assert {url for url in requests if not url.startswith("data:image/")} == {(tmp_path / "page.html").as_uri()}


def column(page, heading, table="#class-table"):
    """Return the cells of a column from top to bottom."""
    headings = [text.lstrip("↑↓ ") for text in page.locator(f"{table} thead th").all_inner_texts()]
    index = [heading == text.removesuffix(" %") for text in headings].index(True)
    rows = page.locator(f"{table} tbody tr:visible")
    return rows.evaluate_all("(rows, index) => rows.map((row) => row.children[index].innerText)", index)


def move(page, index):
    """Move the slider to a score."""
    page.locator("#score").evaluate("(node, at) => { node.value = at; node.dispatchEvent(new Event('input')); }", index)
    page.wait_for_function("at => document.querySelector('#score-value').value === (at / 100).toFixed(2)", arg=index)


def reach(page, selector):
    """Scroll to an element and wait until it is drawn: elements out of sight follow the slider later."""
    frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
    page.locator(selector).evaluate(f"node => {{ node.scrollIntoView(); return {frames}; }}")


def share(part, whole):
    return f"{100 * part / whole:.1f}" if whole else "–"


def test_the_head_shows_the_data_and_the_metrics(show):
    page = show(render_report(report()))
    assert page.locator("#title").inner_text() == "animals test"
    subject = "animals, test: 2 images · 120 objects and 1 crowd region in 3 classes · 200 detections · today"
    assert page.locator("#subject").inner_text() == subject
    tiles = page.locator(".tile .value").all_inner_texts()
    assert tiles == ["60.0 %", "90.0 %", "70.0 %", "–", "80.0 %", "85.0 %"]
    assert page.locator(".tile .interval").first.inner_text() == "50.0 … 90.0"
    assert page.locator("#findings p").all_inner_texts() == [
        "AP is 40.0 points below 100: 10.0 are lost at IoU 0.50, 30.0 at higher thresholds, where boxes are not tight "
        "enough.",
        "At IoU 0.50 most is lost to missed objects (dAP 6.0) and then to detections on background (dAP 2.0).",
        "By size (area in pixels), AP is lowest for “small”: 20.0 %, compared with 80.0 % for “large”.",
    ]  # none about the classes, whose intervals touch
    assert [node.get_attribute("id") for node in page.locator("section[data-name]").all()] == SECTIONS


def test_findings_without_evidence_are_left_out(show):
    """Too few objects, touching intervals, kinds of error without a loss: no sentence."""
    data = report()
    data["metrics"] = [{"name": "AP", "meaning": "", "value": 0.6, "interval": None}]
    data["errors"]["main"] = [{"name": "missed", "short": "Miss", "meaning": "", "dAP": 0.0, "count": 0}]
    data["slices"][0]["rows"][0]["ground_truths"] = 3
    assert show(render_report(data)).locator("#findings p").count() == 0


def test_the_table_sorts_by_its_headings(show):
    page = show(render_report(report()))
    assert column(page, "Class") == NAMES
    ap = page.get_by_role("button", name="AP %", exact=True)
    ap.click()
    assert column(page, "AP") == ["70.0", "50.0", "30.0"]
    ap.press("Enter")
    assert column(page, "Class") == ["dog", "eel", "cat"]
    assert page.locator("#class-table th[aria-sort=ascending]").inner_text().endswith("AP %")
    page.get_by_role("button", name="Class", exact=True).click()
    assert column(page, "Class") == NAMES


@pytest.mark.parametrize("classes", [80, 300])
def test_many_classes_can_be_filtered(show, classes):
    data = report()
    data["classes"] = [data["classes"][0] | {"name": f"class {label}"} for label in range(classes)]
    for name in ("true_positives", "false_positives"):
        data["thresholds"][name] = [TRUE_POSITIVES[0]] * classes
    data["curves"]["precision"] = {iou: [SCORES] * classes for iou in data["curves"]["precision"]}
    data["curves"]["scores"] = {"0.50": [SCORES] * classes}
    data["thresholds"]["ground_truths"] = data["confusion"]["ground_truths"] = [40] * classes
    page = show(render_report(data))
    page.get_by_placeholder("Filter by name").fill("SS 41")
    assert column(page, "Class") == ["class 41"]
    page.get_by_role("button", name="class 41", exact=True).click()
    assert page.locator("#curve-class").input_value() == "41"
    reach(page, "#confusion")
    assert page.locator(".matrix path.cell").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("index", [30, 85])
def test_the_slider_updates_all_sections(show, index):
    page = show(render_report(report()))
    move(page, index)
    hits, wrong = ([row[index] for row in table] for table in (TRUE_POSITIVES, FALSE_POSITIVES))
    reach(page, "#class-table")
    assert column(page, "Precision") == [share(h, h + w) for h, w in zip(hits, wrong, strict=True)]
    assert column(page, "Recall") == [share(h, t) for h, t in zip(hits, OBJECTS, strict=True)]
    assert column(page, "F1") == [share(2 * h, h + w + t) for h, w, t in zip(hits, wrong, OBJECTS, strict=True)]
    all_hits, all_wrong = sum(hits), sum(wrong)
    overall = [(all_hits, all_hits + all_wrong), (all_hits, 120), (2 * all_hits, all_hits + all_wrong + 120)]
    assert page.locator("#overall dd").all_inner_texts() == [f"{share(*pair)} %" for pair in overall]

    reach(page, "#curves")
    chart = page.locator("#curve-chart svg").bounding_box()
    for mark, h, w, t in zip(page.locator("#curve-chart .mark").all(), hits, wrong, OBJECTS, strict=True):
        box = mark.bounding_box()
        x, y = box["x"] + box["width"] / 2 - chart["x"], box["y"] + box["height"] / 2 - chart["y"]
        assert (x - 46) / (chart["width"] - 46 - 12) == pytest.approx(h / t, abs=0.01)  # the chart's margins
        assert 1 - (y - 10) / (320 - 10 - 40) == pytest.approx(h / (h + w), abs=0.01)

    matrix = Counter()
    for score_bin, predicted, true, number in EVENTS:
        matrix[true, predicted] += number * (score_bin >= index)
    for true in range(3):
        matrix[true, 3] = OBJECTS[true] - sum(matrix[true, predicted] for predicted in range(3))
    reach(page, "#confusion-matrix")
    expected = [str(matrix[cell]) for cell in product(range(4), range(4)) if matrix[cell]]
    assert [
        text for text in page.locator(".matrix g:not(.axes) > text").all_text_contents() if "%" not in text
    ] == expected
    missed = sorted((matrix[true, 3] for true in range(3)), reverse=True)
    assert page.locator("#confusion-lists div:nth-child(2) b").all_inner_texts() == [str(n) for n in missed if n]


def test_the_slider_starts_at_the_best_f1_and_the_button_returns_there(show):
    data = report()
    data["thresholds"]["best"] = 0.37
    page = show(render_report(data))
    assert page.locator("#score-value").inner_text() == "0.37"
    hits, wrong = (sum(row[37] for row in table) for table in (TRUE_POSITIVES, FALSE_POSITIVES))
    f1 = f"{share(2 * hits, hits + wrong + 120)} %"
    assert page.locator("#overall dd").nth(2).inner_text() == f1
    move(page, 80)
    assert page.locator("#overall dd").nth(2).inner_text() != f1
    page.locator("#best").click()
    assert page.locator("#score-value").inner_text() == "0.37"


def test_a_picture_says_that_it_has_no_detections_at_the_score(show):
    page = show(render_report(report()))
    reach(page, "#gallery")
    move(page, 92)  # above all detections of the first picture
    assert page.locator("#gallery .errors").all_inner_texts() == [
        "no detections at this score, 2 missed",
        "1 correct, 0 wrong, 0 missed",
    ]
    page.get_by_role("button", name="Enlarge first.jpg").click()
    assert "no detections at this score, 2 missed." in page.locator("#viewer-summary").inner_text()


def test_curves_respond_to_pointer_and_keys(show):
    page = show(render_report(report()))
    chart = page.locator("#curve-chart svg")
    reach(page, "#curve-chart")
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 46 + (box["width"] - 58) / 2, box["y"] + 100)
    lines = page.locator("#tooltip").inner_text().splitlines()
    assert lines[:3] == ["Recall 50.0 %", "cat: 75.0 %", "dog: 55.0 %"]
    assert lines[-3:] == [f"{name}: score 0.875" for name in NAMES]
    page.mouse.move(5, 5)
    assert page.locator("#tooltip").is_hidden()
    page.locator("#curve-class").select_option("dog")
    chart.press("ArrowRight")
    chart.press("ArrowRight")
    assert page.locator("#tooltip").inner_text().splitlines()[0] == "Recall 1.0 %"
    page.locator("#curve-iou").select_option("0.75")
    assert page.locator("#curve-chart .mark").count() == 0  # the slider applies to IoU 0.50


def test_the_confusion_matrix_responds_to_keys(show):
    page = show(render_report(report()))
    move(page, 30)
    reach(page, "#confusion-matrix")
    matrix = page.locator(".matrix")
    matrix.press("ArrowRight")
    assert page.locator("#tooltip").inner_text().splitlines() == ["cat → cat", "35 of 40, 87.5 % of the cat objects"]
    for _ in range(3):
        matrix.press("ArrowRight")
    assert page.locator("#tooltip").inner_text().splitlines() == [
        "cat → missed",
        "2 of 40, 5.0 % of the cat objects",
    ]


def shown(page):
    return page.locator("#gallery-pictures figure:visible .name").all_inner_texts()


def test_the_gallery_follows_filters_and_slider(show):
    page = show(render_report(report()))
    reach(page, "#gallery")
    assert page.locator("#gallery .errors").all_inner_texts() == [
        "1 correct, 1 wrong, 1 missed",
        "1 correct, 0 wrong, 0 missed",
    ]
    assert shown(page) == ["first.jpg", "second.jpg"]
    page.locator("#gallery-kind").select_option("Dupe")
    assert shown(page) == []  # the duplicate has a score of 0.4
    move(page, 40)
    assert shown(page) == ["second.jpg"]
    page.locator("#gallery-kind").select_option("Bkg")
    assert shown(page) == ["first.jpg"]
    page.locator("#gallery-class").select_option("cat")
    assert shown(page) == []
    page.locator("#gallery-kind").select_option("Miss")
    assert shown(page) == []
    move(page, 61)  # above the score of the detected cat
    assert shown(page) == ["first.jpg"]
    assert page.locator("#gallery-count").inner_text() == "1 of 2 images"


def test_ground_truths_and_detections_can_be_hidden(show):
    page = show(render_report(report()))
    reach(page, "#gallery")
    layers = lambda: [  # noqa: E731
        node.get_attribute("class") for node in page.locator("figure:first-child .picture path:not(.halo)").all()
    ]
    assert layers() == ["box matched", "box correct", "box wrong", "box missed"]
    page.locator("#show-ground-truths").uncheck()
    assert layers() == ["box correct", "box wrong"]
    page.locator("#show-detections").uncheck()
    assert layers() == []


def test_the_dialog_by_keyboard(show):
    page = show(render_report(report()))
    move(page, 30)
    page.get_by_role("button", name="Enlarge first.jpg").press("Enter")
    assert page.locator("#viewer-name").inner_text() == "first.jpg (1 of 2)"
    assert page.locator("#viewer .error .box-name").all_text_contents() == ["eel 0.90 Bkg", "missed: dog"]
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-name").inner_text() == "second.jpg (2 of 2)"
    assert "Wrong: 1 duplicate (Dupe)" in page.locator("#viewer-summary").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-name").inner_text() == "first.jpg (1 of 2)"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#viewer-name").inner_text() == "second.jpg (2 of 2)"
    page.keyboard.press("Escape")
    assert page.locator("#viewer").is_hidden()


@pytest.mark.parametrize("system", ["light", "dark"])
def test_light_and_dark(show, system):
    page = show(render_report(report()), system=system)
    colour = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    colours = ["rgb(255, 255, 255)", "rgb(20, 23, 28)"]
    first, second = colours if system == "light" else colours[::-1]
    assert colour() == first
    page.locator("#theme").click()
    assert colour() == second
    page.locator("#theme").click()
    assert colour() == first


def test_text_of_the_data_is_never_markup(show):
    data = report(names=HOSTILE)
    data["title"] = data["subject"]["root"] = data["config"] = HOSTILE[2]
    data["subject"]["versions"] = {HOSTILE[0]: HOSTILE[2]}
    for image, name in zip(data["gallery"], HOSTILE, strict=False):
        image["name"] = name
    for entry in (*data["errors"]["main"], *data["oracles"], *data["slices"][0]["rows"], *data["training"]["series"]):
        entry["name"] = HOSTILE[2]
    page = show(render_report(data))
    assert page.locator("#title").text_content() == HOSTILE[2]
    assert page.locator("#class-table tbody th").all_text_contents() == list(HOSTILE)
    reach(page, "#gallery")
    assert page.locator("#gallery-pictures .name").all_text_contents() == list(HOSTILE[:2])
    page.locator(".enlarge").first.click()
    assert HOSTILE[0] in page.locator("#viewer-name").text_content()
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script").count() == 2


def test_printing_opens_collapsed_parts(show):
    page = show(render_report(report()))
    page.evaluate("addEventListener('afterprint', () => 0); window.seen = []")
    page.evaluate("addEventListener('beforeprint', () => seen.push(document.querySelector('#config-text').open))")
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.evaluate("seen") == [True]
    assert page.locator("#gallery .errors").first.text_content() == "1 correct, 1 wrong, 1 missed"
    page.emulate_media(media="print")
    assert page.locator("#threshold, #theme, #contents, .controls.row").locator("visible=true").count() == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_overflows_the_width(show, width):
    page = show(render_report(report(names=["x" * 300, "long " * 60, "y"])), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page = show(render_comparison(comparison()), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    ("subject", "sentence"),
    [
        (
            {"images": 0, "ground_truths": 0, "detections": 0, "classes": 0},
            "There are no images, so nothing was evaluated.",
        ),
        ({"ground_truths": 0}, "The images contain no objects, so AP is undefined."),
        ({"ground_truths": 7, "detections": 0}, "There are no detections: all 7 objects are missed."),
    ],
)
def test_an_empty_report(show, subject, sentence):
    page = show(render_report(empty_report(**subject)))
    assert page.locator("#findings p").all_inner_texts() == [sentence]
    assert [node.get_attribute("id") for node in page.locator("section[data-name]").all()] == ["config"]
    assert page.locator("#threshold").count() == 0


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        (SECTIONS[1::2], SECTIONS[1::2]),
        (SECTIONS[2::2], SECTIONS[2:-1:2]),  # the versions of the last one stay
        (["classes"], ["classes", "curves", "confusion"]),
        (["thresholds"], []),
    ],
)
def test_sections_may_be_missing(show, missing, gone):
    page = show(render_report({name: value for name, value in report().items() if name not in missing}))
    left = [node.get_attribute("id") for node in page.locator("section[data-name]").all()]
    assert left == [section for section in SECTIONS if section not in gone]
    assert page.locator("#contents a").count() == len(left)


def test_one_class_without_detections(show):
    """All arrays exist and are empty: rows of null, counts of 0."""
    data = report()
    data["classes"] = [data["classes"][0] | {"AP": 0.0, "detections": 0}]
    data["thresholds"] = {
        "scores": SCORES,
        "best": 0.5,
        "true_positives": [[0] * 101],
        "false_positives": [[0] * 101],
        "ground_truths": [40],
    }
    data["confusion"]["events"] = {name: [] for name in ("bin", "predicted", "true", "count")}
    data["confusion"]["ground_truths"] = [40]
    data["curves"]["precision"] = {"0.50": [[None] * 101]}
    data["curves"]["mean"] = {"0.50": [None] * 101}
    data["curves"]["scores"] = {"0.50": [[None] * 101]}
    for row in data["calibration"]["rows"]:
        row.update(score=None, precision=None, count=0)
    page = show(render_report(data))
    assert page.locator("#overall dd").all_inner_texts() == ["–", "0.0 %", "0.0 %"]
    assert page.locator("#calibration").count() == 0
    reach(page, "#confusion-matrix")
    assert page.locator(".matrix g:not(.axes) > text").all_text_contents() == ["40", "100.0 %"]


def test_a_comparison(show):
    page = show(render_comparison(comparison()))
    assert page.locator("#findings p").all_inner_texts() == [
        "“new” is better than “old” by 4.0 points of AP (95 % interval +1.0 … +7.0).",
        "No significant difference between “odd” and “old”: −1.0 points of AP (95 % interval −3.0 … +1.0).",
    ]
    rows = page.locator("#metric-table tbody tr").all_inner_texts()
    assert [row.split() for row in rows] == [
        ["AP", "60.0", "60.0", "+4.0", "+1.0", "…", "+7.0", "1.0"],
        ["AP50", "90.0", "90.0", "–", "–", "–"],
    ]
    page.locator("#class-table").get_by_role("button", name="Difference").click()
    assert column(page, "Class") == ["eel", "cat", "dog"]
    reach(page, "#gallery")
    assert page.locator("#gallery-pictures figure").count() == 2
    move(page, 40)
    assert page.locator(".side").all_inner_texts()[:2] == ["old: 50.0 % correct", "new: 100.0 % correct"]
    page.locator(".enlarge").first.press("Enter")
    assert page.locator("#viewer figure").count() == 2
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-name").inner_text() == "first.jpg (2 of 2)"
    page.keyboard.press("Escape")
    page.locator("#pair").select_option("odd")
    assert page.locator("#gallery-pictures figure").count() == 1
    assert page.locator("#metric-table tbody tr").first.inner_text().split()[3] == "−1.0"


def test_the_interval_has_the_sign_of_the_sentence(show):
    """The difference is that of the other run minus the first one; the sentence names the better one first."""
    data = comparison()
    data["pairs"][0]["metrics"][0] |= {"difference": -0.521, "interval": [-0.556, -0.480]}
    page = show(render_comparison(data))
    assert page.locator("#findings p").first.inner_text() == (
        "“old” is better than “new” by 52.1 points of AP (95 % interval +48.0 … +55.6)."
    )
    assert page.locator("#metric-table tbody tr").first.inner_text().split()[3:7] == ["−52.1", "−55.6", "…", "−48.0"]


def test_a_comparison_starts_at_its_score_and_names_pictures_without_detections(show):
    page = show(render_comparison(comparison() | {"score": 0.41}))
    reach(page, "#gallery")
    assert page.locator("#score-value").inner_text() == "0.41"
    assert page.locator(".side").all_inner_texts()[:2] == [
        "old: 50.0 % correct",
        "new: 100.0 % correct; no detections at this score",
    ]


def test_a_comparison_of_nothing(show):
    data = comparison()
    page = show(render_comparison(data | {"pairs": [], "images": [], "runs": data["runs"][:1]}))
    assert page.locator("section[data-name]").count() == 0
    assert page.locator("#runs dt").count() == 1


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_masks_have_metrics_columns_curves_and_slices(show):
    page = show(render_report(report_with_masks()))
    assert page.locator("#leading-masks .value").all_inner_texts() == ["55.0 %", "85.0 %", "60.0 %"]
    assert page.locator("#leading .value").all_inner_texts() == ["60.0 %", "90.0 %", "70.0 %"]
    assert page.locator("#others dt").last.inner_text() == "mask APs"
    assert page.locator("#findings p").nth(1).inner_text() == (
        "AP of masks is 55.0 %, 5.0 points below that of boxes; the median Boundary IoU of the matched masks is 75.0 %."
    )
    assert column(page, "Mask AP") == ["60.0"] * 3 and column(page, "Boundary") == ["–"] * 3
    assert page.locator("#curve-iou option").last.inner_text() == "masks 0.50"
    page.locator("#curve-iou").select_option("masks 0.50")
    assert page.locator("#curve-chart path.line").count() == 4
    assert page.locator("#mask-error-bars tbody tr").count() == page.locator("#error-bars tbody tr").count() == 3
    assert page.locator("#slice-tables h3").all_inner_texts() == ["By size", "Masks by size"]


def test_boundaries_are_shown_with_their_worst_pairs(show):
    page = show(render_report(report_with_masks()))
    sections = [node.get_attribute("id") for node in page.locator("section[data-name]").all()]
    assert sections == [*SECTIONS[:4], "boundary", *SECTIONS[4:]]
    assert page.locator("#boundary-bars tbody .number:last-child").all_inner_texts() == [str(k) for k in range(10)]
    assert "45 pairs: mean 70.0 %, median 75.0 %" in page.locator("#boundary-caption").inner_text()
    caption = page.locator("#boundary-pictures figcaption").inner_text().split("\n")
    assert caption[0] == f"{HOSTILE[2]} 0.90 · {HOSTILE[0]}"
    assert caption[1:] == ["Boundary IoU 25.0 %, IoU 80.0 %", "1,200 pixels missed, 30 extra"]
    assert page.locator("#boundary-pictures img").get_attribute("src") == PIXEL


def test_a_report_without_matched_masks_has_no_boundaries(show):
    data = report_with_masks()
    data["masks"]["boundary"] = None
    page = show(render_report(data))
    assert page.locator("#boundary").count() == 0 and page.locator("#mask-errors").count() == 1


def test_masks_are_drawn_and_follow_the_slider(show):
    page = show(render_report(report_with_masks()))
    move(page, 50)
    reach(page, "#gallery")
    first = page.locator("#gallery-pictures figure").first
    assert first.locator("path.mask").count() == 4
    assert first.locator("path.mask.correct").get_attribute("d") == "M10 10 40 10 40 40z"
    move(page, 70)  # the correct detection has the score 0.6
    assert first.locator("path.mask.correct").count() == 0 and first.locator("path.mask.wrong").count() == 1
    assert page.locator("#gallery-pictures figure").nth(1).locator("path.mask").count() == 0
    first.locator("button").click()
    assert page.locator("#viewer path.mask").count() == 3
    page.locator("#viewer-close").click()
