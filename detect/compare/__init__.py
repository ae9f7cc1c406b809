"""Comparison of detectors on one data set: train, evaluate and time each of them."""

from detect.compare.comparison import compare

__all__ = ["compare"]
