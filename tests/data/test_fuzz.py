"""Damaged files are read or refused with one line: a few hundred cases of tools/benchmarks/fuzz_readers.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "tools" / "benchmarks" / "fuzz_readers.py"


@pytest.fixture(scope="module")
def fuzz():
    sys.path.append(str(PATH.parent))  # for the data sets beside it
    spec = importlib.util.spec_from_file_location("fuzz_readers", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # required by dataclasses
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reader(fuzz, tmp_path_factory):
    return fuzz.Reader(tmp_path_factory.mktemp("damaged"))


def test_what_is_not_damaged_is_read(fuzz, reader):
    for layout, files in fuzz.FILES.items():
        for file, text in files.items():
            assert reader.outcome(fuzz.Case(layout, file, text.encode(), "none")) == ("read", "")


def test_a_refusal_is_one_line(fuzz, reader):
    kind, words = reader.outcome(fuzz.Case("yolo", "data.yaml", b"names: [", "cut"))
    assert kind == "refused" and "data.yaml: it is not YAML" in words


@pytest.mark.parametrize("part", range(5))
def test_damaged_files(fuzz, reader, part):
    cases = [fuzz.make_case(0, number) for number in range(40 * part, 40 * part + 40)]
    outcomes = [reader.outcome(case)[0] for case in cases]
    wrong = [
        (case, *reader.outcome(case))
        for case, kind in zip(cases, outcomes, strict=True)
        if kind not in ("read", "refused")
    ]
    assert not wrong
    assert 3 < outcomes.count("read") < 30


def test_the_cases_are_the_same_each_time(fuzz):
    assert [fuzz.make_case(3, number) for number in range(50)] == [fuzz.make_case(3, number) for number in range(50)]


def test_a_watcher_that_hears(fuzz, reader, tmp_path, monkeypatch):
    """The tool detects a read outside of the folder and a message of two lines."""
    (tmp_path / "secret").touch()
    case = fuzz.Case(
        "coco", "annotations/instances_train.json", fuzz.FILES["coco"]["annotations/instances_train.json"].encode(), ""
    )

    def outcome(action):
        monkeypatch.setattr(fuzz, "read", lambda *arguments, **options: action())
        return reader.outcome(case)[0]

    def complain(text):
        raise fuzz.UserError(text)

    assert outcome(lambda: (tmp_path / "secret").open().close()) == "outside"
    assert outcome(lambda: complain("two lines\nof text")) == "many lines"
    assert outcome(lambda: complain("one line of text")) == "refused"
