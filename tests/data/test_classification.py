from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from detect.data.classification import ClassificationData, centre_crop, collate, whole_image
from detect.data.classification_options import ClassificationDataOptions
from detect.errors import UserError


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """Two classes of noise: 7 training images and 5 validation images."""
    root, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for split, counts in (("train", {"a": 4, "b": 3}), ("val", {"a": 3, "b": 2})):
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(256, size=(30, 40, 3), dtype=np.uint8)
                cv2.imwrite(str(root / split / name / f"{number}.png"), pixels)
    return root


def data(root: Path, **options) -> ClassificationData:
    defaults = {"size": 16, "resize": 20, "batch_size": 4, "eval_batch_size": 2, "workers": 0}
    return ClassificationData(ClassificationDataOptions(root=root, **(defaults | options)), seed=3)


def epochs(source: ClassificationData, count: int) -> list:
    loader = source.train_dataloader()
    batches = []
    for epoch in range(count):
        loader.batch_sampler.set_epoch(epoch)
        batches.append(list(loader))
    return batches


@pytest.fixture(scope="module")
def two_epochs(noise) -> dict[int, list]:
    """Batches of two epochs, by the number of workers."""
    return {workers: epochs(data(noise, workers=workers), 2) for workers in (0, 2)}


def test_workers_change_nothing(two_epochs):
    for alone, shared in zip(two_epochs[0], two_epochs[2], strict=True):
        for one, other in zip(alone, shared, strict=True):
            assert torch.equal(one.ids, other.ids) and torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)


def test_two_workers_repeat_no_crop_in_two_epochs(two_epochs):
    batches = [batch for epoch in two_epochs[2] for batch in epoch]
    seen = Counter(image.numpy().tobytes() for batch in batches for image in batch.images)
    assert len(seen) == 16 and set(seen.values()) == {1}  # the image that fills the last batch gets a new crop, too


def test_training_shows_every_image_in_another_order_in_full_batches(two_epochs):
    orders = [[id for batch in epoch for id in batch.ids.tolist()] for epoch in two_epochs[0]]
    assert set(orders[0]) == set(orders[1]) == set(range(7)) and orders[0] != orders[1]
    for batch in two_epochs[0][0]:
        assert len(batch) == 4 and batch.images.shape == (4, 3, 16, 16) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.tolist() == [0 if id < 4 else 1 for id in batch.ids.tolist()]


def test_one_image_fills_a_batch(tmp_path):
    (tmp_path / "train" / "only").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "train" / "only" / "1.png"), np.zeros((1, 1, 3), np.uint8))
    (batch,) = data(tmp_path, val=None).train_dataloader()
    assert batch.ids.tolist() == [0] * 4 and batch.images.shape == (4, 3, 16, 16)


def test_another_seed_is_another_order_and_the_same_seed_the_same(noise):
    def ids(seed: int) -> list[int]:
        options = ClassificationDataOptions(root=noise, size=16, resize=20, workers=0, batch_size=7)
        return next(iter(ClassificationData(options, seed=seed).train_dataloader())).ids.tolist()

    assert ids(3) == ids(3) != ids(4)


