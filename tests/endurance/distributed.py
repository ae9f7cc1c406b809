"""Distributed runs equal those of one process, and no process waits forever for one that died.

    python tests/endurance/distributed.py [--quick]     without the namespaces and most of the evaluations

On this machine's CPU, with gloo: 1 to 4 processes evaluate 1 to 9 images, with bitwise equal results. Two processes
train like one with twice the batch size. Each of two processes is killed in turn, and the run is resumed with one
process and with two again. Two launchers, on one address and in two network namespaces, train like one launcher.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from detect.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from detect.config import Config, load_experiment
from detect.data.datamodule import DetectionData
from detect.models import Detector, build_detector
from detect.prediction.evaluate import evaluate

IMAGES, HEIGHT, WIDTH = 9, 64, 96
STEPS = 60
"""Training steps after which the evaluated detector detects some objects."""
A_MINUTE = 60.0
MODEL: dict[str, Any] = {
    "backbone": {"name": "resnet", "depth": 18, "norm": "group", "train_stages": 5},
    # Nothing is sampled at random, and each image has as many anchors and boxes as every other one, so that the mean of
    # the processes' losses equals the mean over their images.
    "rpn": {
        "anchor_sizes": [8, 16, 32, 48, 64],
        "training": {"pre_nms_top_k": 20, "post_nms_top_k": 20},
        "testing": {"pre_nms_top_k": 40, "post_nms_top_k": 20},
        "nms_threshold": 1.0,
        "positive_iou": 0.5,
        "negative_iou": 0.5,
        "batch_size_per_image": 10**6,
        "positive_fraction": 1.0,
    },
    "box_head": {"layers": 1, "channels": 32},
    "region_head": {"batch_size_per_image": 10**6, "positive_fraction": 1.0},
    "postprocess": {"score_threshold": 0.01, "max_detections": 20},
}
DATA = {"short_side": [HEIGHT], "long_side": WIDTH, "canvases": 1, "workers": 0, "batch_size": 1, "val": "val4"}
TRAINING = {"epochs": 2, "warmup_steps": 0, "learning_rate": 0.01, "accelerator": "cpu"}


def make_data(root: Path) -> Path:
    """Write a COCO data set with two objects in each image; split `valN` has N images, `train` four."""
    (root / "annotations").mkdir(parents=True)
    for split, count in {"train": 4, **{f"val{count}": count for count in range(1, IMAGES + 1)}}.items():
        folder, images, annotations = root / "images" / split, [], []
        folder.mkdir(parents=True)
        for number in range(count):
            rng = np.random.default_rng([number, split == "train"])
            pixels = rng.integers(0, 90, (HEIGHT, WIDTH, 3), np.uint8)
            for label in range(2):
                width, height = rng.integers(16, 40, 2).tolist()
                x, y = int(rng.integers(0, WIDTH - width)), int(rng.integers(0, HEIGHT - height))
                pixels[y : y + height, x : x + width, label] += 150
                place = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": label + 1}
                annotations.append({**place, "bbox": [x, y, width, height], "area": width * height, "iscrowd": 0})
            cv2.imwrite(str(folder / f"{number}.png"), pixels)
            images.append({"id": number + 1, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT})
        categories = [{"id": 1, "name": "blue"}, {"id": 2, "name": "green"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


# ---- processes -------------------------------------------------------------------------------------------------------


def launch(
    processes: int, *arguments: object, more: Sequence[str] = (), inside: Sequence[str] = ()
) -> subprocess.Popen:
    """Start torchrun, on this machine only unless `more` gives other options; `inside` is the prefix of a namespace."""
    alone = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    launcher = [*inside, sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    return start(*launcher, *(more or alone), *arguments)


def start(*arguments: object) -> subprocess.Popen:
    """Start a command with one thread per process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [*map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finished(*running: subprocess.Popen) -> str:
    """Wait for processes to end and return their output. Raise `RuntimeError` if one fails."""
    text = ""
    for process in running:
        out, error = process.communicate(timeout=600)
        if process.returncode:
            raise RuntimeError(f"{' '.join(map(str, process.args))} ended with {process.returncode}: {error[-3000:]}")
        text += out + error
    return text


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def rank_of(launcher: int, rank: int) -> int:
    """Return the id of the process with this rank below a launcher, or below Lightning's first process."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        names = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in names or (b"RANK=0" not in names and f"LOCAL_RANK={rank}".encode() in names):
            return int(child)
    raise RuntimeError(f"no process of rank {rank} below {launcher}")


# ---- evaluation ------------------------------------------------------------------------------------------------------


def evaluation(folder: Path, config: Path, worlds: Sequence[int]) -> Iterator[str]:
    """Compare metrics and predictions between numbers of processes, for each number of images."""
    experiment = load_experiment(config, [])
    assert isinstance(experiment, Config)
    network = trained_detector(experiment)
    save_checkpoint(Checkpoint(network, experiment, ("blue", "green"), (1, 2)), folder / "a.ckpt")
    results = {}
    for world in worlds:
        finished(launch(world, __file__, "--worker", folder))
        results[world] = json.loads((folder / "results.json").read_text())
        if results[world] != results[worlds[0]]:
            yield f"{world} processes have other metrics than {worlds[0]}"
    for name, one in results[worlds[0]].items():
        count = int(name.partition(" ")[0][3:])
        if one["images"] != list(range(1, count + 1)):
            yield f"{name}: images {one['images']}"
    different = len({json.dumps(one["metrics"]) for one in results[worlds[0]].values()})
    positive = [name for name, one in results[worlds[0]].items() if one["metrics"]["AP"] > 0]
    if different < IMAGES or len(positive) < len(results[worlds[0]]) // 2:
        yield f"only {different} sets of metrics differ, {len(positive)} are above zero: this proves nothing"
    print(
        f"evaluation: {list(worlds)} processes, {len(results[worlds[0]])} evaluations each, {different} sets of metrics"
    )


def trained_detector(experiment: Config) -> Detector:
    """Train a detector on the nine images until its metrics are above zero and differ."""
    torch.manual_seed(0)
    network = build_detector(experiment.model, 2)
    data = DetectionData(replace(experiment.data, train=f"val{IMAGES}", batch_size=3))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for _ in range(STEPS // 3):
        for batch in data.train_dataloader():
            torch.stack([*network.loss(batch).values()]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return network


def evaluate_all(folder: Path) -> None:
    """Evaluate every split, with batch sizes 1 and 2, as one of several processes; the first one writes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    results = {}
    for batch_size in (1, 2):
        checkpoint = load_checkpoint(folder / "a.ckpt", [f"--data.eval_batch_size={batch_size}"])
        data = DetectionData(checkpoint.config.data, checkpoint.classes)
        for count in range(1, IMAGES + 1):
            dataset = data.split(f"val{count}")
            metrics, evaluator = evaluate(
                checkpoint.model.eval(), data.eval_loader(dataset), dataset, torch.device("cpu")
            )
            results[f"val{count} by {batch_size}"] = {
                "metrics": metrics,
                "images": [prediction.image_id for prediction in evaluator.predictions],
                "boxes": [prediction.boxes.tolist() for prediction in evaluator.predictions],
                "scores": [prediction.scores.tolist() for prediction in evaluator.predictions],
            }
    if torch.distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


# ---- training --------------------------------------------------------------------------------------------------------


def weights(run: Path) -> torch.Tensor:
    """Return all weights of a run as one vector."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([value.flatten().double() for value in state.values() if value.is_floating_point()])


def training(folder: Path, config: Path) -> Iterator[str]:
    """Two processes with one image each end where one process does with two."""
    command = ("-m", "detect", "train", "-c", config, "--out")
    finished(launch(2, *command, folder / "two"))
    finished(start(sys.executable, *command, folder / "one", "--data.batch_size=2"))
    finished(start(sys.executable, *command, folder / "half", "--data.batch_size=1"))
    two, one, half = (weights(folder / name) for name in ("two", "one", "half"))
    same, other = float((two - one).abs().max()), float((half - one).abs().max())
    print(f"training: two processes differ from the double batch by {same:.1e}, half the batch by {other:.1e}")
    if same > 1e-4 or other < 100 * same:
        yield f"the weights of two processes differ from those of the double batch by {same:.1e}"


def killed(folder: Path, config: Path, rank: int, by_torchrun: bool) -> Iterator[str]:
    """Kill one of two processes in training: the other one must end with a reason. Then resume."""
    out, how = folder / f"killed_{rank}_{by_torchrun}", "torchrun" if by_torchrun else "devices=2"
    command = ("-m", "detect", "train", "-c", config, "--out", out, "--training.epochs=1000")
    running = launch(2, *command) if by_torchrun else start(sys.executable, *command, "--training.devices=2")
    last = out / "checkpoints" / "last.ckpt"
    wait_for(last.exists, running)
    victim = running.pid if not by_torchrun and rank == 0 else rank_of(running.pid, rank)
    survivor = rank_of(running.pid, 1 - rank) if by_torchrun or rank == 0 else running.pid
    os.kill(victim, signal.SIGKILL)
    killed_at = time.monotonic()
    try:
        _, error = running.communicate(timeout=A_MINUTE)
    except subprocess.TimeoutExpired:
        running.kill()
        yield f"rank {rank} of {how} was killed, and a minute later the run still hung"
        return
    while Path(f"/proc/{survivor}").exists() and time.monotonic() - killed_at < A_MINUTE:
        time.sleep(0.1)
    seconds = time.monotonic() - killed_at
    lines = [line for line in error.splitlines() if "rror" in line or "SIGKILL" in line or "killed" in line]
    reason = lines[-1].strip()[:150] if lines else "no reason"
    print(f"killed: rank {rank} of {how}: ended after {seconds:.1f} s; {reason}")
    if running.returncode == 0 or not lines or seconds >= A_MINUTE:
        yield f"rank {rank} of {how} was killed: status {running.returncode} after {seconds:.0f} s, {error[-500:]}"
    if by_torchrun and rank == 1:
        yield from resumed(out)


def resumed(out: Path) -> Iterator[str]:
    """Resume a run of two processes with one process and twice the batch size, and with two again."""
    for processes in (1, 2):
        last = out / "checkpoints" / "last.ckpt"
        before = torch.load(last, weights_only=True)
        epochs = before["epoch"] + 3
        more = (f"--training.epochs={epochs}", f"--data.batch_size={2 // processes}")
        command = ("-m", "detect", "train", "--resume", "--out", out, *more)
        finished(launch(2, *command) if processes == 2 else start(sys.executable, *command))
        after = torch.load(last, weights_only=True)
        # Two batches of two images per epoch, for any number of processes.
        if (after["epoch"] + 1, after["global_step"]) != (epochs, 2 * epochs):
            yield f"resumed with {processes}: epoch {after['epoch']}, step {after['global_step']} instead of {epochs}"
        print(f"resumed with {processes}: from step {before['global_step']} to {after['global_step']}")


def wait_for(there: Callable[[], bool], running: subprocess.Popen) -> None:
    """Wait until `there` returns True. Raise `RuntimeError` if the process ends before."""
    while not there():
        if running.poll() is not None:
            raise RuntimeError(f"ended with {running.returncode}: {running.communicate()[1][-3000:]}")
        time.sleep(0.2)


# ---- hosts -----------------------------------------------------------------------------------------------------------


def hosts(folder: Path, config: Path, name: str, address: str, inside: Sequence[Sequence[str]]) -> Iterator[str]:
    """Compare two launchers with one process each to one launcher with two processes."""
    out = folder / f"hosts_{name}"
    port = free_port()
    running = []
    for node, prefix in enumerate(inside):
        more = ["--nnodes=2", f"--node-rank={node}", f"--master-addr={address}", f"--master-port={port}"]
        running.append(launch(1, "-m", "detect", "train", "-c", config, "--out", out, more=more, inside=prefix))
    finished(*running)
    differ = float((weights(out) - weights(folder / "two")).abs().max())
    print(f"hosts: {name}: weights differ by {differ:.1e} from those of one launcher")
    if differ:
        yield f"two launchers ({name}) train differently from one: {differ:.1e}"


@contextmanager
def namespaces() -> Iterator[list[list[str]]]:
    """Create two network namespaces with a cable between them, like two hosts; yield the command prefix of each."""
    names = [f"detect{os.getpid()}{side}" for side in "ab"]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        cable = ["ip", "link", "add", "va", "netns", names[0], "type", "veth", "peer", "name", "vb", "netns", names[1]]
        subprocess.run(cable, check=True)
        for name, end, number in zip(names, ("va", "vb"), (1, 2), strict=True):
            for words in (f"addr add 10.77.0.{number}/24 dev {end}", f"link set {end} up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *words.split()], check=True)
        yield [
            ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={end}"]
            for name, end in zip(names, ("va", "vb"), strict=True)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def main() -> int:
    """Return 0 if all checks pass."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="only two processes, on this machine's own address")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        evaluate_all(options.worker)
        return 0
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = folder / "config.yaml"
        data = DATA | {"root": str(make_data(folder / "data"))}
        config.write_text(yaml.safe_dump({"model": MODEL, "data": data, "training": TRAINING}))
        wrong += evaluation(folder, config, (1, 2) if options.quick else (1, 2, 3, 4))
        wrong += training(folder, config)
        for rank, by_torchrun in ((1, True),) if options.quick else ((1, True), (0, True), (1, False), (0, False)):
            wrong += killed(folder, config, rank, by_torchrun)
        if not options.quick:
            wrong += hosts(folder, config, "one address", "127.0.0.1", ([], []))
            if os.geteuid() == 0:
                with namespaces() as inside:
                    wrong += hosts(folder, config, "two namespaces", "10.77.0.1", inside)
    print("distributed:", "; ".join(wrong) or "passed")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
