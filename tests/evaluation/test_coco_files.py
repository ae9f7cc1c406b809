"""Metrics of COCO files equal those of pycocotools on the same files."""

import io
import json
from codecs import BOM_UTF8
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detect.errors import UserError
from detect.evaluation.coco import METRICS, evaluate_coco_json
from detect.evaluation.coco_files import NOWHERE, read_ground_truth, read_results
from detect.report.gallery import thumbnail

GROUND_TRUTH = {
    "images": [{"id": 0, "file_name": "a.jpg", "width": 40, "height": 30}, {"id": 7}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}],
    "annotations": [{"id": 0, "image_id": 0, "category_id": 3, "bbox": [1, 2, 10.5, 20]}],
}
RESULTS = [{"image_id": 0, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 0.9}]


def metrics_of(ground_truth: Path, results: Path) -> dict:
    file = read_ground_truth(ground_truth)
    return evaluate_coco_json(file.content, read_results(results, file).content, file.dataset)


def write(folder: Path, ground_truth: object, results: object) -> tuple[Path, Path]:
    paths = folder / "instances.json", folder / "results.json"
    for path, content in zip(paths, (ground_truth, results), strict=True):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return paths


def test_reading(tmp_path):
    files = write(tmp_path, GROUND_TRUTH, RESULTS)
    file = read_ground_truth(files[0])
    dataset = file.dataset
    assert (dataset.classes, dataset.category_ids, file.num_skipped) == (("dog", "cat"), (1, 3), 0)
    first, second = dataset.records
    assert (first.id, first.width, first.height, first.path) == (0, 40, 30, NOWHERE / "a.jpg")
    np.testing.assert_array_equal(first.boxes, [[1, 2, 11.5, 22]])
    assert (first.labels.tolist(), first.areas.tolist(), first.crowd.tolist()) == ([1], [210.0], [False])
    assert (second.id, second.boxes.shape, second.width, second.height) == (7, (0, 4), 1, 1)
    results = read_results(files[1], file)
    (prediction,) = results.predictions
    assert results.content == RESULTS and results.notes == ()
    assert (prediction.image_id, prediction.labels.tolist(), prediction.scores.tolist()) == (0, [1], [0.9])
    assert file.content["annotations"][0]["id"] == 1  # pycocotools would not count a match with id 0


def test_a_byte_order_mark_is_read(tmp_path):
    files = write(tmp_path, GROUND_TRUTH, RESULTS)
    before = metrics_of(*files)
    for path in files:
        path.write_bytes(BOM_UTF8 + path.read_bytes())
    assert metrics_of(*files) == before and before["AP50"] > 0.999


def test_no_results_and_no_ground_truth(tmp_path):
    assert metrics_of(*write(tmp_path, GROUND_TRUTH, []))["AP"] == 0
    assert metrics_of(*write(tmp_path, {"images": [], "annotations": [], "categories": []}, []))["AP"] is None


def random_files(seed: int) -> tuple[dict, list]:
    """Return random contents: crowds, ties, unused classes, images without objects or results; ids from 1."""
    rng = np.random.default_rng(seed)
    images = [{"id": int(id), "width": 640, "height": 480} for id in rng.permutation(20)[: rng.integers(1, 8)]]
    categories = [{"id": int(id), "name": f"c{id}"} for id in rng.permutation(9)[: rng.integers(1, 5)]]

    def boxes(count: int) -> list[list[float]]:
        sides = rng.choice([8.0, 30.0, 95.7, 200.1], (count, 2)) * rng.uniform(0.5, 1, (count, 2))
        return np.concatenate([rng.uniform(0, 400, (count, 2)), sides], axis=1).tolist()

    annotations, results = [], []
    for image in images:
        objects = boxes(int(rng.integers(0, 12)))
        for box in objects:
            crowd, category = int(rng.random() < 0.1), rng.choice([one["id"] for one in categories])
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "category_id": int(category), "bbox": box}
                | {"iscrowd": crowd, "area": box[2] * box[3] * rng.uniform(0.3, 1)}
            )
        moved = [(np.array(box) + rng.normal(0, 4, 4)).clip(1).tolist() for box in objects * 3]
        for box in moved + boxes(int(rng.integers(0, 6))):
            category = int(rng.choice([one["id"] for one in categories]))
            score = float(rng.choice([0.1, 0.5, 0.9, rng.random()]))
            results.append({"image_id": image["id"], "category_id": category, "bbox": box, "score": score})
    return {"images": images, "categories": categories, "annotations": annotations}, results


