"""`detect serve`: answer requests over HTTP."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.cli.shared import add_command
from detect.errors import UserError, install_command

if TYPE_CHECKING:
    from detect.serve.service import Service


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "serve",
        _serve,
        "detect objects in images that are sent over HTTP, or dropped on a page in the browser",
        "detect serve --ckpt runs/bccd/checkpoints/best.ckpt\n\n"
        "  curl --data-binary @photo.jpg 'localhost:8000/predict?score=0.5'\n\n"
        "http://localhost:8000 is a page to try the detector, /docs describes the interface.",
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint, or an exported detector (.onnx)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all (default: %(default)s)"
    )
    parser.add_argument("--port", type=_port, default=8000, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    precisions = "precision of the weights; auto: the fastest on the device (default: fp32)"
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help=precisions)
    keys = "file with a key in each line; predictions then need one, as `Authorization: Bearer KEY`"
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help=keys)
    batch = "maximum number of images per batch (default: 8 on a GPU, 1 on the CPU, where batches gain nothing)"
    parser.add_argument("--max-batch", type=_at_least_one, metavar="N", help=batch)
    wait = "time that an image waits for others of its batch at most (default: %(default)s)"
    parser.add_argument("--max-wait-ms", type=_positive, default=5, metavar="MS", help=wait)
    size = "maximum size of a request in MiB (default: %(default)s)"
    parser.add_argument("--max-mb", type=_positive, default=16, metavar="MB", help=size)
    pixels = "maximum size of an image in millions of pixels (default: %(default)s)"
    parser.add_argument("--max-megapixels", type=_positive, default=64, metavar="N", help=pixels)
    waiting = "maximum number of requests at a time; more are refused with status 503 (default: %(default)s)"
    parser.add_argument("--max-requests", type=_at_least_one, default=64, metavar="N", help=waiting)
    seconds = "time limit of a request in seconds (default: %(default)s)"
    parser.add_argument("--timeout", type=_positive, default=30, metavar="S", help=seconds)


def _serve(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    try:
        from detect.serve.server import bind, read_keys, serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("detect"):
            raise
        raise UserError(f"{error.name} is not installed: {install_command('serve')}") from None

    if options.ckpt.suffix == ".onnx" and (options.device, options.precision) != ("auto", "fp32"):
        raise UserError("--device, --precision: fixed in an exported model; leave them out, or give the checkpoint")
    keys = () if options.api_key_file is None else read_keys(options.api_key_file)
    with bind(options.host, options.port) as listener:  # first: loading takes seconds
        serve(_service(options), listener, keys)


def _service(options: argparse.Namespace) -> Service:
    """Return the service of the detector with the limits in the options."""
    from detect import load
    from detect.serve.service import Limits, Service

    detector, chosen, max_batch = load(options.ckpt), {}, 1
    cores: dict[str, Any] = {}
    if options.ckpt.suffix != ".onnx":
        import torch

        from detect.prediction.predictor import resolve_device

        device = resolve_device(options.device)
        chosen = {"device": device, "precision": options.precision}
        if device.type == "cpu":
            cores = {"cores": torch.get_num_threads(), "set_threads": torch.set_num_threads}
        else:
            max_batch = 8
    limits = Limits(
        bytes=int(options.max_mb * 2**20),
        pixels=int(options.max_megapixels * 1e6),
        requests=options.max_requests,
        seconds=options.timeout,
    )
    return Service(detector, chosen, limits, options.max_batch or max_batch, options.max_wait_ms / 1000, **cores)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}; give a number up to 65535")
    return int(text)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; give a whole number of 1 or more")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}; give a number above 0")
    return value
