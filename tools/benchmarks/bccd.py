"""Train torchvision's Faster R-CNN on blood cells (BCCD), alone or alternating with `detect train`.

    python tools/benchmarks/bccd.py --data.root data/bccd
    python tools/benchmarks/bccd.py --data.root data/bccd \
        --beside "detect train -c bccd/faster_rcnn --data.root data/bccd"

torchvision's side: ResNet-18-FPN from scratch with batch norm, short side 320, batches of 4, horizontal flips, 12
epochs of `trainval`, SGD with a one-cycle learning rate up to 0.02, momentum 0.9 and weight decay 5e-4, float32;
evaluated on `test` by the same code as ours. The other command runs as given; its config shows how the recipes differ.

With `--beside` the two commands alternate every 20 seconds. The waiting command is stopped with all its workers, so
that each has the machine to itself and a slow phase of the machine affects both. The result is the running time of a
command, start-up included, until it prints a line that starts with "trained"; the evaluation after it is not counted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils import data
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from detect.allocator import keep_pages
from detect.data.dataset import Dataset
from detect.data.decode import decode
from detect.data.read import read
from detect.evaluation.coco import Prediction, evaluate_coco
from detect.report.tables import print_metrics

TURN = 20.0
"""Seconds for which one command runs while the other is stopped."""


# ---- alternating commands --------------------------------------------------------------------------------------------


class Contestant:
    """A command in a process group of its own that is stopped, continued, and timed while it runs."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name, self.command = name, command
        self.trained: float | None = None
        self.process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._lock = threading.Lock()
        self._before_this_turn, self._turn_began = 0.0, 0.0
        self._running = False

    def seconds(self) -> float:
        """Return the running time of the command so far, without the time that it was stopped."""
        with self._lock:
            return self._before_this_turn + (time.monotonic() - self._turn_began if self._running else 0.0)

    def run(self, turn: float | None) -> bool:
        """Run the command for a turn or to its end; return whether it ended. Exit if it failed."""
        with self._lock:
            self._running, self._turn_began = True, time.monotonic()
        if self.process is None:
            self._start()
        else:
            os.killpg(self.process.pid, signal.SIGCONT)
        assert self.process is not None
        try:
            code = self.process.wait(turn)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGSTOP)
            self._pause()
            return False
        self._pause()
        self._reader.join(timeout=10)
        if code:
            sys.exit(f"{self.name} ended with code {code}: {shlex.join(self.command)}")
        return True

    def kill(self) -> None:
        """Kill the command and its workers, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if shutil.which(self.command[0]) is None:
            sys.exit(f"{self.command[0]}: no such command; give its path")
        self.process = subprocess.Popen(
            self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env=environment,
        )
        self._reader.start()

    def _pause(self) -> None:
        with self._lock:
            self._before_this_turn += time.monotonic() - self._turn_began
            self._running = False

    def _read(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        for line in self.process.stdout:
            # A line that is read late, while the command is stopped, does not matter: its clock is stopped, too.
            if line.startswith("trained") and self.trained is None:
                self.trained = self.seconds()
            print(f"{self.name:>11} {self.seconds():6.0f} s | {line.rstrip()}", flush=True)


def alternate(contestants: Sequence[Contestant]) -> None:
    """Run the commands to their end, alternating every `TURN` seconds."""
    running = list(contestants)
    try:
        while running:
            for contestant in list(running):
                if contestant.run(TURN if len(running) > 1 else None):
                    running.remove(contestant)
    finally:
        for contestant in contestants:
            contestant.kill()


def compare(options: argparse.Namespace) -> None:
    """Train torchvision's side in a process, alone or beside another command, and print the times."""
    arguments = ["--data.root", options.root, "--passes", options.passes, "--seed", options.seed]
    own = [sys.executable, __file__, "--side", "torchvision", "--device", options.device, *map(str, arguments)]
    contestants = [Contestant("torchvision", own)]
    if options.beside:
        contestants.append(Contestant("beside", shlex.split(options.beside)))
    alternate(contestants)
    for contestant in contestants:
        if contestant.trained is None:
            sys.exit(f'{contestant.name}: printed no line that starts with "trained", so its training time is unknown')
        print(f"{contestant.name}: trained in {contestant.trained:.1f} s of its own running time")
    if options.beside:
        ours, theirs = contestants[1].trained, contestants[0].trained
        assert ours is not None and theirs is not None
        print(f"torchvision / beside: {theirs / ours:.2f}")


