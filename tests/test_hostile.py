"""Malicious files: they execute nothing, do not exhaust the memory, and do not lead out of their folder.

The readers have separate tests; these tests cover all of them together.
"""

import gzip
import importlib.util
import io
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from detect import load
from detect.backbones.weights import load_weights
from detect.checkpoint import load_any
from detect.cli import main
from detect.config import Config, config_to_dict
from detect.config.demo import demo_config
from detect.curation.convert import convert
from detect.curation.stats import stats
from detect.data.formats.imagefolder import read_imagefolder
from detect.data.read import image_files, read
from detect.errors import UserError
from detect.evaluation.coco_files import read_ground_truth
from detect.files.fence import MAX_BYTES, Fence
from detect.foreign_weights.any_file import read_weights
from detect.foreign_weights.import_weights import import_weights
from detect.models import build_detector
from detect.prediction.sources import frames
from detect.proposals.store import ProposalStore

# ---- memory bombs ----------------------------------------------------------------------------------------------------


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def tiff(width, height):
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 200),
        (278, 4, height),
    ]
    entries += [(279, 4, 2**31)]
    fields = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + bytes(200)


def webp(width, height):
    canvas = b"\x02\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas + b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def noise(suffix):
    with io.BytesIO() as file:
        Image.new("L", (9, 9)).save(file, suffix)
        return file.getvalue()