def test_evaluation_shows_the_middle_of_every_image_once(noise):
    source = data(noise)
    assert source.classes == ("a", "b") and source.split("valid") is source.val
    batches = list(source.val_dataloader())
    assert [batch.ids.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [label for batch in batches for label in batch.labels.tolist()] == [0, 0, 0, 1, 1]
    pixels = cv2.imread(str(noise / "val" / "a" / "0.png"))[..., ::-1]
    # 16 pixels of a short side of 20 are 24 pixels of 30, starting at row 3 and column 8.
    expected = cv2.resize(pixels[3:27, 8:32], (16, 16), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(batches[0].images[0].permute(1, 2, 0), expected)


def test_middle_by_hand():
    image = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(centre_crop(image, 3, 5), image[1:4, 2:5])
    np.testing.assert_array_equal(centre_crop(image, 5, 5), image[:, 1:6])
    assert centre_crop(np.zeros((1, 9000, 3), np.uint8), 8, 16).shape == (8, 8, 3)


def test_whole_images_come_one_by_one(noise):
    source = data(noise)
    batches = list(source.eval_loader(source.split("val"), whole=True))
    assert [batch.ids.tolist() for batch in batches] == [[0], [1], [2], [3], [4]]
    assert [batch.labels.tolist() for batch in batches] == [[0], [0], [0], [1], [1]]
    pixels = cv2.imread(str(noise / "val" / "a" / "0.png"))[..., ::-1]
    expected = cv2.resize(pixels, (27, 20), interpolation=cv2.INTER_AREA)  # 30 × 40 pixels
    np.testing.assert_array_equal(batches[0].images[0].permute(1, 2, 0), expected)


def test_whole_images_by_hand():
    image = np.arange(2 * 20, dtype=np.uint8).reshape(2, 20, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(whole_image(image[:, :3], 2), image[:, :3])
    np.testing.assert_array_equal(whole_image(image, 2), image[:, 2:18])  # 16 of 20 columns, eight times the rows
    np.testing.assert_array_equal(whole_image(image.transpose(1, 0, 2), 2), image[:, 2:18].transpose(1, 0, 2))
    assert whole_image(np.zeros((1, 9000, 3), np.uint8), 16).shape == (16, 128, 3)
    assert whole_image(np.zeros((40, 30, 3), np.uint8), 60).shape == (80, 60, 3)


def test_without_a_crop_training_sees_the_middle_too(noise):
    source = data(noise, crop=None, augment=())
    (train,) = data(noise, crop=None, augment=(), batch_size=7).train_dataloader()
    shown = {
        id: image
        for batch in source.eval_loader(source.train)
        for id, image in zip(batch.ids.tolist(), batch.images, strict=True)
    }
    for id, image in zip(train.ids.tolist(), train.images, strict=True):
        assert torch.equal(image, shown[id])
    (flipped,) = data(noise, crop=None, augment=({"HorizontalFlip": {"p": 1.0}},), batch_size=7).train_dataloader()
    assert torch.equal(flipped.ids, train.ids) and torch.equal(flipped.images.flip(-1), train.images)


def test_a_crop_of_everything_is_everything(noise):
    whole = {"scale": (1.0, 1.0), "ratio": (4 / 3, 4 / 3)}
    (batch,) = data(noise, crop=whole, augment=(), batch_size=7, size=20).train_dataloader()
    path = data(noise).train.images[int(batch.ids[0])]
    expected = cv2.resize(cv2.imread(str(path))[..., ::-1], (20, 20), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(batch.images[0].permute(1, 2, 0), expected)


def test_digits_as_they_are():
    source = data(Path("nowhere"), dataset="digits", val="test", size=8, resize=8, crop=None, augment=(), batch_size=64)
    batch = next(iter(source.train_dataloader()))
    assert batch.images.shape == (64, 3, 8, 8) and source.classes == tuple("0123456789")
    for id, image, label in zip(batch.ids.tolist(), batch.images, batch.labels.tolist(), strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), source.train.images[id])
        assert label == source.train.labels[id]
    assert sum(map(len, source.val_dataloader())) == 360


def test_a_run_that_goes_on_shuffles_as_its_epoch(noise, two_epochs):
    class Trainer:
        class fit_loop:  # noqa: N801
            class epoch_progress:  # noqa: N801
                class current:  # noqa: N801
                    processed = 1

            class epoch_loop:  # noqa: N801
                class batch_progress:  # noqa: N801
                    class current:  # noqa: N801
                        completed = 1

    source = data(noise)
    source.trainer = Trainer
    assert [batch.ids.tolist() for batch in source.train_dataloader()] == [b.ids.tolist() for b in two_epochs[0][1]][1:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_images(noise, monkeypatch, world_size):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)
    trained, evaluated = [], []
    for rank in range(world_size):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        source = data(noise, batch_size=2, eval_batch_size=1)
        trained.append([batch.ids.tolist() for batch in source.train_dataloader()])
        evaluated += [id for batch in source.val_dataloader() for id in batch.ids.tolist()]
    assert len({len(of_rank) for of_rank in trained}) == 1 and sorted(evaluated) == list(range(5))
    assert {id for of_rank in trained for batch in of_rank for id in batch} == set(range(7))


def test_labels_follow_the_classes_of_a_model(noise):
    source = ClassificationData(ClassificationDataOptions(root=noise), classes=("b", "a"))
    assert source.classes == ("b", "a") and source.split("val").labels.tolist() == [1, 1, 1, 0, 0]


def test_a_split_that_lacks_a_class_has_the_labels_of_training_whatever_is_asked_first(tmp_path):
    for folder in ("train/a", "train/b", "val/b"):
        (tmp_path / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / folder / "1.png"), np.zeros((4, 4, 3), np.uint8))
    source = data(tmp_path)
    assert source.split("val").labels.tolist() == [1] and source.classes == ("a", "b")


def test_no_validation_split(noise):
    source = data(noise, val=None)
    assert source.val is None and source.val_dataloader() == []


def test_a_batch_moves_whole():
    pixels = np.zeros((2, 2, 3), np.uint8)
    batch = collate([(pixels, 1, 7), (pixels, 0, 5)]).to("meta", non_blocking=True)
    assert batch.images.device.type == batch.labels.device.type == batch.ids.device.type == "meta" and len(batch) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 300},
        {"size": 0},
        {"crop": {"scale": (0.5, 0.1)}},
        {"crop": {"scale": (0, 1)}},
        {"crop": {"size": 224}},
        {"dataset": "mnist"},
    ],
)
def test_options_that_make_no_sense(wrong):
    with pytest.raises(ValidationError):
        ClassificationDataOptions(**wrong)


def test_augmentation_that_changes_the_size_is_a_mistake(noise):
    with pytest.raises(UserError, match=r"makes images of 9 × 10, but data\.size is 16; leave out"):
        next(iter(data(noise, augment=({"CenterCrop": {"height": 9, "width": 10}},)).train_dataloader()))
    with pytest.raises(UserError, match=r"train/./\d\.png: data\.augment: CropSizeError"):
        next(iter(data(noise, augment=({"CenterCrop": {"height": 99, "width": 10}},)).train_dataloader()))
