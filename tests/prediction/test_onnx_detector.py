import json
import subprocess
import sys

import numpy as np
import pytest

from detect.data.dataset import Dataset
from detect.data.records import Record
from detect.errors import UserError
from detect.prediction.onnx_detector import OnnxDetector, physical_cores, predict_dataset, thread_count
from detect.prediction.sources import Frame

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

METADATA = {"classes": ["cat", "dog"], "category_ids": [7, 9], "score": 0.1, "config": {}}


def write(path, metadata=METADATA, outputs=("boxes", "scores", "labels", "count"), external=False):
    """Write a model that detects a cat of score 0.9 and a dog of score 0.1 + the first pixel / 510 in every image."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "two_boxes": np.array([[[1, 2, 5, 6], [-1, 0, 99, 4], [0, 0, 0, 0]]], np.float32),
        "cat": np.array([[0.9]], np.float32),
        "blank": np.array([[0.0]], np.float32),
        "their_labels": np.array([[0, 1, 0]]),
        "two": np.array([2]),
        "tenth": np.array(0.1, np.float32),
        "most": np.array(510, np.float32),
        "one": np.array([1]),
        "three": np.array([3]),
        "four": np.array([4]),
        "corner": np.zeros(3, np.int64),
        "ones": np.ones(3, np.int64),
        "flat": np.array([-1, 1]),
        "axes": np.array([1, 2, 3]),
    }
    node = helper.make_node
    nodes = [
        node("Shape", ["images"], ["batch"], start=0, end=1),
        node("Slice", ["images", "corner", "ones", "axes"], ["pixel"]),
        node("Reshape", ["pixel", "flat"], ["red"]),
        node("Cast", ["red"], ["bright"], to=TensorProto.FLOAT),
        node("Div", ["bright", "most"], ["part"]),
        node("Add", ["part", "tenth"], ["dog"]),
        node("Concat", ["batch", "one"], ["column"], axis=0),
        node("Expand", ["cat", "column"], ["cats"]),
        node("Expand", ["blank", "column"], ["blanks"]),
        node("Concat", ["cats", "dog", "blanks"], [outputs[1]], axis=1),
        node("Concat", ["batch", "three"], ["rows"], axis=0),
        node("Expand", ["their_labels", "rows"], [outputs[2]]),
        node("Concat", ["batch", "three", "four"], ["all_boxes"], axis=0),
        node("Expand", ["two_boxes", "all_boxes"], [outputs[0]]),
        node("Expand", ["two", "batch"], [outputs[3]]),
    ]
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT64)
    shapes = (["B", 3, 4], ["B", 3], ["B", 3], ["B"])
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "made",
        [info("images", TensorProto.UINT8, ["B", "H", "W", 3])],
        [info(*one) for one in zip(outputs, kinds, shapes, strict=True)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    if external:
        secret = model.graph.initializer[0]
        secret.ClearField("raw_data")
        secret.data_location = TensorProto.EXTERNAL
        secret.external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    return path


def make_image(height, width, red):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[0, 0] = red, 255, 255
    return pixels


def test_results_by_hand(tmp_path):
    model = OnnxDetector(write(tmp_path / "a.onnx"))
    assert model.classes == ("cat", "dog") and model.category_ids == (7, 9) and model.score == 0.1
    (result,) = model.predict(make_image(4, 8, red=255))
    assert result.size == (4, 8) and result.names == ("cat", "dog") and result.category_ids == (7, 9)
    np.testing.assert_array_equal(result.boxes, [[1, 2, 5, 4], [0, 0, 8, 4]])  # clipped to the image
    np.testing.assert_allclose(result.scores, [0.9, 0.6], rtol=1e-6)


def test_masks_by_hand(tmp_path):
    """Each box has a mask of its left half; the padding has none."""
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(write(tmp_path / "a.onnx"))
    cells = np.zeros((1, 3, 4, 4), np.float32)
    cells[:, :2, :, :2] = 1
    model.graph.initializer.extend(
        [numpy_helper.from_array(cells, "cells"), numpy_helper.from_array(np.array([1, 1, 1]), "any")]
    )
    model.graph.node.extend(
        [
            helper.make_node("Concat", ["batch", "any"], ["all_masks"], axis=0),
            helper.make_node("Expand", ["cells", "all_masks"], ["masks"]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("masks", TensorProto.FLOAT, ["B", 3, 4, 4]))
    onnx.save(model, tmp_path / "b.onnx")
    detector = OnnxDetector(tmp_path / "b.onnx")
    one, two = detector.predict([make_image(4, 8, red=255)] * 2, batch_size=2)
    assert detector.predicts_masks and not OnnxDetector(tmp_path / "a.onnx").predicts_masks
    for result in (one, two):
        np.testing.assert_array_equal(result.mask_probabilities, cells[0, :2])
        assert result.masks.shape == (2, 4, 8) and result.masks[1].tolist() == [[True] * 4 + [False] * 4] * 4
    assert [len(result.encoded_masks()) for result in detector.predict(make_image(4, 8, red=255), score=0.7)] == [1]


def test_the_repr_names_file_and_classes(tmp_path):
    path = write(tmp_path / "a.onnx")
    assert repr(OnnxDetector(path)) == f"OnnxDetector({str(path)!r}, score ≥ 0.1, 2 classes: cat, dog)"


def test_no_images_give_no_results(tmp_path):
    assert list(OnnxDetector(write(tmp_path / "a.onnx")).predict([])) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_the_batch_size_does_not_change_results(tmp_path, batch_size):
    model = OnnxDetector(write(tmp_path / "a.onnx"))
    sizes = [(4, 8), (4, 8), (4, 8), (5, 8), (4, 8), (4, 8)]
    pixels = [make_image(*size, red=10 * place) for place, size in enumerate(sizes)]
    results = list(model.predict(iter(pixels), batch_size=batch_size))
    assert [result.size for result in results] == sizes
    np.testing.assert_allclose([result.scores[1] for result in results], 0.1 + np.arange(6) * 10 / 510, rtol=1e-6)


def test_a_batch_has_images_of_one_size(tmp_path, monkeypatch):
    model, seen = OnnxDetector(write(tmp_path / "a.onnx")), []
    monkeypatch.setattr(OnnxDetector, "__call__", lambda self, batch: seen.append(len(batch)) or iter(()))
    list(model.predict([make_image(*size, 0) for size in [(4, 8)] * 3 + [(8, 4), (4, 8), (4, 8)]], batch_size=2))
    assert seen == [2, 1, 1, 2]


def test_score_and_class_filters(tmp_path):
    model, image = OnnxDetector(write(tmp_path / "a.onnx")), make_image(4, 8, red=255)
    assert [result.names for result in model.predict(image, score=0.7)] == [("cat",)]
    assert [result.names for result in model.predict(image, classes="dog")] == [("dog",)]
    assert [result.names for result in model.predict(image, score=0.7, classes=["dog"])] == [()]
    with pytest.raises(UserError, match="was exported with"):
        model.predict(image, score=0.05)
    with pytest.raises(UserError, match="'cow'"):
        model.predict(image, classes="cow")
    with pytest.raises(UserError, match="batch_size"):
        model.predict(image, batch_size=0)


def test_frames_keep_path_and_index(tmp_path):
    model = OnnxDetector(write(tmp_path / "a.onnx"))
    video, file = (Frame(make_image(4, 8, 0), "clip.mp4", 3), Frame(make_image(4, 8, 0), "a.jpg"))
    one, two = model.predict([video, file], batch_size=2)
    assert (one.path, one.index, two.path, two.index) == ("clip.mp4", 3, "a.jpg", None)
    assert one.pixels is not None and two.pixels is None  # the image can be read again


def test_predictions_of_a_split(tmp_path):
    from PIL import Image

    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, red in zip(paths, (0, 255), strict=True):
        Image.fromarray(make_image(4, 8, red)).save(path)
    nothing = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool), np.empty(0, bool), np.empty(0)
    records = tuple(Record(id, path, 8, 4, *nothing) for id, path in zip((30, 20), paths, strict=True))
    model = OnnxDetector(write(tmp_path / "a.onnx"))
    predictions = list(predict_dataset(model, Dataset(tmp_path, "val", "coco", ("cat", "dog"), (7, 9), records)))
    assert [one.image_id for one in predictions] == [30, 20]
    np.testing.assert_allclose([one.scores for one in predictions], [[0.9, 0.1], [0.9, 0.6]], rtol=1e-6)
    np.testing.assert_array_equal(predictions[0].labels, [0, 1])
    with pytest.raises(UserError, match="cat, dog"):
        list(predict_dataset(model, Dataset(tmp_path, "val", "coco", ("dog", "cat"), (7, 9), records)))


@pytest.mark.parametrize("lost", METADATA)
def test_files_of_other_programs_are_refused(tmp_path, lost):
    path = write(tmp_path / "a.onnx", {key: value for key, value in METADATA.items() if key != lost})
    with pytest.raises(UserError, match="not an ONNX file of detect export"):
        OnnxDetector(path)


def test_other_outputs_are_refused(tmp_path):
    with pytest.raises(UserError, match="not an ONNX file of detect export"):
        OnnxDetector(write(tmp_path / "a.onnx", outputs=("dets", "scores", "labels", "count")))


def test_damaged_and_missing_files_are_refused_in_one_line(tmp_path):
    whole = write(tmp_path / "a.onnx").read_bytes()
    for name, content in {"empty": b"", "text": b"no model", "half": whole[: len(whole) // 2]}.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.onnx: ") as error:
            OnnxDetector(tmp_path / f"{name}.onnx")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="No such file"):
        OnnxDetector(tmp_path / "b.onnx")


def test_weights_in_other_files_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(48))
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(UserError, match="other files"):
        OnnxDetector(write(folder / "a.onnx", external=True))


def test_torch_is_not_needed(tmp_path):
    write(tmp_path / "a.onnx")
    program = (
        "import sys, numpy as np\n"
        "import detect\n"
        f"(result,) = detect.load({str(tmp_path / 'a.onnx')!r}).predict(np.zeros((4, 8, 3), np.uint8))\n"
        "assert result.names == ('cat', 'dog')\n"
        "heavy = {'torch', 'torchvision', 'lightning', 'numba', 'albumentations'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_physical_cores_count_hyper_threads_once(monkeypatch, tmp_path):
    import os

    assert 1 <= physical_cores() <= os.cpu_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    assert physical_cores() == 1


@pytest.mark.parametrize(("variable", "threads"), [("3", 3), ("0", None), ("two", None), ("", None)])
def test_the_environment_sets_the_threads(monkeypatch, variable, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert thread_count() == (threads or physical_cores())
