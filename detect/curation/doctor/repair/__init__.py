"""Repaired copy of a data set in the same format."""
