"""Trained detectors in use."""
