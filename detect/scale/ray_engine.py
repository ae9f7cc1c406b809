"""Prediction by actors of Ray, on this machine or on a cluster.

Ray starts the actors, tells which of them die, and passes them the numbers of parts. Everything else is files: actors
read the sources of their part from the listing in the folder of the run, and write the part there, as any process does.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from detect.cores import available_cores
from detect.errors import UserError, install_command, reason
from detect.prediction.predict import Outcome, Run
from detect.scale.schedule import Piece, predict_parts
from detect.scale.worker import Job, Worker

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A busy machine may take minutes to start a process.
    "RAY_worker_register_timeout_seconds": "900",
    # Processes that no actor has asked for take memory, and cores from the actors.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}
_LOCAL_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes Ray listen on 127.0.0.1 only, on Linux too
}
_MAX_FAILED_STARTS = 3
"""Number of actors, per actor of the run, that may die one after the other while they load the model."""


@dataclass(frozen=True)
class RayEngine:
    """Engine that predicts on parts in actors of Ray, each with a model of its own.

    Raises:
        UserError: Ray is not installed, or `actors` is not a possible number on this machine.
    """

    address: str | None = None
    """Address of a cluster, such as HOST:6379, or "auto"; by default Ray is started on this machine."""
    actors: int | None = None
    """Number of actors; by default one for each GPU, or else for each CPU."""

    def __post_init__(self) -> None:
        if find_spec("ray") is None:
            raise UserError(f"--engine ray: Ray is not installed: {install_command('ray')}")
        if self.actors is not None and self.actors < 1:
            raise UserError(f"--actors: {self.actors}; give 1 or more")
        if self.address is None:
            share([{"CPU": available_cores()}], "CPU", self.actors)

    def __call__(self, run: Run, parts: Mapping[int, Sequence[str]]) -> None:
        """Predict on parts of a run, given as names by index."""
        if run.listing.cameras:
            raise UserError(f"{run.listing.cameras[0]}: a camera is read by this machine only; leave --engine out")
        device = str(run.options.get("device", "auto"))
        if ":" in device:
            raise UserError(f"--device: {device}; each actor has a GPU of its own: give --device cuda")
        if not parts:
            return
        on_gpus = device != "cpu" and run.checkpoint.suffix != ".onnx"
        with _ray(self.address, on_gpus) as ray:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            kind: Literal["CPU", "GPU"] = "GPU" if on_gpus and any(node.get("GPU") for node in nodes) else "CPU"
            actors, threads = share(nodes, kind, self.actors)
            listing, folder = run.listing, run.folder
            # All parts, so that the actors of any process that continues this run read the same file.
            listed = (listing.part(names, folder.draws) for names in listing.parts(folder.part_size))
            offsets = folder.write_listing(listed)
            job = Job(run.checkpoint, run.options, folder, run.download, run.workers, threads, str(Path.cwd()))
            workers = _Actors(ray, job, offsets, min(actors, len(parts)), kind)
            predict_parts(run, parts, workers)


def share(nodes: Sequence[Mapping[str, float]], kind: Literal["CPU", "GPU"], actors: int | None) -> tuple[int, int]:
    """Return the number of actors and that of the CPUs of each.

    Args:
        nodes: numbers of CPUs and GPUs of each machine.
        kind: resource of which each actor needs one.
        actors: number of actors, each with as many CPUs as possible; by default one for each CPU or GPU.

    Raises:
        UserError: there are too few CPUs or GPUs.
    """

    def room(cpus: int) -> int:
        slots = [(int(node.get("CPU", 0)) // cpus, int(node.get(kind, 0))) for node in nodes]
        return sum(map(min, slots))

    if room(1) < (actors or 1):
        remedy = f"give --actors {room(1)} or fewer" if room(1) else "give the --address of a cluster that has some"
        raise UserError(f"--actors: {actors or 1}; there are {kind}s for {room(1)}, one each: {remedy}")
    actors = actors or room(1)
    most = max(int(node.get("CPU", 0)) for node in nodes)
    return actors, max(cpus for cpus in range(1, most + 1) if room(cpus) >= actors)


@contextmanager
def _ray(address: str | None, on_gpus: bool) -> Iterator[Any]:
    """Yield Ray, connected to a cluster or started on this machine, which stops at the end."""
    for name, value in (_ENVIRONMENT | ({} if address else _LOCAL_ENVIRONMENT)).items():
        os.environ.setdefault(name, value)
    if address is not None:
        _check_answers(address)
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Only counts are exchanged, so that nearly the minimum of shared memory is enough.
        options |= {"num_cpus": available_cores(), "include_dashboard": False, "object_store_memory": 80 << 20}
        if not on_gpus:
            options["num_gpus"] = 0
    try:
        ray.init(address or "local", **options)
    except (OSError, ValueError, RuntimeError) as error:
        if address is None:
            raise UserError(f"--engine ray: Ray does not start ({reason(error)}); leave --engine out") from None
        remedy = "check it with `ray status --address`, and whether the cluster needs RAY_AUTH_MODE=token"
        raise UserError(f"--address: {address}: no cluster answers ({reason(error)}); {remedy}") from None
    try:
        # Ray prints a paragraph to stdout for each actor that dies; the schedule logs a line.
        with Path(os.devnull).open("w", encoding="utf-8") as null, redirect_stdout(null):
            yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise `UserError` if nothing listens at HOST:PORT; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            remedy = "give HOST:PORT of `ray start --head`"
            raise UserError(f"--address: {address}: no cluster answers ({reason(error)}); {remedy}") from None


class _Actors:
    """Actors of Ray as `Workers`; one that dies is replaced, and the next piece goes to whichever is ready.

    Args:
        ray: the module, connected.
        job: what each actor needs to know.
        offsets: offset of each part in the listing.
        count: number of actors.
        kind: resource of which each actor needs one.
    """

    def __init__(self, ray: Any, job: Job, offsets: Sequence[int], count: int, kind: Literal["CPU", "GPU"]) -> None:
        self.count = count
        self._ray, self._job, self._offsets = ray, job, offsets
        self._class = ray.remote(Worker).options(num_cpus=job.threads, num_gpus=int(kind == "GPU"), max_restarts=0)
        self._loading: dict[Any, Any] = {}
        """Actor by the reference to the end of its loading."""
        self._running: dict[Any, tuple[Any, Piece]] = {}
        """Actor and its piece by the reference to the outcome."""
        self._idle: list[Any] = []
        self._failed_starts = 0
        for _ in range(count):
            self._add()

    @property
    def idle(self) -> bool:
        """True if an actor is ready for a piece."""
        return bool(self._idle)

    @property
    def busy(self) -> bool:
        """True if an actor computes a piece."""
        return bool(self._running)

    def start(self, piece: Piece) -> None:
        """Give a piece to an idle actor."""
        actor = self._idle.pop()
        self._running[actor.predict.remote(piece, self._offsets[piece.part])] = actor, piece

    def wait(self) -> Sequence[tuple[Piece, Outcome | None]]:
        """Wait until an actor is ready, has completed its piece or has died; see `Workers`."""
        (reference,), _ = self._ray.wait([*self._loading, *self._running], num_returns=1)
        if reference in self._loading:
            self._finish_loading(reference, self._loading.pop(reference))
            return []
        actor, piece = self._running.pop(reference)
        died, outcome = self._get(reference)
        if died is None:
            self._idle.append(actor)
            return [(piece, outcome)]
        self._replace(actor)
        return [(piece, None)]

    def _finish_loading(self, reference: Any, actor: Any) -> None:
        died, _ = self._get(reference)
        if died is None:
            self._failed_starts = 0
            self._idle.append(actor)
            return
        self._failed_starts += 1
        if self._failed_starts > _MAX_FAILED_STARTS * self.count:
            raise UserError(f"--engine ray: actors die while they load the model ({reason(died)}); try fewer --actors")
        self._replace(actor)

    def _get(self, reference: Any) -> tuple[Exception | None, Any]:
        """Return the error by which an actor died, or None and what its call returned.

        Raises:
            UserError: raised by the call.
            OSError: raised by the call.
            ray.exceptions.RayTaskError: the call raised another error, a bug.
        """
        errors = self._ray.exceptions
        try:
            return None, self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, UserError | OSError):
                raise error.cause from None
            raise
        except errors.RayError as error:
            return error, None

    def _replace(self, actor: Any) -> None:
        """Replace an actor that is dead, or that cannot be reached."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor)
        self._add()

    def _add(self) -> None:
        actor = self._class.remote(self._job)
        self._loading[actor.load.remote()] = actor
