"""Export of trained detectors for other runtimes."""
