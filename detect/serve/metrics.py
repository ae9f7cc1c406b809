"""Metrics of a service in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Content type of the text."""


class Metrics:
    """Metrics of one service."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("detect_requests", "Answered requests.", ["path", "status"], registry=registry)
        self.seconds = Histogram("detect_request_seconds", "Time of a request.", ["path"], registry=registry)
        self.in_progress = Gauge("detect_requests_in_progress", "Requests for predictions.", registry=registry)
        self.detections = Counter("detect_detections", "Detections in answers.", registry=registry)
        self.batch_size = Histogram(
            "detect_batch_size", "Images of a batch.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