BOMBS = {
    "bomb.png": png(60000, 60000),
    "bomb.tif": tiff(60000, 60000),
    "bomb.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF0, 0, 0) + bytes(6) + noise("gif")[13 + 6 :],
    "bomb.webp": webp(16000, 16000),
    "bomb.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
    "bomb.ppm": b"P6 60000 60000 255\n",
    "bomb.jpg": noise("jpeg").replace(b"\0\x09\0\x09", b"\xff\xff\xff\xff"),
}
MEASURE = """
import sys, time
from pathlib import Path
import detect.data.decode as decoding
from detect.errors import UserError
folder = Path(sys.argv[1])
decoding.decode(folder / "good.jpg")  # makes Pillow import its readers
for path in sorted(folder.glob("bomb.*")):
    of_bytes = lambda one: decoding.decode(one.read_bytes())
    for read in (decoding.check_image, decoding.decode, decoding.image_size, of_bytes):
        started = time.process_time()
        try:
            read(path)
            print(path, "was read")
        except UserError as error:
            seconds = time.process_time() - started
            assert str(error).isprintable(), error
            if seconds > 0.1: print(path, seconds)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", int(peak.split()[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_images_that_unpack_to_gigabytes_are_refused_from_their_headers(tmp_path):
    for name, content in BOMBS.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good.jpg").write_bytes(noise("jpeg"))
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()  # otherwise an image was decoded, or took too long
    assert line.startswith("peak ") and int(line.split()[1]) < 200


@pytest.mark.parametrize("name", ["annotations/instances_train.json", "data.yaml", "ImageSets/Main/train.txt"])
def test_annotation_files_are_measured_before_they_are_read(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, MAX_BYTES[Path(name).suffix] + 1)  # sparse: it takes no room
    with pytest.raises(UserError, match=rf"{Path(name).name}: it .*MiB, at most"):
        read(tmp_path, "train")


def test_truths_of_a_report_are_measured_too(tmp_path):
    (tmp_path / "truth.json").touch()
    os.truncate(tmp_path / "truth.json", MAX_BYTES[".json"] + 1)
    with pytest.raises(UserError, match=r"truth\.json: it has 2,048 MiB, at most 2,048 are read; give a COCO"):
        read_ground_truth(tmp_path / "truth.json")


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**5, '{"images": ' + "[" * 10**5])
def test_json_that_is_nested_without_end(tmp_path, text):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(UserError, match="it is not JSON"):
        read(tmp_path, "train")
    with pytest.raises(UserError, match=r"give a COCO annotation file"):
        read_ground_truth(tmp_path / "annotations" / "instances_train.json")


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)),
        "model: " + "[" * 10**4,
        "a: &a [*a]\ndata: {augment: *a}\n",
    ],
)
def test_configs_that_are_bombs(tmp_path, text, capsys):
    (tmp_path / "config.yaml").write_text(text)
    assert main(["model", str(tmp_path / "config.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- files outside of the folder -------------------------------------------------------------------------------------

COCO = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}],
}
XML = (
    "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    "</object></annotation>"
)
LAYOUTS = {
    "coco": {"annotations/instances_train.json": json.dumps(COCO), "train/a.png": None},
    "voc": {"ImageSets/Main/train.txt": "a\n", "Annotations/a.xml": XML, "JPEGImages/a.png": None},
    "yolo": {
        "data.yaml": "train: images\nnames: [cat]\n",
        "labels/a.txt": "0 0.5 0.5 0.2 0.2\n",
        "images/a.png": None,
    },
    "yolo list": {
        "data.yaml": "train: lists/train.txt\nnames: [cat]\n",
        "lists/train.txt": "images/a.png\n",
        "labels/a.txt": "0 0.5 0.5 0.2 0.2\n",
        "images/a.png": None,
    },
    "imagefolder": {"train/cat/a.png": None},
}
CASES = [
    (layout, place)
    for layout, files in LAYOUTS.items()
    for place in dict.fromkeys(
        place for name in files for place in (name, *map(str, Path(name).parents)) if place != "."
    )
]


def make(root, layout):
    for name, text in LAYOUTS[layout].items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.new("RGB", (20, 20)).save(root / name)
        else:
            (root / name).write_text(text)
    return root


def read_any(root, layout, **options):
    if layout == "imagefolder":
        return read_imagefolder(root, "train", **options)
    return read(root, "train", **options)


class Watch:
    """Audit hook that records the opened files below a folder."""

    folder: Path | None = None
    opened: ClassVar[list[str]] = []


def _hear(event, arguments):
    if Watch.folder is not None and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        folder, Watch.folder = Watch.folder, None  # not to record what this function opens
        with suppress(OSError, ValueError):
            path = Path(os.fsdecode(arguments[0])).resolve()
            if path.is_file() and path.is_relative_to(folder):
                Watch.opened.append(str(path))
        Watch.folder = folder


sys.addaudithook(_hear)


@pytest.fixture
def outside(tmp_path):
    """Folder whose files must not be opened."""
    (tmp_path / "outside").mkdir()
    Watch.folder, Watch.opened = (tmp_path / "outside").resolve(), []
    yield tmp_path / "outside"
    Watch.folder = None


@pytest.mark.parametrize(("layout", "place"), CASES)
def test_links_out_of_the_root_are_followed_only_on_request(tmp_path, outside, layout, place):
    root = make(tmp_path / "root", layout)
    assert len(read_any(root, layout)) == 1
    (root / place).rename(outside / "moved")
    (root / place).symlink_to(outside / "moved")
    with pytest.raises(UserError, match=r"a link leads out of the data folder.*--data\.follow_links true") as error:
        read_any(root, layout)
    assert str(error.value).isprintable()
    with pytest.raises(UserError):
        read_any(root, layout, skip_unreadable=True)
    assert Watch.opened == []
    with suppress(UserError):
        image_files(root)
    assert not [name for name in Watch.opened if name.endswith(".png")]
    assert len(read_any(root, layout, follow_links=True)) == 1 and Watch.opened


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_statistics_and_conversions_follow_links_only_on_request(tmp_path, outside, to):
    root = make(tmp_path / "root", "coco")
    (root / "train").rename(outside / "moved")
    (root / "train").symlink_to(outside / "moved")
    with pytest.raises(UserError, match="--follow-links"):
        stats(root)
    with pytest.raises(UserError, match="--follow-links"):
        convert(root, tmp_path / "out", to)
    assert Watch.opened == []
    assert sum(split["images"] for split in stats(root, follow_links=True).values()) == 1
    convert(root, tmp_path / "out", to, follow_links=True)
    assert len([*(tmp_path / "out").rglob("*.png"), *(tmp_path / "out").rglob("*.jpg")]) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_root_itself_may_be_a_link_and_links_within_it_are_followed(tmp_path, layout):
    root = make(tmp_path / "root", layout)
    image = next(name for name, text in LAYOUTS[layout].items() if text is None)
    (root / image).rename(root / "moved.png")
    (root / image).symlink_to(os.path.relpath(root / "moved.png", (root / image).parent))
    (tmp_path / "link").symlink_to(root)
    for folder in (root, tmp_path / "link"):
        assert len(read_any(folder, layout)) == 1


@pytest.mark.parametrize("layout", [*LAYOUTS][:4])
@pytest.mark.parametrize("name", ["../outside/secret.png", "x/../../outside/secret.png", "/outside/secret.png", "\0"])
def test_names_that_lead_out_are_not_followed(tmp_path, outside, layout, name):
    if layout == "yolo":
        pytest.skip("lists no images")
    Image.new("RGB", (20, 20)).save(outside / "secret.png")
    root = make(tmp_path / "root", layout)
    name = str(outside / "secret.png") if name.startswith("/") else name
    for file in ("annotations/instances_train.json", "ImageSets/Main/train.txt", "lists/train.txt"):
        if (root / file).exists():
            text = (root / file).read_text()
            old, new = ("a\n", f"{name}\n") if layout == "voc" else ("images/a.png", name)
            old, new = ('"a.png"', json.dumps(name)) if layout == "coco" else (old, new)
            (root / file).write_text(text.replace(old, new))
    Watch.opened = []
    with pytest.raises(UserError, match=r"path-outside-root|broken-file"):
        read(root, "train")
    assert Watch.opened == []


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("pattern", ["", "*", "**/*"])
def test_sources_of_predictions_end_at_their_folder(tmp_path, outside, kind, pattern):
    (tmp_path / "photos").mkdir()
    Image.new("L", (9, 9)).save(outside / "secret.png")
    Image.new("L", (9, 9)).save(tmp_path / "photos" / "mine.png")
    link = tmp_path / "photos" / ("link.png" if kind == "file" else "link")
    link.symlink_to(outside / "secret.png" if kind == "file" else outside)
    Watch.opened, messages = [], []
    source = str(tmp_path / "photos" / pattern)
    found = list(frames(source, on_error=lambda name, error: messages.append(str(error))))
    assert [Path(frame.path).name for frame in found] == ["mine.png"] and Watch.opened == []
    if kind == "file" or not pattern:  # patterns do not look behind links of folders
        (line,) = messages
        assert line.endswith("leads out of the data folder; give the link's target as a separate source")
    # Named by the user, it is read: wherever the name leads, it was the user who chose it.
    assert len(list(frames([link]))) == 1


def test_pictures_of_a_report_end_at_their_folder(tmp_path, outside):
    Image.new("L", (9, 9)).save(outside / "secret.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").symlink_to(outside / "secret.png")
    (tmp_path / "truth.json").write_text(json.dumps(COCO))
    with pytest.raises(UserError, match=r"image 1 leads out of .*photos, by its name or by a link; correct it"):
        read_ground_truth(tmp_path / "truth.json", tmp_path / "photos")
    assert Watch.opened == []


def test_a_checkpoint_cannot_allow_what_is_the_users_to_allow(tmp_path, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    content["detect"]["config"]["data"]["follow_links"] = True
    torch.save(content, tmp_path / "a.ckpt")
    assert not load_any(tmp_path / "a.ckpt").config.data.follow_links
    assert load_any(tmp_path / "a.ckpt", ["--data.follow_links=true"]).config.data.follow_links


def test_a_fence_admits_only_what_lies_below_its_root(tmp_path):
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root2").mkdir()
    (tmp_path / "root" / "up").symlink_to("..")
    (tmp_path / "root" / "loop").symlink_to("loop")
    fence = Fence(tmp_path / "root")
    for name in ("sub", "sub/none.png", "none/none.png", "up/root/sub", "loop"):
        assert fence.admits(tmp_path / "root" / name), name
    for name in ("up/a", "up", "up/root2", "../root2/a", "sub/../../a", "a\0b/c"):
        assert not fence.admits(tmp_path / "root" / name), name
    assert fence.admits(tmp_path / "root") and not fence.admits(tmp_path / "root2")


# ---- terminal output -------------------------------------------------------------------------------------------------

EVIL = "a\n\x1b]0;title\x07\x1b[2J\u202e\u2028b\x9b31m\ud800"


LINE = EVIL.replace("\ud800", "").replace("\n", "")


def test_no_error_is_more_than_one_printable_line():
    error = UserError(f"{EVIL}: bad")
    assert str(error).isprintable() and "a" in str(error) and str(error).endswith("b?31m?: bad")
    # As torch wraps the exception of a worker.
    wrapped = UserError(f"Caught UserError in worker 0.\nTraceback\n  File x\ndetect.errors.UserError: {error}\n")
    assert str(wrapped) == str(error)


@pytest.mark.parametrize("layout", ["coco", "voc", "yolo list"])
def test_names_of_files_and_classes_reach_no_terminal_raw(tmp_path, layout, capfd):
    root = make(tmp_path / "root", layout)
    for file in ("annotations/instances_train.json", "ImageSets/Main/train.txt", "lists/train.txt"):
        if (root / file).exists():
            name = LINE + ".png"
            text = json.dumps(COCO).replace('"a.png"', json.dumps(name)) if layout == "coco" else f"{name}\n"
            (root / file).write_text(text, encoding="utf-8")
    Image.new("L", (9, 9)).save(root / f"{LINE}.png")
    (root / f"{LINE}.jpg").write_bytes(b"no image")
    path, out = str(root), str(tmp_path / "out")
    for command in (
        ["data", "stats", path],
        ["data", "check", path],
        ["train", "-c", "bccd/faster_rcnn", f"--data.root={path}", "--out", out],
        ["propose", path, "--out", f"{out}.db"],
    ):
        main(command)
    shown = capfd.readouterr()
    assert shown.err.count("\n") >= 1
    assert all(letter.isprintable() or letter == "\n" for letter in shown.out + shown.err)


# ---- code execution --------------------------------------------------------------------------------------------------


class Calls:
    """Object that is pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def built(command):
    """Object whose pickle sets `os.system` as its `__setstate__`, followed by a state."""
    state = b"}X\x0c\x00\x00\x00__setstate__cos\nsystem\ns"
    return b"\x80\x02cargparse\nNamespace\n)\x81" + state + b"bX" + struct.pack("<I", len(command)) + command + b"b."


