"""Files that are either whole or absent; a disk that is full or read-only is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .sources.record import StudyError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to be written, which takes its place at the end of the block; on failure it is removed.

    Raises ``StudyError`` where it cannot be written.
    """
    half = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield half
        half.replace(path)
    except OSError as error:
        why = error.strerror or error
        raise StudyError(
            f"{path} could not be written: {why}; nothing is left of it. Give another place by --out"
        ) from error
    finally:
        with suppress(OSError):
            half.unlink(missing_ok=True)
