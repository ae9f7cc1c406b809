"""HTTP service for a trained detector: `detect serve`."""
