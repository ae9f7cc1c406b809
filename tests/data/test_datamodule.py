import json
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from detect.curation.shapes import make_shapes
from detect.data.canvases import Item
from detect.data.datamodule import DetectionData
from detect.data.options import DataOptions
from detect.data.transforms import Resize
from detect.errors import UserError
from detect.proposals.store import ProposalStore, digest

ROTATE = ({"RandomRotate90": {"p": 1.0}}, {"HorizontalFlip": {"p": 0.5}}, {"ColorJitter": {"p": 1.0}})


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return make_shapes(folder, images={"train": 8, "val": 3, "none": 0}, size=(64, 96), progress=False)


def data(root: Path, **options) -> DetectionData:
    defaults = {"short_side": (48, 64), "long_side": 96, "batch_size": 2, "eval_batch_size": 2, "workers": 0}
    return DetectionData(DataOptions(root=root, **(defaults | options)), seed=3)


def epochs(source: DetectionData, count: int) -> list:
    loader = source.train_dataloader()
    batches = []
    for epoch in range(count):
        loader.batch_sampler.set_epoch(epoch)
        batches.append(list(loader))
    return batches


@pytest.fixture(scope="module")
def two_epochs(shapes) -> dict[int, list]:
    """Batches of two epochs, by the number of workers."""
    return {workers: epochs(data(shapes, augment=ROTATE, workers=workers), 2) for workers in (0, 1, 2)}


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(two_epochs, workers):
    for alone, shared in zip(two_epochs[0], two_epochs[workers], strict=True):
        for one, other in zip(alone, shared, strict=True):
            assert torch.equal(one.ids, other.ids) and torch.equal(one.images.pixels, other.images.pixels)
            assert torch.equal(one.targets.boxes, other.targets.boxes)


