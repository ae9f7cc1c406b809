"""A line of JSON for each request, and its metrics. Nothing of the image, its name or the query is written."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from secrets import token_hex

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detect.serve.metrics import Metrics

log = logging.getLogger("detect.serve")


class RequestLog:
    """ASGI middleware that logs and counts requests, and names each in the header `X-Request-ID`.

    Args:
        application: the application.
        metrics: metrics of the service.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name, start, status = token_hex(8), time.perf_counter(), 500

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        finally:
            # An unknown path is not a label, or strangers could add any number of them.
            path = scope["route"].path if "route" in scope else "unknown"
            seconds = time.perf_counter() - start
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "id": name,
                "client": scope["client"][0] if scope.get("client") else None,
                "method": scope["method"],
                "path": path,
                "status": status,
                "ms": round(1000 * seconds, 1),
            }
            log.info(json.dumps(line))