def payloads(trace):
    """Return malicious files of every kind; each would create the folder `trace` if it were unpickled."""
    call = Calls(os.mkdir, str(trace))
    command = f"mkdir {trace}".encode()
    saved = {}

    def torch_saved(content, **options):
        with io.BytesIO() as file:
            torch.save(content, file, **options)
            return file.getvalue()

    card = {"config": {}, "classes": ["a"], "category_ids": [1]}
    saved["reduce"] = pickle.dumps({"state_dict": {}, "detect": card, "x": call})
    saved["reduce, alone"] = pickle.dumps(call, protocol=0)
    saved["build"] = built(command)
    saved["global"] = b"cos\nsystem\n(X" + struct.pack("<I", len(command)) + command + b"tR."
    saved["instance"] = b"(X" + struct.pack("<I", len(command)) + command + b"ios\nsystem\n."
    saved["torch's zip"] = torch_saved({"state_dict": {}, "detect": card, "x": call})
    saved["torch before 1.6"] = torch_saved({"model": {}, "x": call}, _use_new_zipfile_serialization=False)
    saved["within a state dict"] = torch_saved(
        {"state_dict": OrderedDict({"model.weight": call, "a": torch.zeros(1)}), "detect": card}
    )
    with io.BytesIO() as file:
        np.save(file, np.array([call], dtype=object), allow_pickle=True)
        saved["npy of objects"] = file.getvalue()
    with io.BytesIO() as file:
        np.savez(file, a=np.array([call], dtype=object))
        saved["npz of objects"] = file.getvalue()
    joblib = pytest.importorskip("joblib")
    with io.BytesIO() as file:
        joblib.dump({"a": np.zeros(2), "x": call}, file)
        saved["joblib"] = file.getvalue()
    saved["gzip"] = gzip.compress(pickle.dumps(call))
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:  # as torch.jit.save and torch.export.save lay theirs out
            archive.writestr("a/data.pkl", pickle.dumps(call))
            archive.writestr("a/constants.pkl", pickle.dumps(call))
            archive.writestr("a/code/__torch__.py", f"import os\nos.mkdir({str(trace)!r})\n")
            archive.writestr("a/version", "3")
        saved["torch.jit's zip"] = file.getvalue()
    return saved


