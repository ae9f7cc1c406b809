"""R-CNN and Fast R-CNN from a folder of images and a store to a checkpoint, killed wherever it may be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from detect.backbones import ResNetOptions
from detect.checkpoint import load_checkpoint
from detect.config import AlternatingOptions, Config, RCNNStagesOptions, SVMOptions
from detect.curation.propose import propose
from detect.data.datamodule import DetectionData
from detect.errors import UserError
from detect.models import (
    BoxHeadOptions,
    CropOptions,
    CropPredictorOptions,
    FastRCNNOptions,
    RCNNOptions,
    RegionHeadOptions,
)
from detect.prediction.evaluate import evaluate
from detect.prediction.prepare import prepare
from detect.training import rcnn_stages as stages
from detect.training.fit import fit
from detect.training.module import DetectorModule

NETWORK = ResNetOptions(depth=18, norm="batch", train_stages=5)
KINDS = ("features", "mining", "svms", "done")


@pytest.fixture(scope="module")
def store(shapes, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("proposals") / "shapes.db"
    propose([str(shapes)], path, processes=1)
    return path


@pytest.fixture(scope="module")
def rcnn(config, store) -> Config:
    """One pass of two steps; every negative is hard, so that mining keeps some of each image."""
    return replace(
        config,
        model=RCNNOptions(
            backbone=NETWORK,
            crop=CropOptions(size=32, context=2),
            region_head=RegionHeadOptions(batch_size_per_image=16, delta_weights=(1, 1, 1, 1)),
        ),
        data=replace(config.data, proposals=store, max_proposals=40),
        training=replace(
            config.training,
            epochs=1,
            recipe=RCNNStagesOptions(svm=SVMOptions(hard_margin=-100, evict_margin=-100)),
        ),
    )


def run(config: Config, out: Path, **options) -> Path:
    return fit(config, DetectionData(config.data), out, **options)[0]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def whole(rcnn, tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """The folder of an undisturbed run, and the arrays in the files of its stages."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    kept: dict[str, np.ndarray] = {}

    def keep(folder: Path, **_) -> None:
        for file in sorted(folder.rglob("*.npz")):
            with np.load(file) as content:
                kept.update({f"{file.stem} {name}": value for name, value in content.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detect.training.rcnn_stages.shutil.rmtree", keep)
        run(rcnn, out)
    return out, kept


def test_the_checkpoint_is_one_like_any_other(whole, rcnn):
    out, _ = whole
    checkpoint = load_checkpoint(out / "checkpoints" / "best.ckpt")
    assert checkpoint.config.model == rcnn.model
    predictor = checkpoint.model.region_head.predictor
    assert predictor.svms.weight.any() and predictor.regressors.weight.any()
    data = DetectionData(rcnn.data, checkpoint.classes)
    dataset = data.split("val")
    metrics, evaluator = evaluate(prepare(checkpoint.model), data.eval_loader(dataset), dataset, torch.device("cpu"))
    assert len(evaluator.predictions) == 2 and 0 <= metrics["AP"] <= 1


def test_the_stages_are_scikit_learns(whole, rcnn):
    """On the features that were put down: SVMs of all negatives at once, ridge regression without whitening."""
    out, kept = whole
    model = load_checkpoint(out / "checkpoints" / "best.ckpt").model
    images = sorted({name.split()[0] for name in kept if name[0] == "0"})
    near = np.concatenate([kept[f"{image} near"] for image in images]).astype(np.float64)
    labels = np.concatenate([kept[f"{image} near_labels"] for image in images])
    deltas = np.concatenate([kept[f"{image} deltas"] for image in images]).astype(np.float64)
    scale = 20 / np.concatenate([kept[f"{image} pool5_norms"] for image in images]).mean(dtype=np.float64)
    label = int(np.bincount(labels).argmax())
    x = np.concatenate([near[labels == label] * scale, np.ones((int((labels == label).sum()), 1))], axis=1)
    y = deltas[labels == label]
    ridge = Ridge(alpha=1000, fit_intercept=False).fit(x, y - y.mean(axis=0))
    regressors = model.region_head.predictor.regressors
    found = regressors.weight.view(model.num_classes, 4, -1)[label].numpy()
    np.testing.assert_allclose(found, ridge.coef_[:, :-1] * scale, atol=1e-5)
    bias = regressors.bias.view(model.num_classes, 4)[label].numpy()
    np.testing.assert_allclose(bias, ridge.coef_[:, -1] + y.mean(axis=0), atol=1e-5)

    positives = np.concatenate([kept[f"{image} positives"] for image in images])
    labels_of_positives = np.concatenate([kept[f"{image} labels"] for image in images])
    assert np.bincount(labels_of_positives, minlength=model.num_classes).sum() == len(positives)
    np.testing.assert_array_equal(kept["svms weights"], model.region_head.predictor.svms.weight.numpy())


@pytest.mark.parametrize("place", ["fine_tuning", "collect", "mine", "regress"])
def test_a_run_that_was_killed_ends_as_the_whole_one(place, whole, rcnn, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    def after(count: int, function):
        calls = iter(range(10**6))

        def once_too_often(*args, **kwargs):
            if next(calls) == count:
                raise KilledError
            return function(*args, **kwargs)

        return once_too_often

    with monkeypatch.context() as patch:
        if place == "fine_tuning":
            patch.setattr(DetectorModule, "training_step", after(1, DetectorModule.training_step))
        if place == "collect":
            patch.setattr(stages, "_save", after(2, stages._save))
        if place == "mine":
            patch.setattr(stages, "SAVE_SECONDS", -1.0)
            patch.setattr(stages.SVMTrainer, "add", after(2, stages.SVMTrainer.add))
        if place == "regress":
            patch.setattr(stages, "fit_regressors", after(0, stages.fit_regressors))
        with pytest.raises(KilledError):
            run(rcnn, tmp_path)
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()
    if place == "mine":
        assert stages._load(tmp_path / "stages" / "mining.npz")["images"] == 2
    best = run(rcnn, tmp_path, resume=True)
    one, other = weights(best), weights(whole[0] / "checkpoints" / "best.ckpt")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "stages").exists()


def test_without_fine_tuning_the_network_stays(rcnn, tmp_path):
    options = replace(rcnn.model, predictor=CropPredictorOptions(regression=False))
    recipe = replace(rcnn.training.recipe, fine_tuning=False)
    best = run(replace(rcnn, model=options, training=replace(rcnn.training, recipe=recipe)), tmp_path)
    torch.manual_seed(0)
    assert not (tmp_path / "fine_tuning").exists()
    assert "model.region_head.predictor.regressors.weight" not in weights(best)


def test_softmax_without_regression_is_ready_after_fine_tuning(rcnn, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "collect", None)
    predictor = CropPredictorOptions(classifier="softmax", regression=False)
    tuned = run(replace(rcnn, model=replace(rcnn.model, predictor=predictor)), tmp_path)
    other = weights(tmp_path / "fine_tuning" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(value, other[name]) for name, value in weights(tuned).items())


# ---- Fast R-CNN ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fast_rcnn(config, store) -> Config:
    return replace(
        config,
        model=FastRCNNOptions(backbone=NETWORK, box_head=BoxHeadOptions(layers=1, channels=32)),
        data=replace(config.data, proposals=store, max_proposals=40),
        training=replace(config.training, epochs=1),
    )


def test_fast_rcnn_trains_with_deltas_measured_on_its_proposals(fast_rcnn, tmp_path):
    checkpoint = load_checkpoint(run(fast_rcnn, tmp_path))
    statistics = checkpoint.model.region_head.statistics
    assert (statistics.std != 1).any() and (statistics.std > 0).all()
    assert statistics.mean.abs().max() < 0.5


def test_deltas_are_learned_as_they_are_decoded(rcnn, shapes, tmp_path):
    """With other weights of deltas the boxes move as far."""
    moved = []
    for weights in ((1, 1, 1, 1), (10, 10, 5, 5)):
        config = replace(
            rcnn, model=replace(rcnn.model, region_head=replace(rcnn.model.region_head, delta_weights=weights))
        )
        model = load_checkpoint(run(config, tmp_path / str(weights[0]))).model
        regressors, factors = (
            model.region_head.predictor.regressors,
            torch.tensor(model.region_head.box_coder.weights).repeat(model.num_classes),
        )
        moved.append(regressors.weight / factors[:, None])
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-6)


def test_nothing_in_a_crowd_is_a_negative(rcnn):
    data = DetectionData(rcnn.data)
    batch = next(iter(data.eval_loader(data.train)))
    targets = batch.targets
    targets.crowd[0, 0] = targets.valid[0, 0] = True
    crowd = targets.boxes[0, 0]
    half = torch.stack([crowd[0], crowd[1], crowd[2] + (crowd[2] - crowd[0]), crowd[3]])
    outside = crowd + (crowd[2:] - crowd[:2]).repeat(2)
    assert stages._in_crowd(batch, 0, torch.stack([crowd, half, outside])).tolist() == [True, False, False]


@pytest.mark.parametrize("first", ["rcnn", "faster_rcnn"])
def test_a_run_is_not_resumed_with_a_detector_of_another_recipe(first, rcnn, config, tmp_path):
    one, other = (rcnn, config) if first == "rcnn" else (config, rcnn)
    run(replace(one, training=replace(one.training, epochs=1)), tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"^--resume: .* has another network than the config; to begin a new run"):
        run(other, tmp_path, resume=True)
    assert (tmp_path / "config.yaml").read_text() == before


def test_stored_features_are_of_one_image_size(rcnn, tmp_path):
    run(replace(rcnn, training=replace(rcnn.training, epochs=1)), tmp_path)
    other = replace(rcnn, data=replace(rcnn.data, short_side=(48,)))
    with pytest.raises(UserError, match=r"^--resume: .* began with data\.short_side \[\d+\], not \[48\]; to begin a"):
        run(other, tmp_path, resume=True)


def test_what_does_not_fit_together_is_refused(fast_rcnn, rcnn, config, tmp_path):
    for one in (fast_rcnn, rcnn):
        without = replace(one, data=replace(one.data, proposals=None))
        with pytest.raises(UserError, match=f"data.proposals: {one.model.name} needs proposals; run detect propose"):
            run(without, tmp_path)
    with pytest.raises(
        UserError, match=r"data\.proposals: faster_rcnn does not use given proposals; leave the store out"
    ):
        run(replace(config, data=replace(config.data, proposals=rcnn.data.proposals)), tmp_path)
    for recipe in (None, AlternatingOptions()):
        measured = replace(config.model, region_head=RegionHeadOptions(delta_weights=None))
        with pytest.raises(UserError, match="delta_weights: null needs given proposals; give four factors"):
            run(replace(config, model=measured, training=replace(config.training, recipe=recipe)), tmp_path)
    with pytest.raises(UserError, match="delta_weights: rcnn needs four factors; the paper's are 1"):
        run(replace(rcnn, model=replace(rcnn.model, region_head=RegionHeadOptions(delta_weights=None))), tmp_path)
    with pytest.raises(UserError, match=r"training\.recipe: alternating is not for fast_rcnn; choose joint, or"):
        run(replace(fast_rcnn, training=replace(fast_rcnn.training, recipe=AlternatingOptions())), tmp_path)
    assert not list(tmp_path.iterdir())
