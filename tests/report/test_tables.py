import io

from rich.console import Console

from detect.evaluation.coco import METRICS, evaluate_coco
from detect.evaluation.voc import evaluate_voc
from detect.report.meanings import COCO_MEANINGS
from detect.report.tables import print_metrics
from detect.terminal import table

SQUARE = (10, 10, 50, 50)


def printed(metrics) -> list[str]:
    page = io.StringIO()
    print_metrics(metrics, Console(file=page, width=80))
    return page.getvalue().splitlines()


def row(lines, name) -> list[str]:
    return next(line.split() for line in lines if line.split()[:1] == [name])


def test_without_metrics_nothing_is_printed():
    assert printed({}) == []


def test_every_coco_metric_has_a_meaning():
    assert tuple(COCO_MEANINGS) == METRICS


def test_all_metrics_of_one_class(dataset_of, prediction_of):
    dataset = dataset_of({1: [(SQUARE, 0, "")]})
    predictions = [prediction_of(1, [((10, 10, 50, 42), 0, 0.9)])]
    recall = {"AR@100": 0.25, "recall@0.5@100": 0.5, "ABO": 0.625, "MABO": None}
    lines = printed({**evaluate_coco(dataset, predictions), **evaluate_voc(dataset, predictions), **recall})
    assert row(lines, "AP")[:2] == ["AP", "70.0"]
    assert row(lines, "APs")[:2] == ["APs", "–"]
    assert row(lines, "VOC07")[:2] == ["VOC07", "100.0"]
    assert "recall@0.5@100   50.0  recall of the best 100 proposals at IoU 0.5" in [line.rstrip() for line in lines]
    assert row(lines, "MABO")[1] == "–"
    assert row(lines, "class") == ["class", "objects", "AP", "AP50", "AP75", "AR100", "VOC07", "VOC"]
    assert row(lines, "cat") == ["cat", "1", "70.0", "100.0", "100.0", "70.0", "100.0", "100.0"]
    assert lines[-1].rstrip() == "without objects: dog"


def test_classes_without_objects_are_one_line(dataset_of, prediction_of):
    names = tuple(f"class{number}" for number in range(80))
    dataset = dataset_of({1: [(SQUARE, 42, "")]}, classes=names, category_ids=tuple(range(80)))
    lines = printed(evaluate_coco(dataset, [prediction_of(1, [(SQUARE, 42, 0.9), (SQUARE, 7, 0.8)])]))
    assert row(lines, "class42") == ["class42", "1", "100.0", "100.0", "100.0", "100.0"]
    text = " ".join(" ".join(lines[lines.index(next(line for line in lines if "without" in line)) :]).split())
    assert text == f"without objects: {', '.join(names[:10])}, … and 69 more" and len(lines) < 20


def test_long_and_hostile_names_keep_the_table_whole(dataset_of):
    dataset = dataset_of({1: [(SQUARE, 0, "")]}, classes=("[red]\x1b[2J[/nothing]", "z" * 100))
    lines = printed({**evaluate_coco(dataset, []), **evaluate_voc(dataset, [])})
    assert max(map(len, lines)) <= 80
    assert row(lines, "[red]?[2J[/nothing]")[1:3] == ["1", "0.0"]
    assert sum(line.count("z") for line in lines) == 100


def test_a_name_is_never_broken():
    """A name that does not fit beside the numbers has a line of its own, above them."""
    names = ("bus", "traffic light with pedestrian signal", "fire hydrant")
    cells = (0.5,) * 7
    page = io.StringIO()
    titles = ("class", "objects", "AP", "AP50", "AP75", "AR100", "VOC07", "VOC11/12")
    Console(file=page, width=64).print(table(titles, [(name, *cells) for name in names]))
    lines = page.getvalue().splitlines()
    assert max(map(len, lines)) <= 64 and len(lines) == 5
    assert lines[2].rstrip() == names[1] and lines[3].split() == ["50.0"] * 7
    assert lines[4].startswith("fire hydrant ") and lines[3][12:].rstrip() == lines[4][12:].rstrip()


def test_a_meaning_wraps_between_words():
    page = io.StringIO()
    Console(file=page, width=40).print(
        table(("part", "tensors", "meaning"), [("box head", 4, "left out: " + "why " * 9)])
    )
    lines = page.getvalue().splitlines()
    assert len(lines) == 4 and max(map(len, lines)) <= 40 and set(" ".join(lines[2:]).split()) == {"why"}


def test_an_empty_table_is_its_head():
    page = io.StringIO()
    Console(file=page, width=80).print(table(("part", "tensors"), []))
    assert page.getvalue().split() == ["part", "tensors"]
