"""The frames of a ``.wandb`` file: LevelDB's log format, with W&B's own header.

Blocks of 32 KiB hold chunks: crc32 (4 bytes), length (2), type (1: a whole record, 2–4: its first, middle, last part).
What does not fit a chunk's head at a block's end is zero. A file that was cut off in the middle is read up to there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

HEADER = struct.Struct("<4sHB")  # ":W&B", a magic number, the version
MAGIC, VERSION = (b":W&B", 0xBEE1), 0
CHUNK = struct.Struct("<IHB")
BLOCK = 32768
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


class NotWandb(ValueError):
    """A file that is not a W&B transaction log of a version that is known here."""


class Frames:
    """Iterates over the records' bytes; afterwards ``torn`` says whether the file ended in the middle of one."""

    def __init__(self, path: Path):
        self.path, self.torn = path, False
        self.data = path.read_bytes()

    @property
    def empty(self) -> bool:
        """No more than a header: of a run that was killed before its first second was written."""
        return len(self.data) <= HEADER.size

    def __iter__(self) -> Iterator[bytes]:
        data, position = self.data, HEADER.size
        if len(data) < HEADER.size:
            return
        *magic, version = HEADER.unpack_from(data)
        if tuple(magic) != MAGIC or version != VERSION:
            raise NotWandb(f"{self.path}: its first bytes are {data[: HEADER.size]!r}, not those of W&B's version 0")
        parts: list[bytes] = []
        while position + CHUNK.size <= len(data):
            room = BLOCK - position % BLOCK
            if room < CHUNK.size:
                position += room
                continue
            crc, length, kind = CHUNK.unpack_from(data, position)
            start = position + CHUNK.size
            part = data[start : start + length]
            if zlib.crc32(part, zlib.crc32(bytes((kind,)))) != crc or (kind in (MIDDLE, LAST)) != bool(parts):
                self.torn = True
                return
            position = start + length
            if kind in (WHOLE, LAST):
                yield b"".join([*parts, part]) if parts else part
                parts = []
            else:
                parts.append(part)
        self.torn = bool(parts) or position < len(data)
