"""Proposal store on disk: computed once, read in every epoch.

A store is one SQLite file. Writes are transactions: if the writer is killed, each image is stored completely or not at
all. Images are identified by the digest of their file, so a renamed or copied data set keeps its proposals, and a
changed image has none. Boxes have integer coordinates and are stored as uint16, eight bytes per box, best first.
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
"""Application id in the header of the SQLite file: "DETP"."""
_FORMAT = 1
_HEADER = (f"PRAGMA application_id = {_APPLICATION}", f"PRAGMA user_version = {_FORMAT}")
_TABLES = (
    "CREATE TABLE parameters (json TEXT NOT NULL)",
    "CREATE TABLE proposals (image BLOB PRIMARY KEY, name TEXT NOT NULL, boxes BLOB NOT NULL, checksum BLOB NOT NULL)",
)
_MAPPED = 2**40
"""Bytes of the file to map into memory, as far as the system allows: reads then copy the data only once."""


class ProposalStore:
    """Store of the proposals of many images, all computed with the same parameters.

    Args:
        path: the file.
        parameters: the parameters of the proposals, as JSON values. If given, the store is opened for writing and
            created if it does not exist; otherwise it is opened read-only.

    Raises:
        UserError: the file does not exist, is not a store, or has proposals computed with other parameters.
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
        """Store the proposals of an image durably.

        Args:
            image: `digest` of the image.
            name: file name of the image, for messages.
            boxes: xyxy, integer coordinates below 65536, best first.

        Raises:
            ValueError: a coordinate is not an integer from 0 to 65535.
            UserError: the file cannot be written.
        """
        if not ((boxes >= 0) & (boxes <= 65535) & (boxes == np.rint(boxes))).all():
            raise ValueError("proposals must have integer coordinates from 0 to 65535")
        content = boxes.astype("<u2").tobytes()
        try:
            with self._database:
                row = (image, name, content, _checksum(image, content))
                self._database.execute("INSERT OR REPLACE INTO proposals VALUES (?, ?, ?, ?)", row)
        except sqlite3.OperationalError as error:
            raise UserError(f"{self.path}: cannot be written: {error}; free some space and start again") from None

    def boxes(self, image: bytes) -> Float32[np.ndarray, "n 4"]:
        """Return the proposals of an image, xyxy in pixels of the image, best first.

        Raises:
            KeyError: the store has no such image.
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
            raise _damaged(self.path, "checksum mismatch")
        return np.frombuffer(content, "<u2").reshape(-1, 4).astype(np.float32)

    def missing(self, images: Mapping[Path, bytes]) -> list[Path]:
        """Return the files of images without proposals; `images` maps files to digests."""
        stored = {image for (image,) in self._database.execute("SELECT image FROM proposals")}
        return [path for path, image in images.items() if image not in stored]

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def digest(path: Path) -> bytes:
    """Return the key of an image in a store: a 16-byte hash of the content of its file."""
    with path.open("rb") as file:
        state = blake2b(digest_size=16)
        while chunk := file.read(2**20):
            state.update(chunk)
    return state.digest()


def _open(path: Path, parameters: str | None) -> sqlite3.Connection:
    if parameters is None and not path.is_file():
        raise UserError(f"{path}: no such file; create it with detect propose DATA --out {path}")
    try:
        # A read-only user must still be able to roll back the transaction of a killed writer.
        mode = "rw" if parameters is None else "rwc"
        # Each thread or process opens its own connection; the garbage collector may close it in any thread.
        address = f"{path.absolute().as_uri()}?mode={mode}"
        database = sqlite3.connect(address, uri=True, timeout=60, check_same_thread=False)
    except sqlite3.OperationalError as error:
        raise UserError(f"{path}: {error}; choose another file with --out") from None
    try:
        # An untrusted file may contain views and triggers, which must not call SQL functions.
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute(f"PRAGMA query_only = {parameters is None}")
        database.execute(f"PRAGMA mmap_size = {_MAPPED}")
        if parameters is not None and not database.execute("PRAGMA page_count").fetchone()[0]:
            # If several processes start at once, one creates the tables and the others wait.
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
        raise UserError(f"{path}: not a proposal store; choose another file") from None
    except BaseException:
        database.close()
        raise
    return database


def _check(path: Path, database: sqlite3.Connection, parameters: str | None) -> None:
    if database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise UserError(f"{path}: not a proposal store; choose another file")
    if (version := database.execute("PRAGMA user_version").fetchone()[0]) != _FORMAT:
        raise UserError(
            f"{path}: store format {version}, but this version reads format {_FORMAT}; recreate it with detect propose"
        )
    ((stored,),) = database.execute("SELECT json FROM parameters")
    if parameters is not None and stored != parameters:
        raise UserError(f"{path}: has proposals with {_difference(stored, parameters)}; choose another file with --out")


def _difference(stored_json: str, requested_json: str) -> str:
    """Describe the parameters that differ."""
    stored, requested = json.loads(stored_json), json.loads(requested_json)
    keys = sorted(key for key in stored.keys() | requested.keys() if stored.get(key) != requested.get(key))
    return ", ".join(f"{key} {stored.get(key)} instead of {requested.get(key)}" for key in keys)


def _checksum(image: bytes, content: bytes) -> bytes:
    """Return the checksum of the boxes and the key of their image."""
    return blake2b(image + content, digest_size=16).digest()


def _damaged(path: Path, reason: object) -> UserError:
    return UserError(f"{path}: damaged proposal store ({reason}); remove it and recreate it with detect propose")