def test_a_process_ends_although_its_workers_are_amid_an_epoch(shapes):
    """Workers ignore the signal that Python ends them with, so that a cluster's signal cannot kill them early."""
    script = f"""
from detect.data.datamodule import DetectionData
from detect.data.options import DataOptions
batches = iter(DetectionData(DataOptions(root={str(shapes)!r}, workers=2)).train_dataloader())
next(batches)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, cwd=Path(__file__).parents[2])


def test_two_workers_repeat_no_augmentation_in_two_epochs(two_epochs):
    seen = Counter()
    for batch in (batch for epoch in two_epochs[2] for batch in epoch):
        for id, pixels, (height, width) in zip(batch.ids, batch.images.pixels, batch.images.sizes, strict=True):
            seen[int(id), pixels[:, :height, :width].numpy().tobytes()] += 1
    assert len(seen) >= 16 and set(seen.values()) == {1}


def test_every_epoch_shows_every_image_in_another_order(two_epochs):
    orders = [[id for batch in epoch for id in batch.ids.tolist()] for epoch in two_epochs[0]]
    assert set(orders[0]) == set(orders[1]) == set(range(1, 9)) and orders[0] != orders[1]
    assert all(len(batch) == 2 for epoch in two_epochs[0] for batch in epoch)


def test_turned_images_stay_within_their_canvas_with_their_boxes(two_epochs):
    for batch in (batch for epoch in two_epochs[0] for batch in epoch):
        canvas = batch.images.pixels.shape[2:]
        for size, boxes, valid in zip(batch.images.sizes, batch.targets.boxes, batch.targets.valid, strict=True):
            assert (size <= torch.tensor(canvas)).all()
            inside = boxes[valid]
            assert (inside >= 0).all() and (inside <= size.flip(0).repeat(2) + 1e-3).all()
            assert (inside[:, 2:] > inside[:, :2]).all()


def test_evaluation_shows_every_image_once_as_it_is(shapes):
    source = data(shapes, augment=ROTATE)
    dataset = source.split("val")
    batches = list(source.eval_loader(dataset))
    assert sorted(id for batch in batches for id in batch.ids.tolist()) == [1, 2, 3]
    records = {record.id: record for record in dataset.records}
    for batch in batches:
        for place, id in enumerate(batch.ids.tolist()):
            record = records[id]
            assert tuple(batch.images.sizes[place]) == Resize(64, 96).size(record.height, record.width)
            boxes = batch.targets.boxes[place][batch.targets.valid[place]] / batch.scales[place].repeat(2)
            np.testing.assert_allclose(boxes, record.boxes, atol=1e-4)


def coco(root: Path, annotations: list[dict], size=(40, 60)) -> Path:
    """Write a data set of one black image."""
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    cv2.imwrite(str(root / "train" / "1.png"), np.zeros((*size, 3), np.uint8))
    defaults = {"image_id": 1, "area": 1, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": size[0], "width": size[1]}],
        "annotations": [defaults | {"id": 1 + place} | one for place, one in enumerate(annotations)],
        "categories": [{"id": 4, "name": "a"}, {"id": 9, "name": "b"}],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root


def test_crowds_and_labels_follow_their_boxes(tmp_path):
    boxes = [
        {"bbox": [1, 1, 5, 5], "category_id": 9},
        {"bbox": [30, 10, 10, 20], "category_id": 4, "iscrowd": 1},
        {"bbox": [40, 10, 12, 20], "category_id": 9},
    ]
    crop = ({"Crop": {"x_min": 20, "y_min": 0, "x_max": 60, "y_max": 40, "p": 1.0}}, {"HorizontalFlip": {"p": 1.0}})
    source = data(coco(tmp_path, boxes), augment=crop, short_side=(80,), long_side=200, batch_size=1)
    assert source.classes == ("a", "b")
    (batch,) = list(source.train_dataloader())
    targets = batch.targets
    # The crop is 40 × 40 and grows to 80 × 80 (though planned as 80 × 120); x → 2 · (40 - (x - 20)).
    assert batch.images.sizes.tolist() == [[80, 80]]
    (valid,) = targets.valid
    np.testing.assert_allclose(targets.boxes[0, valid], [[40, 20, 60, 60], [16, 20, 40, 60]], atol=1e-3)
    assert targets.labels[0, valid].tolist() == [0, 1] and targets.crowd[0, valid].tolist() == [True, False]


def test_a_turned_image_is_shrunk_into_its_canvas(tmp_path):
    source = data(coco(tmp_path, [{"bbox": [0, 0, 60, 40], "category_id": 4}]), augment=({"Transpose": {"p": 1.0}},))
    sample = source.train_dataloader().dataset[Item(0, Resize(40, 60), canvas=(32, 64), seed=0)]
    # Transposed it is 60 × 40, and 32 × 21 on a canvas of 32 × 64.
    assert sample.image.shape[:2] == (32, 21) and sample.scale == (21 / 40, 32 / 60)
    np.testing.assert_allclose(sample.boxes, [[0, 0, 21, 32]], atol=1e-3)


def test_an_image_without_objects_is_trained_on(tmp_path):
    crop = ({"Crop": {"x_min": 30, "y_min": 0, "x_max": 60, "y_max": 40, "p": 1.0}},)
    source = data(coco(tmp_path, [{"bbox": [1, 1, 5, 5], "category_id": 9}]), batch_size=1, augment=crop)
    (batch,) = list(source.train_dataloader())
    assert batch.ids.tolist() == [1] and not batch.targets.valid.any()


def test_a_split_without_a_box_is_evaluated_but_not_trained_on(tmp_path):
    source = data(coco(tmp_path, []), val="train")
    (batch,) = list(source.val_dataloader())
    assert not batch.targets.valid.any()
    with pytest.raises(UserError, match=r"the split train, of 1 images, has no box to train on"):
        source.train_dataloader()


def test_a_split_is_read_once_whatever_its_name(shapes):
    source = data(shapes)
    assert source.split("valid") is source.split("val")


def test_labels_follow_the_classes_of_a_model(tmp_path):
    root = coco(tmp_path, [{"bbox": [1, 1, 5, 5], "category_id": 9}])
    source = DetectionData(DataOptions(root=root, workers=0), classes=("b", "a"))
    assert source.train.records[0].labels.tolist() == [0] and source.classes == ("b", "a")


def test_too_many_objects_are_found_when_the_split_is_read(tmp_path):
    root = coco(tmp_path, [{"bbox": [1, 1, 5, 5], "category_id": 9}] * 3)
    with pytest.raises(UserError, match=r"1\.png: 3 boxes, but data.max_objects is 2; raise it with --data.max_obj"):
        data(root, max_objects=2).split("train")
    assert len(data(root, max_objects=3).train.records[0].boxes) == 3


@pytest.mark.parametrize("p", [1.0, 0.5])
def test_a_crop_larger_than_an_image_is_found_before_the_first_batch(tmp_path, p):
    crop = ({"RandomCrop": {"height": 50, "width": 50, "p": p}},)
    root = coco(tmp_path, [{"bbox": [1, 1, 5, 5], "category_id": 9}])
    with pytest.raises(UserError) as error:
        data(root, augment=crop).train  # noqa: B018
    assert f"{root / 'train' / '1.png'}: data.augment: CropSizeError: " in str(error.value)
    assert "on an image of 40 × 60; choose arguments" in str(error.value)


def test_an_augmentation_that_fails_in_a_worker_is_one_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr("detect.data.datamodule.try_augmentation", lambda *arguments: None)
    crop = ({"RandomCrop": {"height": 50, "width": 50, "p": 1.0}},)
    root = coco(tmp_path, [{"bbox": [1, 1, 5, 5], "category_id": 9}])
    loader = data(root, augment=crop, workers=1).train_dataloader()
    with pytest.raises(UserError) as error:
        list(loader)
    assert f"{root / 'train' / '1.png'}: data.augment: CropSizeError: " in str(error.value).strip().splitlines()[-1]


@pytest.mark.parametrize("sides", [{"short_side": (800, 8193)}, {"long_side": 100_000}, {"short_side": (0,)}])
def test_sides_that_no_memory_holds(sides):
    with pytest.raises(ValidationError, match=r"8192|greater than 0"):
        DataOptions(**sides)


def test_a_split_without_images_is_a_mistake(shapes):
    source = data(shapes)
    with pytest.raises(UserError, match="the split none has no images"):
        source.eval_loader(source.split("none"))


# ---- proposals from a store ------------------------------------------------------------------------------------------


@pytest.fixture
def stored(shapes, tmp_path) -> Path:
    """Proposal store with the ground truths and the whole image for each training and validation image."""
    source = data(shapes)
    with closing(ProposalStore(tmp_path / "store", {})) as store:
        for record in (*source.split("train").records, *source.split("val").records):
            boxes = np.vstack([record.boxes.round(), [[0, 0, record.width, record.height]]]).astype(np.float32)
            store.add(digest(record.path), record.path.name, boxes)
    return tmp_path / "store"


@pytest.mark.parametrize("workers", [0, 1])
def test_proposals_go_where_the_image_goes(shapes, stored, workers):
    source = data(shapes, proposals=stored, max_proposals=50, augment=ROTATE, workers=workers)
    for batch in source.train_dataloader():
        assert batch.proposals.boxes.shape == (2, 50, 4) and batch.proposals.valid.dtype == torch.bool
        for row in range(2):
            gt_boxes = batch.targets.boxes[row][batch.targets.valid[row]]
            proposals = batch.proposals.boxes[row][batch.proposals.valid[row]]
            assert len(proposals) == len(gt_boxes) + 1
            # Up to the rounding of the ground truths to whole pixels of the file.
            torch.testing.assert_close(proposals[:-1], gt_boxes, atol=0.75, rtol=0)
            height, width = batch.images.sizes[row].tolist()
            torch.testing.assert_close(proposals[-1], torch.tensor([0.0, 0, width, height]), atol=1e-3, rtol=0)


def test_the_best_proposals_are_taken_and_none_without_a_store(shapes, stored):
    source = data(shapes, proposals=stored, max_proposals=1)
    (batch, *_) = source.val_dataloader()
    assert batch.proposals.valid.all() and batch.proposals.boxes.shape == (2, 1, 4)
    torch.testing.assert_close(batch.proposals.boxes[:, 0], batch.targets.boxes[:, 0], atol=0.75, rtol=0)
    assert next(iter(data(shapes).val_dataloader())).proposals is None


def test_a_store_that_lacks_an_image_is_refused_at_once(shapes, stored, tmp_path):
    copy = shutil.copytree(shapes, tmp_path / "copy")
    assert data(copy, proposals=stored).train  # the path of a file does not matter
    image = sorted((copy / "images" / "train").iterdir())[3]
    cv2.imwrite(str(image), cv2.imread(str(image))[::-1])
    message = rf"no proposals for 1 new or changed images of .*copy train, first .*{image.name}; run detect propose"
    with pytest.raises(UserError, match=message):
        data(copy, proposals=stored).train  # noqa: B018
    with pytest.raises(UserError, match="gone: no such file"):
        data(shapes, proposals=tmp_path / "gone").train  # noqa: B018