# ---- torchvision's side ----------------------------------------------------------------------------------------------


def train_torchvision(root: Path, epochs: float, seed: int, device_name: str) -> None:
    """Train and evaluate torchvision's model in this process."""
    keep_pages()  # like `detect train`: up to 1.9 times as fast on the CPU
    torch.manual_seed(seed)
    device = torch.device(device_name)
    train, test = read(root, "trainval"), read(root, "test")
    model = _model(len(train.classes)).to(device)
    loader: data.DataLoader = data.DataLoader(
        _Images(train),
        batch_size=4,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
        collate_fn=_as_lists,
    )
    steps = max(1, round(epochs * len(loader)))
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=0.02,
        momentum=0.9,
        weight_decay=5e-4,
    )
    scheduler = OneCycleLR(optimizer, max_lr=0.02, total_steps=steps, cycle_momentum=False)

    model.train()
    for step, (images, targets) in enumerate(_batches(loader, steps), start=1):
        images = [image.to(device) for image in images]
        targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.3f}")
    print(f"trained {steps} steps of 4 images")
    print_metrics(evaluate_coco(test, _predict(model, test, device)))


def _model(num_classes: int) -> FasterRCNN:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    return FasterRCNN(backbone, num_classes + 1, min_size=320)  # torchvision counts background as a class


class _Images(data.Dataset):
    """Images and targets in torchvision's format, half of them flipped."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> tuple[Tensor, dict[str, Tensor]]:
        record = self.dataset.records[place]
        image = _as_tensor(decode(record.path))
        boxes = torch.from_numpy(record.boxes[~record.crowd])
        labels = torch.from_numpy(record.labels[~record.crowd]) + 1
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
            boxes = torch.stack([record.width - boxes[:, 2], boxes[:, 1], record.width - boxes[:, 0], boxes[:, 3]], 1)
        return image, {"boxes": boxes, "labels": labels}


def _as_lists(samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def _batches(loader: data.DataLoader, steps: int) -> Iterator[Any]:
    """Yield `steps` batches, over as many epochs as needed."""
    while steps > 0:
        for batch in loader:
            yield batch
            steps -= 1
            if steps == 0:
                return


def _predict(model: FasterRCNN, dataset: Dataset, device: torch.device) -> list[Prediction]:
    model.eval()
    predictions = []
    with torch.inference_mode():
        for record in dataset.records:
            (detections,) = model([_as_tensor(decode(record.path)).to(device)])
            boxes, scores, labels = (detections[name].cpu().numpy() for name in ("boxes", "scores", "labels"))
            predictions.append(Prediction(record.id, boxes, scores, labels - 1))
    return predictions


def _as_tensor(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 h w"]:
    """Convert an image to float in 0 … 1, channels first, as torchvision expects."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n", 1)[1],
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--data.root", dest="root", type=Path, default=Path("data/bccd"), help="the data set's folder")
    parser.add_argument("--passes", type=float, default=12, help="epochs of trainval (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and flips (default 0)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--beside", metavar="COMMAND", help="a training command to alternate with torchvision's")
    parser.add_argument("--side", choices=["torchvision"], help="train in this process, untimed")
    options = parser.parse_args()
    if options.side:
        train_torchvision(options.root, options.passes, options.seed, options.device)
    else:
        compare(options)


if __name__ == "__main__":
    main()
