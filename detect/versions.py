"""The version of detect, and those of the packages that results depend on."""

from __future__ import annotations

__version__ = "0.1.0"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of detect and of the named distributions."""
    from importlib.metadata import version  # slow to import

    return {"detect": __version__, **{name: version(name) for name in packages}}
