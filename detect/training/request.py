"""What a user asks to train, and the experiment and folder that follow from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from detect.config import (
    ClassificationConfig,
    Config,
    Experiment,
    config_to_dict,
    given_options,
    load_experiment,
    with_division,
)
from detect.data.division import DIVISION
from detect.errors import UserError
from detect.files.folders import refuse_used, unused_folder
from detect.models import DetectorOptions
from detect.processes import is_first_process
from detect.training.from_weights import load_from_weights, weights_override
from detect.training.preset import PRESET, fit_to_data, is_given, with_splits

RESUME_NOTE = " (to continue a run, give --resume)"


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks to train.

    Args:
        data: data folders or annotation files; empty for those of the config or the overrides.
        config: name or YAML file of a config; None for none.
        sections: sections of options that replace those of the config.
        weights: file of a model to begin from.
        network: take the network from `weights` even if there is a config.
        overrides: options, each in the form `--section.key=VALUE`.
        out: folder of the run; by default a new one under `runs`.
        resume: continue the run in `out`, or begin it if there is none.
    """

    data: tuple[Path, ...] = ()
    config: Path | None = None
    sections: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    network: bool = False
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    resume: bool = False

    @property
    def words(self) -> list[str]:
        """The overrides with the data. Raise `UserError` if it is given twice."""
        if not self.data:
            return list(self.overrides)
        if is_given("data.root", given_options(self.overrides)):
            raise UserError(f"{self.data[0]}: --data.root names the data as well; leave one of them out")
        paths = [str(path) for path in self.data]
        return [f"--data.root={json.dumps(paths[0] if len(paths) == 1 else paths)}", *self.overrides]

    @property
    def given(self) -> set[str]:
        """Names of the options and sections that are given."""
        return given_options(self.words) | set(self.sections)

    @property
    def is_open(self) -> bool:
        """True if only data, and at most the options of a detector, are given."""
        return self.config is None and self.weights is None and set(self.sections) <= {"model"}


def sections_of(model: Any) -> dict[str, Any]:
    """Return the sections of an experiment or of a detector's options. Raise `UserError` for anything else."""
    if isinstance(model, Config | ClassificationConfig):
        return config_to_dict(model)
    if isinstance(model, DetectorOptions):
        return {"model": TypeAdapter(type(model)).dump_python(model, mode="json")}
    wanted = "the name or file of a config, a Config, or the options of a detector"
    raise UserError(f"model: a {type(model).__name__}; give {wanted}")


def resolve(request: Request) -> tuple[Experiment, Path, list[str]]:
    """Return the experiment, the folder of its run, and lines that describe what was chosen from the data.

    Raises:
        UserError: the config, the options, the data or the folder cannot be used.
    """
    if request.network and request.weights is None:
        raise UserError("--model from-weights: name the file with --weights FILE")
    if request.resume and request.out is None:
        raise UserError("--resume: name the folder of the run with --out DIR")
    out = request.out
    begun = out / "config.yaml" if request.resume and out and (out / "config.yaml").exists() else None
    if begun is None and request.is_open and not is_given("data.root", request.given):
        if request.resume:
            raise UserError(f"--resume: {out} has no run; give the data or -c to start one")
        raise UserError("DIR: name the data set, for example detect train photos, or the experiment with -c CONFIG")
    locked = request.resume and out is not None and (out / ".lock").exists()
    if out is not None and begun is None and not locked and is_first_process():
        refuse_used(out, RESUME_NOTE)
    experiment, told = _load(request, begun)
    out = out or _new_run_folder(request, experiment)
    if request.resume or not is_first_process():
        experiment = _with_division(experiment, out)
    return experiment, out, told


def _load(request: Request, begun: Path | None) -> tuple[Experiment, list[str]]:
    """Return the experiment, and what was chosen; `begun` is the config of a run that is resumed."""
    words, given = request.words, request.given
    if request.weights is not None and not request.sections:
        experiment = load_from_weights(request.config, request.weights, words, request.network, begun)
    else:
        first = [] if request.weights is None else [weights_override(request.weights)]
        path = request.config or begun or (PRESET if set(request.sections) <= {"model"} else None)
        experiment = load_experiment(path, [*first, *words], request.sections)
    if begun is not None or request.config is not None or isinstance(experiment, ClassificationConfig):
        return experiment, []
    if request.is_open:
        return fit_to_data(experiment, given)
    return (experiment, []) if "data" in request.sections else with_splits(experiment, given)


def _with_division(experiment: Experiment, out: Path) -> Experiment:
    """Return the experiment with the division in the folder of its run, if there is one already."""
    if isinstance(experiment, Config) and (out / DIVISION).exists():
        return with_division(experiment, out / DIVISION)
    return experiment


def _new_run_folder(request: Request, experiment: Experiment) -> Path:
    """Return a new folder under `runs`, named after the config, or else the weights or the data."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("--out: several processes need the same folder; give it with --out DIR")
    if not is_first_process():
        return Path(os.environ["DETECT_RUN"])
    named = request.config or request.weights
    name = "_".join(named.with_suffix("").parts[-2:]) if named else _root(experiment).stem or "data"
    folder = unused_folder(Path("runs") / name)
    os.environ["DETECT_RUN"] = str(folder)  # for the processes that Lightning starts, one per device
    return folder


def _root(experiment: Experiment) -> Path:
    root = experiment.data.root
    return (root[0] if isinstance(root, Sequence) else root).resolve()
