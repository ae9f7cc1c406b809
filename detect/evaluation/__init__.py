"""Metrics of detections and classifications."""