KINDS = [*payloads(Path("nowhere"))]
SUFFIXES = (".ckpt", ".pth", ".pkl", ".pt2", ".safetensors", ".onnx")


def _backbone(path):
    from torchvision.models import resnet18

    load_weights(resnet18(), str(path), "resnet18", ("fc",))


def _resume(path):
    from detect.training.resume import check_resumable

    check_resumable(demo_config(Path("data")), ("a",), path)


ENTRIES = {
    "load": load,
    "checkpoint": load_any,
    "resume": _resume,
    "backbone": lambda path: _backbone(path.rename(path.with_suffix(".pth")) if path.suffix == ".pt2" else path),
    "import torchvision": lambda path: import_weights("torchvision", path, path.with_name("out.ckpt")),
    "import detectron2": lambda path: import_weights("detectron2", path, path.with_name("out.ckpt")),
    "weights": read_weights,
    "proposals": lambda path: ProposalStore(path).close(),
}
COMMANDS = {
    "eval": ["eval", "--ckpt", "FILE", "--split", "train", "--out", "OUT"],
    "predict": ["predict", "--ckpt", "FILE", "photo.png", "--out", "OUT"],
    "export": ["export", "--ckpt", "FILE", "--format", "onnx", "--out", "OUT"],
    "compress": ["compress", "--ckpt", "FILE", "--svd", "2", "2", "--out", "OUT"],
    "import": ["import", "torchvision", "FILE", "--out", "OUT"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_a_file_runs_wherever_it_is_given(tmp_path, kind):
    trace = tmp_path / "trace"
    content = payloads(trace)[kind]
    for suffix in SUFFIXES:
        for name, enter in ENTRIES.items():
            path = tmp_path / f"file{suffix}"
            path.write_bytes(content)
            with pytest.raises(UserError) as error:
                enter(path)
            assert str(error.value).isprintable() and "file" in str(error.value), (suffix, name)
            assert not trace.exists(), (suffix, name)
            assert not (tmp_path / "out.ckpt").exists(), (suffix, name)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_say_so_in_a_line(tmp_path, command, capsys):
    trace = tmp_path / "trace"
    for kind in ("torch's zip", "global"):
        path = tmp_path / "file.ckpt"
        path.write_bytes(payloads(trace)[kind])
        words = {"FILE": str(path), "OUT": str(tmp_path / "out")}
        code = main([words.get(word, word) for word in COMMANDS[command]])
        shown = capsys.readouterr()
        assert not trace.exists()
        assert code == 2 and shown.err.count("\n") == 1 and shown.err.startswith("detect: error: ")


def _card(**model) -> dict:
    config = config_to_dict(Config())
    return {"config": {**config, "model": {**config["model"], **model}}, "classes": ["a"], "category_ids": [1]}


SCORES = "roi_heads.box_predictor.cls_score.bias"
LARGE = {
    "a tensor of one number": ("torchvision", {SCORES: torch.zeros(1).expand(10**9)}, "more numbers than are in the"),
    "torchvision's classes": ("torchvision", {SCORES: torch.zeros(10**6)}, "no value for this and"),
    "detectron2's channels": (
        "detectron2",
        {
            "backbone.fpn_lateral2.weight": torch.zeros(10**6, 0),
            "proposal_generator.rpn_head.objectness_logits.bias": torch.zeros(3),
            "roi_heads.box_predictor.cls_score.bias": torch.zeros(2),
            "roi_heads.box_predictor.bbox_pred.bias": torch.zeros(4),
            **{f"backbone.bottom_up.res{2 + i // 2}.{i % 2}.conv1.weight": torch.zeros(1) for i in range(8)},
        },
        r"has shape .* instead of .*; give a Faster, Mask or Cascade R-CNN of detectron2",
    ),
    "a checkpoint's channels": (None, _card(box_head={"channels": 10**7}), "the weights do not fit the file's config"),
    "a checkpoint's layers": (None, _card(box_head={"layers": 10**9}), "model.box_head.layers"),
    "a checkpoint's category ids": (None, {**_card(), "category_ids": []}, "not a checkpoint of detect"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_network_takes_no_memory_before_all_weights_fit(tmp_path, name):
    """Each network needs terabytes or is refused; an allocation would end the test."""
    project, content, message = LARGE[name]
    path = tmp_path / "file.ckpt"
    torch.save(content if project else {"detect": content, "state_dict": {}}, path)
    assert path.stat().st_size < 5 * 2**20
    with pytest.raises(UserError, match=message):
        import_weights(project, path, tmp_path / "out.ckpt") if project else load_any(path)
    assert not (tmp_path / "out.ckpt").exists()


def test_these_files_would_run_if_they_were_unpickled(tmp_path):
    """Otherwise the tests above would prove nothing."""
    trace = tmp_path / "trace"
    ran = set()
    for kind, content in payloads(trace).items():
        with suppress(Exception):
            if zipfile.is_zipfile(io.BytesIO(content)) or "torch" in kind:
                torch.load(io.BytesIO(content), weights_only=False)
            elif kind == "npy of objects":
                np.load(io.BytesIO(content), allow_pickle=True)
            else:
                pickle.loads(gzip.decompress(content) if kind == "gzip" else content)
        if not trace.exists() and kind == "npz of objects":
            with suppress(Exception):
                np.load(io.BytesIO(content), allow_pickle=True)["a"]
        if not trace.exists() and kind == "joblib":
            with suppress(Exception):
                importlib.import_module("joblib").load(io.BytesIO(content))
        if trace.exists():
            ran.add(kind)
            trace.rmdir()
    assert ran == set(KINDS) - {"torch.jit's zip"}
    assert pickletools.optimize(pickle.dumps(1))


def _header(content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2**62) + b"{}",
        _header(b"[" * 10**5),
        _header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}) + bytes(4),
        _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**40]}}) + bytes(4),
        _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}) + bytes(4),
        _header({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
        _header({"__metadata__": {"config": "[" * 10**5, "classes": "[]", "category_ids": "[]"}}),
        _header({"__metadata__": {"config": "{}", "classes": '["a"]', "category_ids": "[1]"}}),
    ],
)
def test_headers_of_safetensors_that_lie(tmp_path, content):
    pytest.importorskip("safetensors")
    (tmp_path / "file.safetensors").write_bytes(content)
    for name in ("load", "checkpoint", "backbone", "import torchvision"):
        with pytest.raises(UserError, match=r"file\.safetensors") as error:
            ENTRIES[name](tmp_path / "file.safetensors")
        assert str(error.value).isprintable(), name


