"""TIDE's errors, compared with those of tidecv in `tide_errors.json`, written by tools/fixtures/tide_errors.py."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from detect.evaluation.tide import KINDS, STATES, tide

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "tools" / "fixtures" / "tide_errors.py"
SQUARE = (10, 10, 50, 50)


def _script():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT.stem] = module  # for its dataclass
    spec.loader.exec_module(module)
    return module


script = _script()


@pytest.fixture
def errors_of(dataset_of, prediction_of):
    def corners(x, y, width, height):
        return (x, y, x + width, y + height)

    def errors(case):
        images = {
            image: [
                (corners(*box), label, "crowd" if crowd else "")
                for of, *box, label, crowd in case.ground_truths.tolist()
                if of == image
            ]
            for image in range(case.images)
        }
        dataset = dataset_of(images, tuple("abcd"), (1, 2, 3, 4))
        rows = case.detections.tolist()
        predictions = [
            prediction_of(
                image,
                [(corners(*box), int(label), score) for of, *box, label, score in rows if of == image],
            )
            for image in range(case.images)
        ]
        return tide(dataset, predictions)

    return errors


def assert_equals_tidecv(errors, expected):
    if expected is None:
        assert not errors.ap50 and not any(errors.delta_ap.values())  # None or 0
        return
    assert 100 * errors.ap50 == pytest.approx(expected["AP50"], abs=1e-6)
    for name, value in expected["dAP"].items():
        assert 100 * errors.delta_ap[name] == pytest.approx(value, abs=1e-6), name
    assert {name: errors.counts[name] for name in expected["counts"]} == expected["counts"]


def test_dap_and_counts_equal_tidecv(errors_of):
    expected = json.loads((HERE / "tide_errors.json").read_text())
    assert len(expected) == script.CASES
    for seed, one in enumerate(expected):
        assert_equals_tidecv(errors_of(script.draw(seed)), one)
    known = [one for one in expected if one]
    assert all(max(one["dAP"][name] for one in known) > 1 for name in known[0]["dAP"])  # each kind matters somewhere


@pytest.mark.filterwarnings("ignore")  # from tidecv itself
def test_the_installed_tidecv_agrees(errors_of):
    pytest.importorskip("tidecv", exc_type=ImportError)
    for seed in range(1000, 1020):
        case = script.draw(seed)
        assert_equals_tidecv(errors_of(case), script.tidecv_errors(case))


def test_without_images_there_are_no_errors(dataset_of):
    errors = tide(dataset_of({}), [])
    assert errors.ap50 is None and errors.kinds == errors.states == {}
    assert set(errors.counts.values()) == {0}


def test_kinds_and_states_by_hand(dataset_of, prediction_of):
    right = (200, 10, 240, 50)
    dataset = dataset_of(
        {
            4: [(SQUARE, 0, ""), (right, 1, ""), ((300, 200, 400, 300), 0, "crowd"), ((0, 200, 40, 240), 0, "")],
            2: [],
            3: [(SQUARE, 0, "")],
        }
    )
    boxes = [
        ((310, 210, 330, 230), 0, 0.2),  # in the crowd region
        (SQUARE, 0, 0.8),  # duplicate of the last one
        ((0, 100, 30, 130), 0, 0.7),
        (right, 0, 0.6),  # of another class
        ((10, 10, 50, 22), 0, 0.5),  # IoU 0.3
        ((10, 10, 50, 22), 1, 0.4),  # also of another class
        (SQUARE, 0, 0.9),
    ]
    errors = tide(dataset, [prediction_of(4, boxes), prediction_of(2, [(SQUARE, 0, 0.3)])])
    kinds = {image: [KINDS[code] for code in codes] for image, codes in errors.kinds.items()}
    assert kinds == {2: ["Bkg"], 3: [], 4: ["ignored", "Dupe", "Bkg", "Cls", "Loc", "Both", "correct"]}
    states = {image: [STATES[code] for code in codes] for image, codes in errors.states.items()}
    assert states == {2: [], 3: ["missed"], 4: ["matched", "missed", "crowd", "missed"]}
    # The missed object of class 1 is the target of a Cls, hence no Miss.
    assert errors.counts == {
        **{"Cls": 1, "Loc": 1, "Both": 1, "Dupe": 1, "Bkg": 2, "Miss": 2},
        **{"FalsePos": 6, "FalseNeg": 3},
    }
    summary = errors.summary()
    assert [row["short"] for row in summary["main"]] == ["Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"]
    assert [row["count"] for row in summary["special"]] == [6, 3]


def test_detections_beyond_the_first_100_are_ignored(dataset_of, prediction_of):
    boxes = [((100, 100, 140, 140), 0, 0.9)] * 60 + [((100, 100, 140, 140), 1, 0.9)] * 40 + [(SQUARE, 0, 0.5)]
    errors = tide(dataset_of({1: [(SQUARE, 0, "")]}), [prediction_of(1, boxes)])
    assert errors.kinds[1].tolist() == [KINDS.index("Bkg")] * 100 + [KINDS.index("ignored")]
    assert errors.ap50 == 0 and errors.counts["Miss"] == 1
