"""From detections to figures."""
