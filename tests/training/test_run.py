"""`detect.train`, `detect.evaluate` and `detect train DIR`, with a tiny network on drawn shapes."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger

import detect
from detect.cli import main
from detect.config import config_to_dict, load_config
from detect.curation.shapes import SHAPES, make_shapes
from detect.data.read import read
from detect.errors import UserError
from detect.training import preset, request


class Counter(Callback):
    def __init__(self, stop_at=None):
        self.epochs, self.steps, self.stop_at = [], 0, stop_at

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append(trainer.current_epoch)
        if trainer.current_epoch == self.stop_at:
            raise KeyboardInterrupt

    def on_train_batch_end(self, *_):
        self.steps += 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Eight images in one folder with LabelImg's XML files beside them."""
    folder = tmp_path_factory.mktemp("labelled") / "photos"
    folder.mkdir()
    drawn = make_shapes(folder.parent / "drawn", images={"all": 8}, size=(64, 96), progress=False)
    dataset = read(drawn, "all", progress=False)
    for record in dataset.records:
        (folder / record.path.name).write_bytes(record.path.read_bytes())
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = record.path.name
        size = ElementTree.SubElement(root, "size")
        for name, value in (("width", record.width), ("height", record.height), ("depth", 3)):
            ElementTree.SubElement(size, name).text = str(value)
        for box, label in zip(record.boxes, record.labels, strict=True):
            element = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(element, "name").text = dataset.classes[label]
            corners = ElementTree.SubElement(element, "bndbox")
            for name, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                ElementTree.SubElement(corners, name).text = str(round(float(value)))
        ElementTree.ElementTree(root).write(folder / f"{record.path.stem}.xml")
    return folder


@pytest.fixture(scope="module")
def run(shapes, config, tmp_path_factory) -> detect.Run:
    """A run of one epoch with a callback and a logger of the user."""
    folder = tmp_path_factory.mktemp("runs")
    counter, logger = Counter(), CSVLogger(folder, name="mine")
    out = folder / "run"
    run = detect.train(
        str(shapes), model=config, epochs=1, val="val", out=out, callbacks=[counter], logger=logger, test="val"
    )
    assert counter.epochs == [0] and counter.steps == 2
    logged = next((folder / "mine").rglob("metrics.csv")).read_text()
    assert "AP50" in logged.splitlines()[0]
    return run


@pytest.fixture
def tiny_preset(config, tmp_path, monkeypatch):
    """The preset with a tiny network and one epoch."""
    content = config_to_dict(config)
    content["data"].pop("root")
    file = tmp_path / "preset.yaml"
    file.write_text(yaml.safe_dump(content))
    for module in (preset, request):
        monkeypatch.setattr(module, "PRESET", file)
    monkeypatch.setattr(preset, "EPOCHS", (1, 1))
    monkeypatch.setattr(preset, "_SCRATCH", 1)


# ---- train -----------------------------------------------------------------------------------------------------------


def test_a_run_holds_what_came_out(run, shapes):
    assert run.best == run.out / "checkpoints" / "best.ckpt" and run.best.exists()
    assert run.report == run.out / "eval" / "report.html" and run.report.exists()
    assert run.metrics["AP50"] == json.loads((run.out / "eval" / "metrics.json").read_text())["AP50"]
    assert repr(run).startswith(f"Run(AP {run.metrics['AP']:.3f}, AP50 {run.metrics['AP50']:.3f} on val, best ")
    assert load_config(run.out / "config.yaml").training.epochs == 1
    image = next(shapes.rglob("*.jpg"))
    assert next(iter(run.predictor().predict(image))).path == str(image)


def test_resuming(run, shapes, config):
    counter = Counter()
    again = detect.train(out=run.out, resume=True, epochs=2, callbacks=[counter])
    assert counter.epochs == [1] and again.out == run.out
    assert again.report == run.out / "eval_2" / "report.html"