@pytest.mark.parametrize("order", ["key first", "value first", "a long length"])
def test_weights_of_a_graph_in_other_files_are_not_read(tmp_path, outside, monkeypatch, order):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (outside / "secret").write_bytes(np.zeros(4, np.float32).tobytes())
    tensor = onnx.TensorProto(dims=[4], data_type=onnx.TensorProto.FLOAT, name="weight")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="QQ")
    node = onnx.helper.make_node("Identity", ["weight"], ["boxes"])
    output = onnx.helper.make_tensor_value_info("boxes", onnx.TensorProto.FLOAT, [4])
    graph = onnx.helper.make_graph([node], "graph", [], [output], [tensor])
    content = onnx.helper.make_model(graph).SerializeToString()
    entry = b"\x0a\x08location\x12\x02QQ"
    assert entry in content
    other = {"key first": entry, "value first": b"\x12\x02QQ\x0a\x08location", "a long length": entry}[order]
    (tmp_path / "model.onnx").write_bytes(content.replace(entry, other))
    if order == "a long length":
        assert onnx.TensorProto.FromString(b"\x6a\x0f\x0a\x88\x00location\x12\x02QQ").external_data[0].key == "location"
        (tmp_path / "model.onnx").write_bytes(b"\x0a\x88\x00location\x12\x02QQ" + content)
    with pytest.raises(UserError, match="stores weights in other files"):
        load(tmp_path / "model.onnx")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a minimal detector."""
    from detect.checkpoint import Checkpoint, model_card

    config = demo_config(Path("data"))
    detector = Checkpoint(build_detector(config.model, 2), config, ("a", "b"), (1, 2))
    path = tmp_path_factory.mktemp("checkpoint") / "best.ckpt"
    state = {f"model.{name}": value for name, value in detector.model.state_dict().items()}
    torch.save({"state_dict": state, "detect": model_card(config, detector.classes, detector.category_ids)}, path)
    return path
