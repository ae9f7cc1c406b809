"""Worker that predicts on parts of a run, in a process of an engine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detect.cores import share_cores
from detect.errors import UserError
from detect.prediction.load import load
from detect.prediction.output_folder import OutputFolder
from detect.prediction.predict import Model, Outcome, PartPredictor
from detect.scale.schedule import Piece


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know of a run."""

    checkpoint: Path
    options: Mapping[str, Any]
    folder: OutputFolder
    download: bool
    decoders: int
    """Number of threads that decode images ahead."""
    threads: int
    """Number of threads of the model."""
    directory: str
    """Working directory, to which relative paths refer."""


class Worker:
    """Worker that predicts on parts, one at a time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._model: Model | None = None

    def load(self) -> None:
        """Load the model.

        Raises:
            UserError: the files of the run cannot be read from here.
        """
        # The command has set a number for itself, which its child processes inherit.
        os.environ["OMP_NUM_THREADS"] = str(self._job.threads)
        share_cores()
        try:
            os.chdir(self._job.directory)
        except OSError as error:
            place = f"{platform.node()}:{self._job.directory}"
            remedy = "start from a folder that all machines share, in which are the checkpoint, the sources and --out"
            raise UserError(f"{place}: {error.strerror}; {remedy}") from None
        self._model = load(self._job.checkpoint)

    def predict(self, piece: Piece, offset: int) -> Outcome:
        """Predict on a piece of the part that is listed at an offset, and write it into the folder of the run."""
        assert self._model is not None
        job, outcome = self._job, Outcome()
        part = job.folder.read_listing(offset)
        pictures = part.drawings[piece.start : piece.stop] if part.kind == "images" else part.drawings
        part = replace(part, names=part.names[piece.start : piece.stop], drawings=pictures)
        predictor = PartPredictor(self._model, job.options, job.folder, job.download, job.decoders, outcome)
        with job.folder.write_part(piece.part, None if piece.whole else piece.start) as lines:
            predictor.predict(part, lines)
        return outcome
