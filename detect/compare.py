"""Detectors on one data set: each is trained where it is not yet, judged on the same split, and timed.

The folder holds a run for each config, as `detect train` leaves it, the proposals where they had to be made,
`compare.json` with a row for each detector, and `compare.png`. An interrupted comparison goes on: what is trained
stays, what is half trained is resumed, and the rows that are there count. One that had ended is measured anew.
"""

from __future__ import annotations

import gc
import platform
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from detect.checkpoint import VERSIONS, load_checkpoint
from detect.config import Config, config_to_dict, load_config
from detect.curation.propose import propose
from detect.data.datamodule import DetectionData
from detect.data.dataset import Dataset
from detect.errors import UserError
from detect.prediction.evaluate import evaluate, write_evaluation
from detect.prediction.prepare import prepare
from detect.prediction.timing import measure_cost
from detect.proposals.selective_search import available_cores
from detect.proposals.store import ProposalStore
from detect.report.comparison import Row, draw_comparison, print_comparison, read_comparison, write_comparison
from detect.training import clock
from detect.training.fit import best_checkpoint, build, count_processes, fit


@dataclass(frozen=True, slots=True)
class Entry:
    """One of the detectors."""

    name: str
    source: Path
    """A config, or a checkpoint."""
    folder: Path
    """Of its run, or of a checkpoint's results."""
    config: Config
    classes: tuple[str, ...] | None
    """Those of a checkpoint."""
    overrides: tuple[str, ...]
    """What a checkpoint is read with."""

    @property
    def checkpoint(self) -> Path:
        """What is judged; of a config, once it is trained."""
        return best_checkpoint(self.folder) if self.classes is None else self.source

    @property
    def trained(self) -> bool:
        """Whether there is nothing to train, or nothing left to."""
        return self.classes is not None or (clock.finished(self.folder) and self.checkpoint.exists())

    @property
    def proposes(self) -> bool:
        """Whether it has an RPN."""
        return hasattr(self.config.model, "rpn")


def compare(
    sources: Sequence[Path],
    out: Path,
    overrides: Sequence[str] = (),
    split: str | None = None,
    images: int = 50,
    command: str = "",
) -> list[Row]:
    """Trains, judges and times the detectors; returns their rows and writes and prints them, with a picture.

    Args:
        sources: configs and checkpoints (`.ckpt`), in the order of the rows.
        out: a new folder, or that of a comparison.
        overrides: for all configs, each as one word, `--section.key=VALUE`; those of training are not for checkpoints.
        split: what they are judged on; by default the test split that the configs name, else their val split.
        images: how many images are timed, at most.
        command: what was called, for `compare.json`.

    Raises `UserError`, before anything is trained or written, where something does not fit.
    """
    entries = _entries(sources, out, overrides)
    split = split or _common_split(entries)
    dataset = _data(entries[0].config, stored=False).split(split)
    store = out / "proposals.db"
    makes_store = any(not entry.proposes and entry.config.data.proposals is None for entry in entries)
    for entry in entries:
        _check(entry, dataset, split, store)
    about = _about(dataset, min(images, len(dataset)), command)
    kept = _begin(out, about, entries)
    if makes_store:
        _make_store(entries[0].config.data.root, store)
        entries = [_with_store(entry, store) for entry in entries]
    rows: list[Row] = []
    for entry in entries:
        rows.append(kept.get(entry.name) or _row(entry, split, images))
        write_comparison(out / "compare.json", rows, False, about)
    write_comparison(out / "compare.json", rows, True, about)
    machine = about["machine"]
    title = f"{dataset.root.name} {dataset.split}, {len(dataset)} images\n{machine['cpu']}, {machine['device']}"
    draw_comparison(out / "compare.png", rows, title)
    print_comparison(rows, about)
    print(f"{out / 'compare.json'}, {out / 'compare.png'}")
    return rows


