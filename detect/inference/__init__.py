"""A trained detector in use."""