def pycocotools(ground_truth: Path, results: Path) -> list[float]:
    with redirect_stdout(io.StringIO()):
        coco = COCO(str(ground_truth))
        evaluation = COCOeval(coco, coco.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def test_equals_pycocotools_on_the_same_files_to_the_last_bit(tmp_path):
    compared = 0
    for seed in range(60):
        ground_truth, results = random_files(seed)
        if not results:  # pycocotools cannot load an empty list
            continue
        files = write(tmp_path, {"info": {}, **ground_truth}, results)
        metrics = metrics_of(*files)
        ours = [-1.0 if metrics[name] is None else metrics[name] for name in METRICS]
        assert ours == pycocotools(*files), seed
        compared += 1
    assert compared > 50


def test_ids_from_zero_are_counted(tmp_path):
    ground_truth = GROUND_TRUTH | {"annotations": [{**GROUND_TRUTH["annotations"][0], "area": 210.0, "iscrowd": 0}]}
    files = write(tmp_path, {"info": {}, **ground_truth}, RESULTS)
    assert pycocotools(*files)[1] == 0  # the bug
    assert metrics_of(*files)["AP50"] > 0.999


def test_annotations_of_unlisted_images_are_skipped_and_counted(tmp_path):
    unlisted = {"id": 5, "image_id": 99, "category_id": 3, "bbox": [0, 0, 1, 1]}
    content = {**GROUND_TRUTH, "annotations": [*GROUND_TRUTH["annotations"], unlisted]}
    file = read_ground_truth(write(tmp_path, content, RESULTS)[0])
    assert file.num_skipped == 1 and len(file.content["annotations"]) == 1


@pytest.mark.parametrize(
    ("ground_truth", "results", "message"),
    [
        ("{", RESULTS, "instances.json: Invalid JSON"),
        ([], RESULTS, "instances.json: Input should be"),
        (GROUND_TRUTH | {"images": [{"id": 1}, {"id": 1}]}, [], "image 1 is listed twice"),
        (
            GROUND_TRUTH | {"categories": [{"id": 3, "name": "a"}, {"id": 4, "name": "a"}]},
            [],
            "two categories are named 'a'",
        ),
        (
            GROUND_TRUTH | {"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]},
            [],
            "category 3 is listed twice",
        ),
        (GROUND_TRUTH, {"annotations": []}, "results.json: Input should be"),
        (GROUND_TRUTH, [{**RESULTS[0], "image_id": 5}], "result 1 has image_id 5"),
        (GROUND_TRUTH, [{**RESULTS[0], "category_id": 2}], "result 1 has category_id 2"),
        (GROUND_TRUTH, [{**RESULTS[0], "score": float("nan")}], "0.score: Input should be a finite number"),
        (GROUND_TRUTH, [{**RESULTS[0], "bbox": [1, 2, 3, float("inf")]}], "0.bbox.3: Input should be a finite number"),
        (GROUND_TRUTH, [{**RESULTS[0], "bbox": [1, 2, 3]}], "0.bbox: List should have at least 4 items"),
        (
            GROUND_TRUTH,
            [{"image_id": 0, "category_id": 3, "segmentation": {}, "score": 1}],
            "neither bbox nor segm",
        ),
        (GROUND_TRUTH, "[" * 100_000, "results.json: Invalid JSON"),
    ],
)
def test_errors_in_files_are_one_line(tmp_path, ground_truth, results, message):
    with pytest.raises(UserError) as error:
        metrics_of(*write(tmp_path, ground_truth, results))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_files_and_names_that_lead_out(tmp_path):
    ground_truth, _ = write(tmp_path, GROUND_TRUTH, RESULTS)
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        read_results(tmp_path / "none.json", read_ground_truth(ground_truth))
    write(tmp_path, GROUND_TRUTH | {"images": [{"id": 0, "file_name": "../secret.jpg"}]}, RESULTS)
    with pytest.raises(UserError, match="leads out of"):
        read_ground_truth(ground_truth, tmp_path)


def test_files_that_only_the_json_names_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    for name in ("secret.png", str(tmp_path / "secret.png"), "", ".."):
        content = GROUND_TRUTH | {"images": [{"id": 0, "file_name": name, "width": 40, "height": 30}, {"id": 7}]}
        for record in read_ground_truth(write(tmp_path, content, RESULTS)[0]).dataset.records:
            assert thumbnail(record)["thumbnail"] is None
