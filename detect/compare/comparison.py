"""Comparison of detectors on one data set: train untrained ones, then evaluate and time all on one split.

The folder holds a run for each config, as `detect train` leaves it, computed proposals if needed, `compare.json` with a
row per detector, and `compare.png`. An interrupted comparison continues: finished runs and rows are kept, unfinished
runs are resumed. If the comparison was complete, evaluation and timing are repeated.
"""

from __future__ import annotations

import gc
import platform
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from detect.checkpoint import PACKAGES, load_checkpoint
from detect.compare.checks import check_entry, common_split, open_comparison
from detect.compare.entries import Entry, read_entries, share_division
from detect.cores import available_cores
from detect.curation.propose import propose
from detect.data.dataset import Dataset
from detect.devices import choose_device
from detect.prediction.evaluate import evaluate, write_evaluation
from detect.prediction.prepare import prepare
from detect.prediction.timing import measure_cost
from detect.proposals.recall import ProposalRecall
from detect.proposals.store import ProposalStore
from detect.report.comparison import Row, draw_comparison, print_comparison, write_comparison
from detect.training import clock
from detect.training.fit import fit
from detect.versions import versions


def compare(
    sources: Sequence[Path],
    out: Path,
    overrides: Sequence[str] = (),
    split: str | None = None,
    images: int = 50,
    command: str = "",
) -> list[Row]:
    """Train, evaluate and time detectors; write, print, plot and return a row for each.

    Args:
        sources: configs and checkpoints (`.ckpt`), in the order of the rows.
        out: a new folder, or the folder of a comparison to continue.
        overrides: options for all configs, each in the form `--section.key=VALUE`; checkpoints ignore the training
            options.
        split: split to evaluate on; by default the configs' test split, else their val split.
        images: maximum number of timed images.
        command: command line, for `compare.json`.

    Raises:
        UserError: the sources do not fit each other or the folder; nothing has been trained or written.
    """
    entries = share_division(read_entries(sources, out, overrides))
    split = split or common_split(entries)
    dataset = entries[0].data(stored=False).split(split)
    store = out / "proposals.db"
    for entry in entries:
        check_entry(entry, dataset, split, store)
    setting = _setting(dataset, min(images, len(dataset)), command)
    kept = open_comparison(out, setting, entries)
    if any(entry.needs_store for entry in entries):
        _compute_proposals(entries[0].config.data.roots, store)
        entries = [entry.with_store(store) for entry in entries]
    rows: list[Row] = []
    for entry in entries:
        rows.append(kept.get(entry.name) or _measure_entry(entry, split, images))
        write_comparison(out / "compare.json", rows, False, setting)
    write_comparison(out / "compare.json", rows, True, setting)
    machine = setting["machine"]
    title = f"{dataset.root.name} {dataset.split}, {len(dataset)} images\n{machine['cpu']}, {machine['device']}"
    draw_comparison(out / "compare.png", rows, title)
    print_comparison(rows, setting)
    print(f"{out / 'compare.json'}, {out / 'compare.png'}")
    return rows


def _setting(dataset: Dataset, timed: int, command: str) -> dict[str, Any]:
    """Return the setting of all rows: data, machine, versions."""
    cuda = torch.cuda.is_available()
    return {
        "data": " and ".join(str(root.absolute()) for root in dataset.folders),
        "split": dataset.split,
        "images": len(dataset),
        "timed_images": timed,
        "machine": {
            "cpu": _cpu_name(),
            "cores": available_cores(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
        },
        "memory": "peak memory that torch allocated on the device"
        if cuda
        else "resident memory of a process that loading and detecting add, at the peak of detecting",
        "versions": {"python": platform.python_version(), **versions(*PACKAGES)},
        "command": command,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _compute_proposals(roots: Sequence[Path], store: Path) -> None:
    """Compute proposals for all splits, like `detect propose`; images in the store are skipped."""
    outcome = propose(list(map(str, roots)), store)
    print(f"{store}: {outcome.added} images added, {outcome.present} already present", flush=True)
    for line in outcome.unreadable:
        print(f"skipped: {line}", flush=True)


def _measure_entry(entry: Entry, split: str, images: int) -> Row:
    """Train an entry if necessary, evaluate and time it, and return its row."""
    if not entry.trained:
        _train(entry)
    overrides = entry.overrides if entry.classes else ()
    checkpoint = load_checkpoint(entry.checkpoint, overrides)
    data = entry.data(checkpoint.classes)
    dataset = data.split(split)
    device = choose_device()
    print(f"{entry.name}: evaluating on {dataset.split}", flush=True)
    model = prepare(checkpoint.model.to(device))
    metrics, evaluator = evaluate(model, data.eval_loader(dataset), dataset, device, classes=data.options.classes)
    write_evaluation(entry.folder / "eval", metrics, evaluator, entry.checkpoint, checkpoint.config, device=str(device))
    del model, checkpoint
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    print(f"{entry.name}: timing", flush=True)
    cost = measure_cost(entry.checkpoint, overrides, data, dataset, images, device)
    recall = f"recall@0.5@{ProposalRecall().limits[-1]}"  # None for a detector without proposals
    return {
        "config": entry.name,
        "AP": metrics["AP"],
        "AP50": metrics["AP50"],
        **({"mask_AP": metrics["mask_AP"]} if "mask_AP" in metrics else {}),
        "test_seconds_per_image": cost.seconds,
        "test_seconds": cost.stages,
        "detector": entry.config.model.name,
        "VOC07": metrics["VOC07"]["mAP"],
        recall: metrics.get(recall),
        "training_seconds": clock.seconds(entry.run),
        "peak_memory_bytes": cost.memory,
        "checkpoint_bytes": entry.checkpoint.stat().st_size,
        "proposals_bytes_per_image": _bytes_per_image(entry.config.data.proposals) if entry.uses_store else None,
        "checkpoint": str(entry.checkpoint),
    }


def _train(entry: Entry) -> None:
    print(f"{entry.name}: training", flush=True)
    for deviation in entry.config.deviations:
        print(f"deviates from the paper: {deviation}", flush=True)
    resume = (entry.folder / "config.yaml").exists()
    fit(entry.config, entry.data(), entry.folder, resume)


def _bytes_per_image(store: Path | None) -> float:
    assert store is not None
    with closing(ProposalStore(store)) as opened:
        return store.stat().st_size / max(1, len(opened))
