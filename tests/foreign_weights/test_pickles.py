"""Arrays are read from pickles without unpickling: files that would call a function are refused and call nothing."""

import collections
import os
import pickle
import struct
import sys

import numpy as np
import pytest

from detect.errors import UserError
from detect.foreign_weights.pickles import read_pickle


def written(folder, content, protocol=4):
    path = folder / "file.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


ARRAYS = {
    "none": np.zeros((0, 3), np.float32),
    "one": np.array(2.5),
    "row": np.arange(5, dtype=np.float32),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
    "big-endian": np.arange(4, dtype=">i4"),
    "bytes": np.array([[0, 255]], np.uint8),
    "booleans": np.array([True, False]),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_back_from_every_protocol(tmp_path, protocol):
    read = read_pickle(written(tmp_path, {"model": ARRAYS, "__author__": "nobody"}, protocol))
    assert read["__author__"] == "nobody" and read["model"].keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert read["model"][name].dtype == array.dtype, name
        np.testing.assert_array_equal(read["model"][name], array, strict=True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back_from_every_protocol(tmp_path, protocol):
    content = {
        "numbers": [0, -1, 255, 70000, 2**40, -(2**70), 0.1, True, False, None],
        "texts": ["", "é", "long" * 100],
        "bytes": [b"", b"\x00\xff" * 200],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        3: collections.OrderedDict(a={}, b=[[]]),
    }
    content["again"] = content["texts"]
    read = read_pickle(written(tmp_path, content, protocol))
    assert read == content
    assert read["again"] is read["texts"]


def test_a_file_of_python_2_is_latin_1(tmp_path):
    # {'a': dtype('<f4') array [1.0]} with byte strings, as protocol 2 of Python 2 writes it.
    program = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x04\x00\x00\x80\x3ftbs."
    )
    np.testing.assert_array_equal(read_pickle(written(tmp_path, program))["a"], np.float32([1]), strict=True)


class Calls:
    """Object that is pickled as a function call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Persistent(pickle.Pickler):
    def persistent_id(self, value):
        return "elsewhere" if value == "secret" else None


def persistent(folder):
    with (folder / "made.pkl").open("wb") as file:
        Persistent(file).dump({"model": "secret"})
    return (folder / "made.pkl").read_bytes()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
FLOATS = (
    b"cnumpy\ndtype\n"
    + text("f4")
    + b"\x89\x88\x87R(K\x03"
    + text("<")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)


def array_of(shape, data):
    """Pickle a dict with an array of a false shape."""
    sides = b"".join(b"\x8a\x08" + struct.pack("<q", side) for side in shape)
    state = b"(K\x01(" + sides + b"t" + FLOATS + b"\x89C" + bytes([len(data)]) + data + b"t"
    return b"\x80\x03}" + text("a") + RECONSTRUCT + state + b"bs."


MALICIOUS = {
    "a call": ({"model": Calls(os.system, "touch executed")}, "a call of .*'system'"),
    "a call of a builtin": ({"model": Calls(eval, "open('executed', 'w')")}, "'eval'"),
    "a name from the stack": (
        b"\x80\x04" + text("posix") + text("system") + b"\x93" + text("touch executed") + b"\x85R.",
        "'system'",
    ),
    "a dotted name": (b"\x80\x04" + text("numpy") + text("ndarray.tofile") + b"\x93.", "'ndarray.tofile'"),
    "names that are numbers": (b"\x80\x04K\x01K\x02\x93.", "a call of 1 2"),
    "getattr, from the memo": (
        b"\x80\x04c__builtin__\ngetattr\n\x94cnumpy\nndarray\n\x94h\x00h\x01" + text("__class__") + b"\x86R.",
        "'getattr'",
    ),
    "an instance": (b"(" + text("touch executed") + b"ios\nsystem\n.", "the instruction INST"),
    "a new object": (b"\x80\x04cnumpy\nndarray\n)\x81.", "the instruction NEWOBJ"),
    "an extension": (b"\x80\x02\x82\x01.", "the instruction EXT1"),
    "an array by its class": (b"\x80\x03cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R.", "a call of ndarray"),
    "a codec that grows": (b"\x80\x03c_codecs\nencode\n" + text("a") + text("hex") + b"\x86R.", "a call of encode"),
    "a class that is changed": (
        b"\x80\x03cnumpy\nndarray\n}" + text("shape") + b"K\x00sb.",
        "the state of an unknown object",
    ),
    "objects": ({"a": np.array([{}], object)}, "an array of dtype 'O8'"),
    "records": ({"a": np.zeros(2, [("x", "f4")])}, "the state of an unknown object"),
    "dates": ({"a": np.zeros(2, "M8[s]")}, "dtype 'M8'"),
    "a huge shape": (array_of((2**40,), b"1234"), r"of shape \(1099511627776,\) in 4 bytes"),
    "a shape that overflows": (array_of((2**33, 2**31), b""), "an array of shape .* in"),
    "a negative shape": (array_of((-1, -1), b"1234"), "an array of shape .* in"),
    "an array that is never filled": (b"\x80\x03}" + text("a") + RECONSTRUCT + b"s.", "an array without content"),
    "deep tuples as a key": (b"\x80\x02})" + b"\x85" * 10**5 + b"Ns.", "keys other than strings and integers"),
}  # fmt: skip


@pytest.mark.parametrize("case", [*MALICIOUS, "a reference to outside"])
def test_other_content_is_refused_and_nothing_is_executed(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    content, message = MALICIOUS.get(case) or (persistent(tmp_path), "the instruction BINPERSID")
    path, before = written(tmp_path, content), set(sys.modules)
    with pytest.raises(UserError, match=message) as error:
        read_pickle(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 400
    assert not (tmp_path / "executed").exists() and set(sys.modules) == before


def test_these_files_would_run_code_if_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for case in ("a call", "a name from the stack", "an instance"):
        pickle.loads(written(tmp_path, MALICIOUS[case][0]).read_bytes())
        (tmp_path / "executed").unlink()


def test_encoded_bytes_are_limited(tmp_path):
    long = text("a" * 1000)
    program = b"\x80\x03]c_codecs\nencode\nq\x00" + long + b"q\x01" + b"h\x00h\x01" + text("latin1") + b"\x86R"
    assert read_pickle(written(tmp_path, program + b".")) == b"a" * 1000
    with pytest.raises(UserError, match="strings of more bytes than the file has"):
        read_pickle(written(tmp_path, program + (b"h\x00h\x01" + text("latin1") + b"\x86R") * 20 + b"."))


def test_deep_nesting(tmp_path):
    read = read_pickle(written(tmp_path, b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."))
    assert isinstance(read, list)


@pytest.mark.parametrize("part", [0, 1, 10, 0.5, -1])
def test_a_truncated_file_is_refused(tmp_path, part):
    whole = pickle.dumps({"model": ARRAYS}, protocol=3)
    path = written(tmp_path, whole[: int(part * len(whole)) if isinstance(part, float) else part])
    with pytest.raises(UserError, match="not a pickle, or damaged") as error:
        read_pickle(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + bytes(100),
        b"hello",
        b"\x80\x03h\x05.",  # not in the memo
        b"\x80\x030.",  # nothing on the stack
        b"\x80\x03t.",  # no mark
        b"\x80\x03}K\x01u.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc",  # bytes of a length that no file has
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc",
        b"\x80\x03K\x01r\xff\xff\xff\x7f0.",  # a place in the memo for which a table would take gigabytes
    ],
)
def test_invalid_programs_are_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"file\.pkl: ") as error:
        read_pickle(written(tmp_path, content))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.pkl: No such file"):
        read_pickle(tmp_path / "none.pkl")
