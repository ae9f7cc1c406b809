"""The process: socket, signals and logs of `detect serve`."""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from detect.errors import UserError, reason
from detect.serve.application import build_application
from detect.serve.service import Service


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address or name of this machine; port 0 is any that is free.

    Raises:
        UserError: the address is not available.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"{host}: {reason(error)}; choose another --host") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(f"{host}:{port}: {reason(error)}; choose another --host or --port") from None
    return listener


def serve(service: Service, listener: socket.socket, keys: Sequence[str] = ()) -> None:
    """Answer requests until SIGTERM or Ctrl-C, then answer those that are being processed.

    Args:
        service: the service; it is closed at the end.
        listener: bound socket; see `bind`.
        keys: keys of which predictions need one; none if empty.
    """
    _log_lines()
    host, port = listener.getsockname()[:2]
    print(f"detect: http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C stops)", file=sys.stderr, flush=True)
    if not keys and not ipaddress.ip_address(host).is_loopback:
        print("detect: everybody who reaches this port can use it; --api-key-file asks for a key", file=sys.stderr)
    config = uvicorn.Config(
        build_application(service, keys),
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(service.limits.seconds),
        timeout_keep_alive=75,  # longer than the 60 s of common proxies, which else use connections that were closed
        ws="none",
    )
    listener.listen(2048)
    uvicorn.Server(config).run(sockets=[listener])


def read_keys(path: Path) -> list[str]:
    """Return the keys in a file, one in each line. Empty lines and lines that start with # are left out.

    Raises:
        UserError: the file cannot be read or has no key.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); give a text file with a key in each line") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError(f"{path}: has no key; write one in a line, such as the output of `openssl rand -hex 32`")
    return keys


class _Line(logging.Formatter):
    """A line of JSON for each record; a request's line is one already."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        text = super().format(record)
        if text.startswith("{"):
            return text
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, "level": record.levelname, "message": text})


def _log_lines() -> None:
    """Write the logs to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Line())
    for name, level in (("detect.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
