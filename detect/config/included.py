"""The configs that come with the package, `detect/configs`, by name: `bccd/faster_rcnn`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from detect.errors import UserError

FOLDER = Path(__file__).parents[1] / "configs"
_RESULT = re.compile(r"^# Result: ((?:(?:m?AP\d*|top\d) [\d.]+\d(?:, )?){1,2})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class IncludedConfig:
    """A config of the package.

    Attributes:
        name: folder and name, without suffix.
        title: first line of the file: what the config trains.
        result: the first two metrics that were measured with it; empty if none were.
    """

    name: str
    title: str
    result: str


def included_configs() -> list[IncludedConfig]:
    """Return the configs of the package, sorted by name."""
    texts = {name: (FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in config_names()}
    return [IncludedConfig(name, text.partition("\n")[0].lstrip("# "), _result(text)) for name, text in texts.items()]


def config_names() -> list[str]:
    """Return the names of the package's configs, sorted."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def find_config(name: Path) -> Path:
    """Return the file of the package's config whose name is or ends with `name`; any other path is returned unchanged.

    Raises:
        UserError: the names of several configs end with it.
    """
    wanted = name.as_posix()
    found = [known for known in config_names() if known == wanted or known.endswith(f"/{wanted}")]
    if len(found) > 1:
        raise UserError(f"{name}: {len(found)} configs have this name; give one of {', '.join(found)}")
    return FOLDER / f"{found[0]}.yaml" if found else name


def no_such_config(path: Path) -> str:
    """Return the message for a config that does not exist, with similar names of the package's configs."""
    names = config_names()
    wanted = path.with_suffix("").as_posix()
    ends = [name for name in names if name.endswith(f"/{path.stem}")]
    stems = get_close_matches(wanted, {name.rpartition("/")[2] for name in names}, n=2, cutoff=0.75)
    near = ends or get_close_matches(wanted, names, n=2) or [name for name in names if name.rpartition("/")[2] in stems]
    suggestion = f"did you mean {' or '.join(near[:3])}? " if near else ""
    return f"no such file, and no config has this name; {suggestion}`detect configs` lists them"


def _result(text: str) -> str:
    measured = _RESULT.search(text)
    return measured[1].rstrip(", ") if measured else ""
