"""Proposals on disk: computed once, read at every pass.

A store is one SQLite file, which is transactional: whatever kills the writer, every image is in it whole or not at all.
Images are known by the digest of their file, so that a renamed or copied data set keeps its proposals and a changed
image has none. Boxes have whole-pixel coordinates and are kept as uint16, eight bytes a box, best first.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from detect.errors import UserError

_APPLICATION = 0x44455450
"""What SQLite's header says of the file: "DETP"."""
_FORMAT = 1
_HEADER = (f"PRAGMA application_id = {_APPLICATION}", f"PRAGMA user_version = {_FORMAT}")
_TABLES = (
    "CREATE TABLE parameters (json TEXT NOT NULL)",
    "CREATE TABLE proposals (image BLOB PRIMARY KEY, name TEXT NOT NULL, boxes BLOB NOT NULL, checksum BLOB NOT NULL)",
)
_MAPPED = 2**40
"""Bytes of the file that are mapped into memory, as many as the system allows: reading then copies nothing twice."""


class ProposalStore:
    """The proposals of any number of images, all made with the same parameters.

    Args:
        path: the file.
        parameters: what the proposals depend on, as plain values. With them the store is opened for writing, and made
            if there is none; without them only for reading.

    Raises:
        UserError: there is no such file, it is no store, or it holds proposals of other parameters.
    """

    def __init__(self, path: Path, parameters: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._database = _open(path, None if parameters is None else json.dumps(parameters, sort_keys=True))
        ((text,),) = self._database.execute("SELECT json FROM parameters")
        self.parameters: dict[str, Any] = json.loads(text)

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM proposals").fetchone()[0]

    def __contains__(self, image: bytes) -> bool:
        return bool(self._database.execute("SELECT 1 FROM proposals WHERE image = ?", (image,)).fetchone())

    def add(self, image: bytes, name: str, boxes: Float32[np.ndarray, "n 4"]) -> None:
        """Puts down an image's proposals, for good once this returns.

        Args:
            image: its `digest`.
            name: its file, for messages.
            boxes: xyxy in whole pixels below 65536, best first.

        Raises:
            ValueError: a coordinate is no whole number from 0 to 65535.
            UserError: the disk does not take it.
        """
        if not ((boxes >= 0) & (boxes <= 65535) & (boxes == np.rint(boxes))).all():
            raise ValueError("proposals are stored in whole pixels from 0 to 65535")
        content = boxes.astype("<u2").tobytes()
        try:
            with self._database:
                row = (image, name, content, _checksum(image, content))
                self._database.execute("INSERT OR REPLACE INTO proposals VALUES (?, ?, ?, ?)", row)
        except sqlite3.OperationalError as error:
            raise UserError(f"{self.path}: cannot be written: {error}; free some space and start again") from None

    def boxes(self, image: bytes) -> Float32[np.ndarray, "n 4"]:
        """The proposals of an image, xyxy in pixels of it, best first.

        Raises:
            KeyError: there are none.
            UserError: the file is damaged.
        """
        try:
            row = self._database.execute("SELECT boxes, checksum FROM proposals WHERE image = ?", (image,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise _damaged(self.path, error) from None
        if row is None:
            raise KeyError(image.hex())
        content, checksum = row
        if not isinstance(content, bytes) or len(content) % 8 or checksum != _checksum(image, content):
            raise _damaged(self.path, "a checksum differs")
        return np.frombuffer(content, "<u2").reshape(-1, 4).astype(np.float32)

    def missing(self, images: Mapping[Path, bytes]) -> list[Path]:
        """Those of the images, given by their files and digests, that have no proposals."""
        there = {image for (image,) in self._database.execute("SELECT image FROM proposals")}
        return [path for path, image in images.items() if image not in there]

    def close(self) -> None:
        """Lets go of the file."""
        self._database.close()


def digest(path: Path) -> bytes:
    """What a store knows an image by: 16 bytes that follow from the content of its file."""
    with path.open("rb") as file:
        state = blake2b(digest_size=16)
        while chunk := file.read(2**20):
            state.update(chunk)
    return state.digest()


def _open(path: Path, parameters: str | None) -> sqlite3.Connection:
    if parameters is None and not path.is_file():
        raise UserError(f"{path}: there is no such file; make it with detect propose DATA --out {path}")
    try:
        # Who only reads must still be able to undo what a killed writer has begun.
        mode = "rw" if parameters is None else "rwc"
        # Readers in other threads and processes are safe: each of them opens the store by itself. Whichever thread
        # collects what they leave closes it.
        address = f"{path.absolute().as_uri()}?mode={mode}"
        database = sqlite3.connect(address, uri=True, timeout=60, check_same_thread=False)
    except sqlite3.OperationalError as error:
        raise UserError(f"{path}: {error}; choose another file with --out") from None
    try:
        # A file of others may hold views and triggers: no function of SQLite's must run at their wish.
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute(f"PRAGMA query_only = {parameters is None}")
        database.execute(f"PRAGMA mmap_size = {_MAPPED}")
        if parameters is not None and not database.execute("PRAGMA page_count").fetchone()[0]:
            # Of several processes that come at once, one makes it and the others wait.
            database.execute("BEGIN IMMEDIATE")
            if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in (*_HEADER, *_TABLES):
                    database.execute(statement)
                database.execute("INSERT INTO parameters VALUES (?)", (parameters,))
            database.commit()
        _check(path, database, parameters)
    except sqlite3.OperationalError as error:
        database.close()
        raise UserError(f"{path}: {error}; choose another file") from None
    except sqlite3.DatabaseError:
        database.close()
        raise UserError(f"{path}: no store of proposals; choose another file") from None
    except BaseException:
        database.close()
        raise
    return database


def _check(path: Path, database: sqlite3.Connection, parameters: str | None) -> None:
    if database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise UserError(f"{path}: no store of proposals; choose another file")
    if (version := database.execute("PRAGMA user_version").fetchone()[0]) != _FORMAT:
        raise UserError(f"{path}: a store of format {version}, but this is detect for format {_FORMAT}; make it anew")
    ((there,),) = database.execute("SELECT json FROM parameters")
    if parameters is not None and there != parameters:
        raise UserError(f"{path}: holds proposals of {_difference(there, parameters)}; choose another file with --out")


def _difference(there: str, wanted: str) -> str:
    """The parameters in which two sets differ, those of the store first."""
    one, other = json.loads(there), json.loads(wanted)
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return ", ".join(f"{key} {one.get(key)} and not {other.get(key)}" for key in keys)


def _checksum(image: bytes, content: bytes) -> bytes:
    """Of the boxes and of whose they are."""
    return blake2b(image + content, digest_size=16).digest()


def _damaged(path: Path, reason: object) -> UserError:
    return UserError(f"{path}: this store is damaged ({reason}); remove it and make it anew with detect propose")
