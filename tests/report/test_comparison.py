from io import StringIO
from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from detect.report.comparison import (
    draw_comparison,
    name_points,
    print_comparison,
    read_comparison,
    write_comparison,
)

ROW = {
    "config": "fast_rcnn_vgg16",
    "AP": 0.5,
    "AP50": 0.75,
    "test_seconds_per_image": 1.25,
    "test_seconds": {"proposals": 0.5, "features": 0.25, "heads": 0.375, "postprocessing": 0.125},
    "detector": "fast_rcnn",
    "VOC07": 0.7,
    "recall@0.5@2000": 0.9,
    "training_seconds": 12345.6,
    "peak_memory_bytes": 123_456_789,
    "checkpoint_bytes": 553_000_000,
    "proposals_bytes_per_image": 16_400.0,
}
NOTHING = {
    **ROW,
    "config": "a",
    "AP": None,
    "AP50": None,
    "VOC07": None,
    "training_seconds": None,
    "peak_memory_bytes": None,
    "proposals_bytes_per_image": None,
}
ABOUT = {
    "data": "data/[voc]",
    "split": "test",
    "images": 100,
    "timed_images": 50,
    "machine": {"cpu": "Z80", "cores": 2, "threads": 1, "device": "cpu"},
    "memory": "of the process",
}


def printed(rows) -> list[str]:
    text = StringIO()
    print_comparison(rows, ABOUT, Console(file=text, width=80))
    return text.getvalue().splitlines()


def test_the_tables_fit_a_terminal():
    lines = printed([ROW, NOTHING])
    cells = [line.split() for line in lines]
    assert cells[1] == ["fast_rcnn_vgg16", "fast_rcnn", "50.0", "75.0", "70.0", "90.0", "12,346", "123", "MB"]
    assert cells[2] == ["a", "fast_rcnn", "–", "–", "–", "90.0", "–", "–"]
    assert cells[5] == ["fast_rcnn_vgg16", "1.250", "0.500", "0.250", "0.375", "0.125", "553", "MB", "16", "kB"]
    assert any("data/[voc] test, 100 images" in line for line in lines) and max(map(len, lines)) <= 80


def test_writing_and_reading(tmp_path):
    file = tmp_path / "compare.json"
    assert read_comparison(file) is None
    write_comparison(file, [ROW], True, ABOUT)
    assert read_comparison(file) == {"rows": [ROW], "finished": True, **ABOUT}
    for other in ("[]", "{}", "{"):
        file.write_text(other)
        assert read_comparison(file) is None
    assert [path.name for path in tmp_path.iterdir()] == ["compare.json"]


@pytest.mark.parametrize("rows", [[ROW], [NOTHING], [ROW, NOTHING, {**ROW, "test_seconds_per_image": 1e-3}]])
def test_the_plot(tmp_path, rows):
    draw_comparison(tmp_path / "a.png", rows, "a data set")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1050, 750) and len(image.convert("L").getcolors()) > 20


@pytest.mark.parametrize("points", [[(0.5, 0.5)] * 8, [(0.001 * step, 1.0) for step in range(6)], [(1.0, 0.0)] * 4])
def test_no_label_covers_another_or_the_border(points):
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.plot(*zip(*points, strict=True), "o", linestyle="")
    named = [f"detector_{number}" for number in range(len(points))]
    boxes = name_points(axes, points, named, ["C0"] * len(points))
    figure.canvas.draw()
    assert [text.get_text() for text in axes.texts if text.get_text()] == named
    drawn = [text.get_window_extent() for text in axes.texts if text.get_text()]
    for box, expected in zip(drawn, boxes, strict=True):
        assert box.extents == pytest.approx(expected.extents, abs=0.5)
    inside = axes.get_window_extent().padded(1)
    assert all(inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) for box in drawn)
    assert not any(one.padded(-1).overlaps(other) for one, other in combinations(drawn, 2))