def test_an_interruption_says_how_to_resume(shapes, config, tmp_path):
    with pytest.raises(KeyboardInterrupt, match=f"continue with: detect train --resume --out {tmp_path / 'run'}"):
        detect.train(shapes, model=config, out=tmp_path / "run", callbacks=[Counter(stop_at=1)])
    counter = Counter()
    finished = detect.train(out=tmp_path / "run", resume=True, callbacks=[counter])
    assert counter.epochs == [1] and finished.metrics == {} and finished.report is None
    assert repr(finished).startswith(f"Run(best {finished.best}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "DIR: name the data set, for example detect train photos, or the experiment with -c CONFIG"),
        ({"data": "gone"}, "gone: there is no such folder or file; check the path of the data"),
        ({"data": "gone", "lr": 0.1}, "--lr: there is no such option; it is training.learning_rate"),
        ({"data": "gone", "root": "other"}, "gone: --data.root names the data as well; leave one of them out"),
        ({"resume": True}, "--resume: name the folder of the run with --out DIR"),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        detect.train(**arguments)
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_kind():
    with pytest.raises(
        UserError, match=r"^model: a float; give the name or file of a config, a Config, or the options"
    ):
        request.sections_of(0.5)


def test_a_used_folder_is_refused_before_the_data_is_read(run):
    with pytest.raises(UserError, match="the folder is not empty"):
        detect.train("gone", out=run.out)


# ---- only data -------------------------------------------------------------------------------------------------------


def test_a_folder_of_labelled_photographs_becomes_a_detector(photos, tmp_path, tiny_preset, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--training.accelerator", "cpu", str(photos), "--data.workers", "0"]) == 0
    told = capsys.readouterr().out
    assert "validation: 20% of the training images, as the data has no val split" in told
    assert "split all divided with seed 0: train 6, val 2 images" in told and "AP50" in told
    run = tmp_path / "runs" / "photos"
    assert (run / "eval" / "report.html").exists() and (run / "division.json").exists()
    model = detect.load(run / "checkpoints" / "best.ckpt")
    assert set(model.classes) <= set(SHAPES)
    # The same run, in other words, does not start again.
    assert main(["train", "--out", "runs/photos", str(photos), "--resume"]) == 0


def test_options_of_a_detector_without_a_config(photos, config, tmp_path, tiny_preset):
    run = detect.train([photos], model=config.model, out=tmp_path / "run", accelerator="cpu", workers=0)
    written = load_config(run.out / "config.yaml")
    assert written.model == config.model and written.data.val == 0.2


def test_weights_and_data_without_a_config(run, photos, tmp_path, capsys):
    words = ["train", "--weights", str(run.best), str(photos), "--out", str(tmp_path / "run"), "--training.epochs=1"]
    assert main([*words, "--data.workers=0", "--training.accelerator=cpu"]) == 0
    assert "validation: 20% of the training images" in capsys.readouterr().out
    written = load_config(tmp_path / "run" / "config.yaml")
    assert written.data.short_side == (64,) and written.data.val == 0.2


# ---- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluation_of_a_file_and_of_a_predictor(run, tmp_path):
    of_file = detect.evaluate(run.best, out=tmp_path / "file")
    of_predictor = detect.evaluate(run.predictor(), split="val", out=tmp_path / "predictor", precision="fp32")
    assert of_file.metrics["AP50"] == of_predictor.metrics["AP50"]
    assert of_file.split == "val" and (tmp_path / "file" / "report.html").exists()


def test_evaluation_on_other_data_takes_the_splits_that_it_has(run, photos, shapes, tmp_path):
    whole = detect.evaluate(run.best, photos, out=tmp_path / "photos")
    assert whole.split == "all" and "photos" in whole.source
    with pytest.raises(UserError, match="there is no split dev"):
        detect.evaluate(run.best, photos, split="dev", out=tmp_path / "dev")
    same = detect.evaluate(run.best, [shapes], out=tmp_path / "same", **{"model.postprocess.score_threshold": 0.5})
    assert same.split == "val"


def test_mistakes_of_an_evaluation(run, tmp_path):
    with pytest.raises(UserError, match="checkpoints are already trained"):
        detect.evaluate(run.best, epochs=3)
    with pytest.raises(UserError, match="give a checkpoint such as"):
        detect.evaluate(tmp_path / "gone.ckpt")
