"""Prediction and evaluation with trained detectors."""
