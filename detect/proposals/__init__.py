"""Where regions come from, and how good they are."""