def names(sources: Sequence[Path]) -> list[str]:
    """The stem of each file, with as many of its folders as tell it from the others.

    A checkpoint goes by its run's folder: RUN/checkpoints/best.ckpt is RUN, beside it last.ckpt is RUN_last.
    """
    parts = [_parts(source) for source in sources]
    depths = [1] * len(parts)
    while True:
        found = ["_".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        repeated = [found.count(name) > 1 for name in found]
        if not any(repeated):
            return found
        longer = [depth + more for depth, more in zip(depths, repeated, strict=True)]
        if not any(depth <= len(part) and more for depth, part, more in zip(longer, parts, repeated, strict=True)):
            raise UserError(f"{sources[repeated.index(True)]}: it is given twice; a comparison takes it once")
        depths = longer


def _parts(source: Path) -> tuple[str, ...]:
    path = source.absolute().with_suffix("")
    if source.suffix == ".ckpt" and path.parent.name == "checkpoints":
        run = path.parent.parent
        path = run if path.name == "best" else run.with_name(f"{run.name}_{path.name}")
    return path.parts[1:]


# ---- before any work -------------------------------------------------------------------------------------------------


def _entries(sources: Sequence[Path], out: Path, overrides: Sequence[str]) -> list[Entry]:
    if not sources:
        raise UserError("compare: name the configs or checkpoints, for example configs/bccd/faster_rcnn.yaml")
    of_checkpoints = tuple(word for word in overrides if not word.startswith("--training."))
    if all(source.suffix == ".ckpt" for source in sources) and len(of_checkpoints) < len(overrides):
        raise UserError("--training: these are checkpoints, whose training is over; give options of data and model")
    entries = []
    for source, name in zip(sources, names(sources), strict=True):
        classes = None
        if source.suffix == ".ckpt":
            checkpoint = load_checkpoint(source, of_checkpoints)
            config, classes = checkpoint.config, checkpoint.classes
        else:
            config = load_config(source, overrides)
        entry = Entry(name, source, out / name, config, classes, of_checkpoints)
        # A store that was given for all is none of theirs.
        entries.append(_with_store(entry, None) if entry.proposes else entry)
    for key in ("root", "skip_unreadable", "follow_links"):
        if len(found := {str(getattr(entry.config.data, key)) for entry in entries}) > 1:
            raise UserError(
                f"--data.{key}: the configs have {' and '.join(sorted(found))}; a comparison has one: give --data.{key}"
            )
    return entries


def _common_split(entries: Sequence[Entry]) -> str:
    found = {entry.config.data.test or entry.config.data.val for entry in entries}
    if len(found) > 1 or None in found:
        named = " and ".join(sorted(str(name) for name in found if name)) or "none"
        raise UserError(f"--split: the configs name {named} to be judged on; name the one for all")
    return str(found.pop())


def _check(entry: Entry, dataset: Dataset, split: str, store: Path) -> None:
    """All that can be found wrong with an entry before it is its turn."""
    made = not entry.proposes and entry.config.data.proposals is None
    data = _data(entry.config, entry.classes)
    if entry.classes is not None and set(entry.classes) != set(dataset.classes):
        raise UserError(
            f"{entry.source}: has the classes {', '.join(entry.classes)}, and {dataset.root} has "
            f"{', '.join(dataset.classes)}; a comparison is between detectors of the same"
        )
    data.split(split)
    _check_folder(entry, store if made else None)
    if entry.trained:
        return
    if count_processes(entry.config.training) > 1:
        raise UserError("training.devices: a comparison trains in one process; give --training.devices 1")
    build((_with_store(entry, store) if made else entry).config, data)


def _check_folder(entry: Entry, store: Path | None) -> bool:
    """Whether the folder holds the entry's own run, to go on with. Raises `UserError` where it holds something else."""
    there, folder = entry.folder / "config.yaml", entry.folder
    if not folder.exists():
        return False
    if entry.classes is not None:
        if there.exists():
            raise UserError(f"{folder}: holds a run, and {entry.source} is a checkpoint; give another --out")
        return False
    if not there.exists():
        if not folder.is_dir() or any(folder.iterdir()):
            raise UserError(f"{folder}: is used by something else; give another --out")
        return False
    before, wanted = load_config(there), (entry if store is None else _with_store(entry, store)).config
    if wanted.training.precision == "auto":  # the folder has what it stands for
        wanted = replace(wanted, training=replace(wanted.training, precision=before.training.precision))
    if before != wanted:
        one, other = (dict(_leaves(config_to_dict(config))) for config in (before, wanted))
        key = next(key for key in [*one, *other] if one.get(key) != other.get(key))
        difference = f"{key} {one.get(key)} and not {other.get(key)}"
        raise UserError(f"{folder}: holds a run with {difference}; give another --out, or remove it")
    return True


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _begin(out: Path, about: dict[str, Any], entries: Sequence[Entry]) -> dict[str, Row]:
    """The rows that an interrupted comparison, the same one, has left; the folder is marked as a comparison's."""
    file = out / "compare.json"
    before = read_comparison(file)
    if before is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is used by something else than a comparison; give another --out")
    rows: dict[str, Row] = {}
    if before is not None and before == {"rows": before["rows"], "finished": False, **about}:
        measured = file.stat().st_mtime
        # A checkpoint that has changed since then is another one.
        same = {entry.name for entry in entries if entry.trained and entry.checkpoint.stat().st_mtime <= measured}
        rows = {row["config"]: row for row in before["rows"] if row["config"] in same}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_comparison(file, list(rows.values()), False, about)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; choose another folder with --out") from None
    return rows


def _about(dataset: Dataset, timed: int, command: str) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "data": str(dataset.root),
        "split": dataset.split,
        "images": len(dataset),
        "timed_images": timed,
        "machine": {
            "cpu": _cpu(),
            "cores": available_cores(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
        },
        "memory": "the peak of what torch allocated on the device"
        if cuda
        else "what loading and detecting add to the resident memory of a process, at the peak of detecting",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "command": command,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


# ---- the work --------------------------------------------------------------------------------------------------------


def _make_store(root: Path, store: Path) -> None:
    """As `detect propose` does, for all splits of the data set; what is there already is not searched again."""
    outcome = propose([str(root)], store)
    print(f"{store}: {outcome.added} images added, {outcome.present} were there", flush=True)
    for line in outcome.unreadable:
        print(f"left out: {line}", flush=True)


def _row(entry: Entry, split: str, images: int) -> Row:
    """Trains what is not trained, judges and times it."""
    if not entry.trained:
        _train(entry)
    checkpoint = load_checkpoint(entry.checkpoint, entry.overrides if entry.classes else ())
    data = _data(entry.config, checkpoint.classes)
    dataset = data.split(split)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{entry.name}: evaluating on {dataset.split}", flush=True)
    model = prepare(checkpoint.model.to(device))
    metrics, evaluator = evaluate(model, data.eval_loader(dataset), dataset, device)
    write_evaluation(entry.folder / "eval", metrics, evaluator, entry.checkpoint, checkpoint.config, device=str(device))
    del model, checkpoint
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    print(f"{entry.name}: timing", flush=True)
    cost = measure_cost(entry.checkpoint, entry.overrides if entry.classes else (), data, dataset, images, device)
    recall = f"recall@0.5@{evaluator.recall.limits[-1]}"
    return {
        "config": entry.name,
        "AP": metrics["AP"],
        "AP50": metrics["AP50"],
        "test_seconds_per_image": cost.seconds,
        "test_seconds": cost.stages,
        "detector": entry.config.model.name,
        "VOC07": metrics["VOC07"]["mAP"],
        recall: metrics[recall],
        "training_seconds": clock.seconds(_run(entry)),
        "peak_memory_bytes": cost.memory,
        "checkpoint_bytes": entry.checkpoint.stat().st_size,
        "proposals_bytes_per_image": None if entry.proposes else _bytes_per_image(entry.config.data.proposals),
        "checkpoint": str(entry.checkpoint),
    }


def _train(entry: Entry) -> None:
    print(f"{entry.name}: training", flush=True)
    for deviation in entry.config.deviations:
        print(f"deviates from the paper: {deviation}", flush=True)
    resumes = (entry.folder / "config.yaml").exists()
    fit(entry.config, _data(entry.config), entry.folder, resumes)


def _run(entry: Entry) -> Path:
    """The folder of the run that a checkpoint is from."""
    folder = entry.checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _bytes_per_image(store: Path | None) -> float:
    assert store is not None
    with closing(ProposalStore(store)) as opened:
        return store.stat().st_size / max(1, len(opened))


def _with_store(entry: Entry, store: Path | None) -> Entry:
    """With these proposals where it has none of its own and needs some; without any where it has an RPN."""
    proposals = None if entry.proposes else entry.config.data.proposals or store
    return replace(entry, config=replace(entry.config, data=replace(entry.config.data, proposals=proposals)))


def _data(config: Config, classes: Sequence[str] | None = None, stored: bool = True) -> DetectionData:
    options = config.data if stored else replace(config.data, proposals=None)
    return DetectionData(options, classes, seed=config.training.seed)
