"""TIDE's errors; `tide_errors.json` keeps what tidecv says, made by tools/fixtures/tide_errors.py."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from detect.evaluation.tide import KINDS, STATES, tide

HERE = Path(__file__).parent
RECIPE = HERE.parents[1] / "tools" / "fixtures" / "tide_errors.py"
SQUARE = (10, 10, 50, 50)


def _recipe():
    spec = importlib.util.spec_from_file_location(RECIPE.stem, RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[RECIPE.stem] = module  # for its dataclass
    spec.loader.exec_module(module)
    return module


recipe = _recipe()


@pytest.fixture
def errors_of(dataset_of, prediction_of):
    def corners(x, y, width, height):
        return (x, y, x + width, y + height)

    def judge(case):
        images = {
            image: [
                (corners(*box), label, "crowd" if crowd else "")
                for of, *box, label, crowd in case.truths.tolist()
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

    return judge


def assert_says_the_same(errors, expected):
    if expected is None:
        assert not errors.ap50 and not any(errors.prices.values())  # None or 0
        return
    assert 100 * errors.ap50 == pytest.approx(expected["AP50"], abs=1e-6)
    for name, price in expected["prices"].items():
        assert 100 * errors.prices[name] == pytest.approx(price, abs=1e-6), name
    assert {name: errors.counts[name] for name in expected["counts"]} == expected["counts"]


def test_the_prices_and_the_counts_are_tidecvs(errors_of):
    expected = json.loads((HERE / "tide_errors.json").read_text())
    assert len(expected) == recipe.CASES
    for seed, one in enumerate(expected):
        assert_says_the_same(errors_of(recipe.draw(seed)), one)
    known = [one for one in expected if one]
    assert all(max(one["prices"][name] for one in known) > 1 for name in known[0]["prices"])  # each plays a part


@pytest.mark.filterwarnings("ignore")  # of tidecv's own making
def test_the_living_tidecv_says_so_too(errors_of):
    pytest.importorskip("tidecv", exc_type=ImportError)
    for seed in range(1000, 1020):
        case = recipe.draw(seed)
        assert_says_the_same(errors_of(case), recipe.tidecv_says(case))


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
    found = [
        ((310, 210, 330, 230), 0, 0.2),  # in the crowd
        (SQUARE, 0, 0.8),  # a better one is there
        ((0, 100, 30, 130), 0, 0.7),
        (right, 0, 0.6),  # of another class
        ((10, 10, 50, 22), 0, 0.5),  # IoU 0.3
        ((10, 10, 50, 22), 1, 0.4),  # and of another class
        (SQUARE, 0, 0.9),
    ]
    errors = tide(dataset, [prediction_of(4, found), prediction_of(2, [(SQUARE, 0, 0.3)])])
    kinds = {image: [KINDS[code] for code in codes] for image, codes in errors.kinds.items()}
    assert kinds == {2: ["Bkg"], 3: [], 4: ["ignored", "Dupe", "Bkg", "Cls", "Loc", "Both", "right"]}
    states = {image: [STATES[code] for code in codes] for image, codes in errors.states.items()}
    assert states == {2: [], 3: ["missed"], 4: ["found", "missed", "crowd", "missed"]}
    # The missed one of class 1 is pointed at by a Cls, hence no Miss.
    assert errors.counts == {
        **{"Cls": 1, "Loc": 1, "Both": 1, "Dupe": 1, "Bkg": 2, "Miss": 2},
        **{"FalsePos": 6, "FalseNeg": 3},
    }
    summary = errors.summary()
    assert [row["short"] for row in summary["main"]] == ["Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"]
    assert [row["count"] for row in summary["special"]] == [6, 3]


def test_what_lies_beyond_100_detections_is_ignored(dataset_of, prediction_of):
    found = [((100, 100, 140, 140), 0, 0.9)] * 60 + [((100, 100, 140, 140), 1, 0.9)] * 40 + [(SQUARE, 0, 0.5)]
    errors = tide(dataset_of({1: [(SQUARE, 0, "")]}), [prediction_of(1, found)])
    assert errors.kinds[1].tolist() == [KINDS.index("Bkg")] * 100 + [KINDS.index("ignored")]
    assert errors.ap50 == 0 and errors.counts["Miss"] == 1
