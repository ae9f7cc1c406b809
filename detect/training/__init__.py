"""The training loop, on Lightning."""
